"""One worker: takes a trial up or draws one, runs it through the stages, tells what became of it; until the budget is spent."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunesmith import tracking
from tunesmith.errors import FileError, InterruptedRun, ModelError, StoppedError, TrialPruned, TunesmithError
from tunesmith.recipe import with_values
from tunesmith.runner import execute, signals
from tunesmith.runs import durable
from tunesmith.runs.events import Event
from tunesmith.runs.run import IS_BUSY, Run
from tunesmith.tuning import rungs
from tunesmith.tuning.claims import Owner, alone, is_living, is_silent
from tunesmith.tuning.objective import curve_of
from tunesmith.tuning.progress import Progress
from tunesmith.tuning.space import Drawn, points, size, values_of
from tunesmith.tuning.study import Study, Trial
from tunesmith.units import GIB, KIB

if TYPE_CHECKING:
    from tunesmith.tuning.search import Search

SIGN_OF_LIFE_S = 15.0
MAX_FAILED_AT_FIRST = 3  # trials that fail before any is complete
MAX_DEATHS = 3  # of a trial's process at the same step
BUSY_POLL_S = 2.0
MAX_REPEATED = 3  # draws of values that were tried, before others are looked for one by one
OUT_OF_TIME = "TUN-007"
LARGE_PROCESS = 4 * GIB  # below, a collection of its garbage takes longer than the room is worth


class Worker:
    """deadline: of time.monotonic(), None without one."""

    def __init__(self, search: Search, study: Study, progress: Progress, deadline: float | None) -> None:
        self.search, self.study, self.progress, self.deadline = search, study, progress, deadline
        self.owner = Owner(search.folder / "workers")
        self.asked_to_stop: int | None = None
        self.failed_in_a_row: list[Exception] = []
        self.watch: _Watch | None = None  # of the trial at work

    def work(self) -> None:
        """Raises InterruptedRun after a signal, FileError when the disk or the storage fails; the trial at work is kept."""
        with signals.noted(self._ask), self._signs_of_life():
            try:
                while (trial := self._next()) is not None:
                    self._carry_out(trial)
                    self.watch = None
                    self.search.write_results(self.study)
            finally:
                self.owner.close()

    # --------------------------------------------------------------------------------------------- what to do next

    def _next(self) -> Trial | None:
        """The next trial to work on; None when there is nothing left to begin."""
        while True:
            self._leave_if_asked()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return None
            with alone(self.search.folder / "claim.lock", self._leave_if_asked):
                found = self._orphan() or self._new()
            if found is None or found.state == "running":
                return found

    def _orphan(self) -> Trial | None:
        """A running trial of this workspace whose worker is gone; those of lost machines are ended."""
        search = self.search
        for trial in self.study.trials():
            if trial.state != "running":
                continue
            alive = trial.get("alive") or trial.get("started") or 0.0
            if trial.get("workspace", search.workspace_id if search.has_own_storage else None) != search.workspace_id:
                if is_silent(alive):
                    why = f"its worker {trial.get('owner', 'of unknown name')} has given no sign of life for long"
                    self.study.end_lost(trial.number, why, uncounted="lost")
            elif not is_living(search.folder / "workers", trial.get("owner", ""), alive):
                mine = {"owner": self.owner.name, "workspace": search.workspace_id, "alive": time.time()}
                taken = self.study.take_up(trial.number, **mine)
                if self._admits(taken) and not self._died_too_often(trial):
                    return taken
        return None

    def _died_too_often(self, trial: Trial) -> bool:
        """A trial that ends its process each time at the same step would be taken up for ever."""
        if not trial.get("owner"):  # stopped and saved, not dead
            return False
        step = self._last_step(trial)
        deaths = [*trial.get("deaths", []), step]
        self.study.note(trial.number, deaths=deaths)
        if deaths.count(step) < MAX_DEATHS:
            return False
        why = f"its process died {MAX_DEATHS} times at step {step}, as it does when memory runs out"
        self.study.note(trial.number, why=why)
        self.study.end(trial.number, "failed")
        self.progress.ended(self.study.trial(trial.number), self.study)
        return True

    def _last_step(self, trial: Trial) -> int:
        folder = self.search.workspace / "runs" / str(trial.get("run", "none"))
        events = Run.open(folder).events() if (folder / "recipe.json").exists() else []
        return max((event.step for event in events if event.name == "train/loss" and event.step), default=0)

    def _new(self) -> Trial | None:
        """A new trial within the budget. What repeats an earlier trial takes no place in it."""
        study, budget = self.study, self.search.spec.tune.trials
        num_points, num_repeated = size(self.search.space), 0
        while True:
            counted = self._counted()
            tried = {_point(trial.drawn) for trial in counted}
            if budget is not None and len(counted) >= budget:
                return None
            if num_points is not None and len(tried) >= num_points:
                self.progress.say(f"all {num_points} points of the space are tried")
                return None
            if num_repeated >= MAX_REPEATED and num_points is not None:
                untried = (point for point in points(self.search.space) if _point(point) not in tried)
                study.suggest(next(untried))
            mine = study.draw(owner=self.owner.name, workspace=self.search.workspace_id, alive=time.time())
            if self._admits(mine):
                return mine
            num_repeated += 1

    def _admits(self, mine: Trial) -> bool:
        """Whether a trial has a place in the budget and is no repetition; else it is set aside."""
        earlier = [trial for trial in self._counted() if trial.number != mine.number]
        budget = self.search.spec.tune.trials
        if budget is not None and sum(trial.number < mine.number for trial in earlier) >= budget:
            why = "beyond the budget"  # a worker elsewhere drew the last one at the same moment
        elif _point(mine.drawn) in {_point(trial.drawn) for trial in earlier}:
            why = "drawn before"
        else:
            return True
        self.study.note(mine.number, uncounted=why, why=why)
        self.study.end(mine.number, "failed")
        return False

    def _counted(self) -> list[Trial]:
        return [trial for trial in self.study.trials() if trial.counts and trial.state != "waiting"]

    # ------------------------------------------------------------------------------------------------- one trial

    def _carry_out(self, trial: Trial) -> None:
        study, number = self.study, trial.number
        self.watch = watch = _Watch(self, trial)
        self.progress.began(trial, self.search, study)
        state, value, why = "failed", None, ""
        try:
            run = self._run(trial, watch)
            self._tell_curve(number, run, watch)
            state, value = "complete", self.search.objective.value(run)
        except TrialPruned as error:
            state, why = "pruned", error.headline.removeprefix("given up: ")
        except InterruptedRun:
            study.note(number, owner="", **watch.facts())
            self.progress.stopped(trial, watch.step, "the same command goes on")
            raise
        except FileError:  # the disk or the storage: no fault of the trial
            study.note(number, owner="", **watch.facts())
            raise
        except Exception as error:  # whatever it is, other values may do better
            if isinstance(error, StoppedError) and error.code == OUT_OF_TIME:
                study.note(number, owner="", **watch.facts())
                self.progress.stopped(trial, watch.step, "the time is spent; a larger tune.minutes goes on")
                return
            why = self._failure(trial, error)
        study.note(number, **watch.facts(), **({"why": why} if why else {}))
        study.end(number, state, value)  # type: ignore[arg-type]
        watch.clean_up(state)
        self.progress.ended(study.trial(number), study)
        _free_memory()
        self._stop_if_nothing_works(state)

    def _run(self, trial: Trial, watch: _Watch) -> Run:
        """The trial's recipe through the stages. Preparing is done by one worker at a time: no row is encoded twice."""
        search = self.search
        values = values_of(search.space, trial.drawn)
        recipe = with_values(search.base, {**values, **search.objective.settings})
        while True:
            try:
                with watch.tracked(), contextlib.ExitStack() as preparing:
                    preparing.enter_context(alone(search.prepare_lock, self._leave_if_asked))
                    outcome = execute(
                        recipe,
                        search.workspace,
                        until=search.objective.until,
                        allow_code=search.allowed_code,
                        listeners=[watch],
                        parent=search.base_run,
                        on_begin=watch.opened,
                        on_stage=lambda name, status: (
                            preparing.close() if name == "prepare" and status != "started" else None
                        ),
                    )
                if watch.run is None:  # everything was there already, so that nothing began
                    watch.reused(outcome.run)
                if outcome.run.stop_signal is not None:  # it came when nothing was left to stop
                    self.asked_to_stop = outcome.run.stop_signal
                return outcome.run
            except StoppedError as error:
                if error.code != IS_BUSY:
                    raise
            # The same recipe is being run by another command: its result will be ours as well.
            self.progress.say(f"trial {trial.number} waits: its run is being worked on by another command")
            self._pause(BUSY_POLL_S)

    def _tell_curve(self, number: int, run: Run, watch: _Watch) -> None:
        """The losses of a training that was there already, so that other trials are compared with it."""
        losses, num_steps = curve_of(run)
        for step, loss in losses:
            self.study.report(number, rungs.share_of(step, num_steps), loss)
        watch.num_steps = watch.num_steps or num_steps

    def _failure(self, trial: Trial, error: Exception) -> str:
        """Why, in one line; what only we can mend keeps its traceback in a file."""
        words = (str(error).strip().splitlines() or [""])[0][:200]
        if "memory" in words and not isinstance(error, TunesmithError):
            error = ModelError(
                "TUN-008",
                f"out of memory: {words}",
                where=f"trial {trial.number}",
                expected="a trial that fits",
                fix="train.micro_batch: 1, train.gradient_checkpointing: on, or a smaller model.base",
            )
        self.failed_in_a_row.append(error)
        if isinstance(error, TunesmithError):
            return f"{error.problems[0].code} {error.problems[0].what}"
        path = self.search.folder / f"trial-{trial.number}.error.txt"
        durable.write_text(path, "".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {words} (see {path.name})"

    def _stop_if_nothing_works(self, state: str) -> None:
        """Where every trial fails the fault is not in the values. Raises what they raised."""
        if state != "failed":
            self.failed_in_a_row.clear()
        if len(self.failed_in_a_row) < MAX_FAILED_AT_FIRST or self.study.best() is not None:
            return
        last = self.failed_in_a_row[-1]
        if not isinstance(last, TunesmithError):
            raise last
        told = [
            problem for error in self.failed_in_a_row if isinstance(error, TunesmithError) for problem in error.problems
        ]
        raise type(last)(
            "TUN-005",
            f"{MAX_FAILED_AT_FIRST} trials failed and none is complete",
            problems=list(dict.fromkeys(told)),
        )

    # ------------------------------------------------------------------------------------------- stops and life

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._leave_if_asked()
            time.sleep(0.1)

    def _leave_if_asked(self) -> None:
        if self.asked_to_stop is not None:
            raise InterruptedRun(
                self.asked_to_stop,
                f"stopped by {signal.Signals(self.asked_to_stop).name} between two trials",
                fix="run the same command again: the search goes on",
            )

    def _ask(self, signum: int) -> None:
        """Between trials a signal sets a flag; while one is at work the runner has its own handlers."""
        self.asked_to_stop = signum

    @contextlib.contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(SIGN_OF_LIFE_S):
                # A storage that does not answer now may do so next time; the trial's end tells if it does not.
                with contextlib.suppress(TunesmithError, OSError):
                    self.search.clock.save()
                    if self.watch is not None:
                        self.study.note(self.watch.number, alive=time.time(), **self.watch.facts())

        thread = threading.Thread(target=tell, name="signs-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.search.clock.save()


class _Watch:
    """Hears the events of one trial: tells the study its losses, and asks the run to stop when it is not worth going on."""

    def __init__(self, worker: Worker, trial: Trial) -> None:
        self.worker, self.number = worker, trial.number
        self.seconds_before = float(trial.get("seconds", 0.0))
        self.started = time.monotonic()
        self.step, self.num_steps = int(trial.get("steps", 0)), int(trial.get("num_steps", 0))
        self.run: Run | None = None
        self.sinks: tracking.Sinks | None = None
        self.is_own = trial.get("is_own")  # whether the training was begun by this search
        self.has_trained = False

    def opened(self, run: Run) -> None:
        """Before the first event of this attempt."""
        self.run = run
        if self.is_own is None:
            self.is_own = not any(event.stage == "train" for event in run.events())
        self.worker.study.note(self.number, run=run.id, is_own=self.is_own)
        names = tuple(name for name in run.recipe.track.to if name != "console")
        self.sinks = tracking.Sinks(names, run)
        run.listeners.append(self.sinks)

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """The command of one trial; at its end its trackers are told the rest."""
        end = "failed"
        try:
            yield
            end = "done"
        except (InterruptedRun, StoppedError):  # given up, out of time, asked to
            end = "stopped"
            raise
        finally:
            if self.sinks is not None:
                self.sinks.close(end)
                self.sinks = None

    def reused(self, run: Run) -> None:
        """A run that another command has finished: it is looked at and left as it is."""
        self.worker.study.note(self.number, run=run.id, is_own=False)

    def __call__(self, event: Event) -> None:
        if event.name == "train/steps":
            self.num_steps, self.has_trained = int(event.value), True
        elif event.name == "train/loss" and event.step:
            self.step = event.step
            self._stop_at_deadline()
        elif event.name == "validation/loss" and event.step:
            self._judge(event.step, event.value)

    def _judge(self, step: int, loss: float) -> None:
        worker, study = self.worker, self.worker.study
        loss = loss if math.isfinite(loss) else math.inf
        trials = study.report(self.number, rungs.share_of(step, self.num_steps), loss)
        worker.progress.validated(trials[self.number], step, self.num_steps, loss, self.seconds(), study)
        if worker.search.spec.tune.prune == "none" or self.run is None or self.run.stopping:
            return
        others = [trial.curve for trial in trials if trial.number != self.number]
        why = rungs.why_pruned(trials[self.number].curve, others)
        if why:
            self.run.stop_for(
                TrialPruned(
                    "TUN-006",
                    f"given up: {why}",
                    where=f"trial {self.number}",
                    fix="tune.prune: none lets every trial come to its end",
                )
            )

    def _stop_at_deadline(self) -> None:
        deadline = self.worker.deadline
        if deadline is not None and time.monotonic() >= deadline and self.run and not self.run.stopping:
            self.run.stop_for(
                StoppedError(
                    "TUN-007",
                    f"the time of the search is spent; trial {self.number} is saved at step {self.step}",
                    fix="a larger tune.minutes, and the same command goes on",
                )
            )

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def facts(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds(), 2),
            "steps": self.step,
            "num_steps": self.num_steps,
            "reused": not self.has_trained,
        }

    def clean_up(self, state: str) -> None:
        """Checkpoints of a trial that has ended are no use to anybody; where `keep: best` says so, nor are its weights."""
        run, search = self.run, self.worker.search
        if run is None or not self.is_own:
            return
        keys = [event.value for event in run.events() if event.name == "stage/started" and event.stage == "train"]
        if keys:
            durable.remove_folder(run.store.folder("Checkpoint", f"{keys[-1]}/step-00000000").parent)
        if search.spec.tune.keep == "best" and state == "complete":
            self._keep_the_best()

    def _keep_the_best(self) -> None:
        """Removes the weights of complete trials of this workspace that are not the best one."""
        study, search = self.worker.study, self.worker.search
        best = study.best()
        for trial in study.trials():
            is_ours = (
                trial.state == "complete" and trial.get("workspace") == search.workspace_id and trial.get("is_own")
            )
            if is_ours and best is not None and trial.number != best.number:
                run = Run.open(search.workspace / "runs" / trial.get("run"))
                for artifact in (run.outputs("train") or {}).values():
                    durable.remove_folder(artifact.path)


def _point(drawn: Drawn) -> str:
    return json.dumps(drawn, sort_keys=True)


def _free_memory() -> None:
    """Between two trials: the last one's weights sit in reference cycles, and on a GPU in the allocator's pool."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    if on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB > LARGE_PROCESS:
        gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()  # type: ignore[union-attr]
