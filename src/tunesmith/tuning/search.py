"""The story of a search: what is asked, one preparation for all, workers until the budget is spent, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import errors, hub
from tunesmith.errors import DataError, InterruptedRun, Problem, StoppedError, TunesmithError, UsageError
from tunesmith.planner.ranges import parameters_of
from tunesmith.recipe import Recipe, with_values
from tunesmith.runner import execute, fingerprints, signals
from tunesmith.runner.stages import STAGES, load_stages
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.tuning import results
from tunesmith.tuning.claims import Clock, alone, workspace_id
from tunesmith.tuning.objective import Objective
from tunesmith.tuning.progress import Progress, num_ended
from tunesmith.tuning.results import Result
from tunesmith.tuning.space import Space, own_point, resolve, warnings
from tunesmith.tuning.study import Study
from tunesmith.tuning.worker import Worker

POLL_S = 0.2
STORAGE_VARIABLE = "TUNESMITH_STORAGE"  # a URL may hold a password, which is no part of a command line


def search(
    spec: Recipe,
    workspace: Path,
    *,
    workers: int = 1,
    storage: str | None = None,
    allow_code: frozenset[str] = frozenset(),
    say: Callable[[str], None] | None = None,
    out: Path | None = None,
) -> Result:
    """Tries the values of `tune.space` until the budget is spent; the same call goes on after any stop.

    workers: processes on this machine. storage: URL of a database that workers on other machines share; None: a file in
    the workspace. say: takes lines of progress. out: also write the best recipe there.
    Raises RecipeError, UsageError and DataError before anything runs; StoppedError TUN-009 when the time was too short for
    one trial; InterruptedRun after Ctrl-C. What was finished before is kept.
    """
    tell = say or (lambda line: None)
    found = Search(spec, Path(workspace).absolute(), allow_code, storage)
    for warning in warnings(spec, found.space, found.parameters):
        tell(f"warning: {warning}")
    found.check_workers(workers)
    found.prepare(tell)
    study = found.open_study()
    try:
        _begin(found, study, tell)
        deadline = found.deadline()
        if deadline is not None and deadline <= time.monotonic():
            tell(f"the time is spent (tune.minutes: {spec.tune.minutes:g}): nothing is begun")
        progress = Progress(workers, deadline, say)
        try:
            if workers == 1:
                Worker(found, study, progress, deadline).work()
            else:
                _Crew(found, workers, deadline, is_silent=say is None).work()
        finally:
            found.clock.save()
            result = found.write_results(study, out)
    finally:
        study.close()
    if result.best is None and not result.running:
        raise _nothing_complete(found, result)
    return result


@dataclass
class Search:
    """What is searched, where, and by which rules. Light: nothing is read or made before `prepare`."""

    spec: Recipe
    workspace: Path
    allowed_code: frozenset[str]
    storage: str | None
    id: str = ""  # name and hash of all that decides a trial's value; set by `prepare`
    base_run: Run | None = None  # of the recipe as it stands: it prepared the data

    def __post_init__(self) -> None:
        self.objective = Objective.of(self.spec)
        self.base = with_values(self.spec, {})  # without the search
        self.parameters = parameters_of(hub.resolve_config(self.spec.model.base, self.spec.model.revision).config)
        self.space: Space = resolve(self.spec, self.parameters, self.objective.until)

    @property
    def folder(self) -> Path:
        assert self.id, "before `prepare`"
        return self.workspace / "tune" / self.id

    @property
    def has_own_storage(self) -> bool:
        return self.storage is None

    @property
    def prepare_lock(self) -> Path:
        return self.workspace / "tune" / "prepare.lock"

    @cached_property
    def workspace_id(self) -> str:
        return workspace_id(self.folder)

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.folder / "time")

    def deadline(self) -> float | None:
        """Of time.monotonic(), by what is left of `tune.minutes`."""
        minutes = self.spec.tune.minutes
        return None if minutes is None else time.monotonic() + 60 * minutes - self.clock.seconds()

    def check_workers(self, workers: int) -> None:
        """Raises UsageError TUN-013 when they cannot all have a GPU."""
        gpus, each = _num_gpus(), self.spec.train.processes
        if workers < 1 or (gpus and workers * each > gpus):
            each_words = f" with {each} processes each" if each > 1 else ""
            raise UsageError(
                "TUN-013",
                f"--workers {workers}{each_words}, and this machine has {gpus or 'no'} GPUs",
                expected="at least 1, and a GPU for each process" if gpus else "at least 1",
                fix=f"--workers {max(1, gpus // each)}",
            )

    # ------------------------------------------------------------------------------------------------------ preparing

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Reads and encodes the rows once for all trials, and names the search by all that decides its outcome."""

        def note(stage: str, status: str) -> None:
            if status == "started":
                tell(f"{stage}: once for all trials")

        with alone(self.prepare_lock):
            outcome = execute(self.base, self.workspace, until="prepare", allow_code=self.allowed_code, on_stage=note)
        self.base_run = outcome.run
        dataset = (outcome.run.outputs("prepare") or {})["dataset"]
        if not len(Dataset(dataset.path).split("validation")):
            raise DataError(
                "TUN-014",
                "there are no validation rows, so no trial can be judged",
                where="data.split.validation",
                expected="validation rows",
                fix="data.split: {validation: 0.1}, or a source with `split: validation`",
            )
        self.id = f"{self.spec.name}-{self._fingerprint(dataset)[:8]}"
        durable.make_folders(self.folder)

    def _fingerprint(self, dataset: Artifact) -> str:
        """Equal wherever the same search meets the same rows, base model and version; not where the files lie."""
        assert self.base_run is not None
        train = load_stages(STAGES, "train")[-1]
        tune = self.spec.tune
        evaluate = self.spec.evaluate.model_dump(mode="json")
        evaluate["metrics"] = [Path(metric).name for metric in evaluate["metrics"]]
        return fingerprint(
            {
                "train": fingerprints.ingredients(
                    train, self.base_run.pinned_recipe, {"dataset": dataset}, self.base_run
                ),
                "evaluate": evaluate if self.objective.until == "evaluate" else None,
                "code": sorted(self.base_run.allowed_code.values()),
                "space": {key: str(dimension) for key, dimension in self.space.items()},
                "rules": [tune.metric, self.objective.direction, tune.prune, tune.sampler, tune.seed],
            }
        )

    # -------------------------------------------------------------------------------------------------- study, results

    def open_study(self) -> Study:
        url = self.storage or f"sqlite:///{self.folder / 'study.sqlite'}"
        return Study(url, self.id, self.space, self.objective, self.spec)

    def write_results(self, study: Study, out: Path | None = None) -> Result:
        """Table, page and best recipe as things stand; called after each trial, so that a long search can be looked at."""
        result = results.gather(self, study)
        results.write(result, self)
        if out is not None and result.best_recipe:
            durable.write_text(Path(out).absolute(), result.best_recipe)
        return result

    # ------------------------------------------------------------------------------------------- for another process

    def to_json(self) -> dict[str, Any]:
        """Without the storage's URL, which goes by the environment."""
        assert self.base_run is not None
        return {
            "recipe": self.spec.model_dump(mode="json"),
            "workspace": str(self.workspace),
            "allowed_code": sorted(self.allowed_code),
            "id": self.id,
            "base_run": self.base_run.id,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Search:
        workspace = Path(told["workspace"])
        return cls(
            Recipe.model_validate(told["recipe"]),
            workspace,
            frozenset(told["allowed_code"]),
            os.environ.get(STORAGE_VARIABLE),
            told["id"],
            Run.open(workspace / "runs" / told["base_run"]),
        )


def _begin(found: Search, study: Study, tell: Callable[[str], None]) -> None:
    """The recipe's own values come first, so that the best is never worse than what was there."""
    with alone(found.folder / "claim.lock"):
        trials = study.trials()
        point = own_point(found.base, found.space)
        if not trials and point is not None:
            study.suggest(point)
    if trials:
        tell(f"search {found.id} goes on: {num_ended(study)} trials have ended")
        return
    tell(f"search {found.id}: {found.objective.words}, {found.objective.direction}d over")
    for key, dimension in found.space.items():
        tell(f"  {key}: {dimension}")
    if point is None:
        tell("  the recipe's own values lie outside and are not tried")


def _nothing_complete(found: Search, result: Result) -> TunesmithError:
    reasons = [
        Problem("TUN-009", f"trial {trial['number']}", f"{trial['state']}: {trial['why'] or 'the time was spent'}")
        for trial in result.trials[:10]
    ]
    minutes = found.spec.tune.minutes
    fix = f"tune.minutes: {2 * minutes:g}" if minutes else "a wider tune.space, or more tune.trials"
    reasons.append(Problem("TUN-009", "tune", "no trial came to its end", "one complete trial", fix))
    return StoppedError("TUN-009", "no trial is complete", problems=reasons)


# --------------------------------------------------------------------------------------------------- several workers


def _num_gpus() -> int:
    from tunesmith.planner import hardware

    return len(hardware.detect().gpus)


def share_of_machine(worker: int, workers: int, processes: int, gpus: int) -> dict[str, str]:
    """Environment of one of several workers: GPUs of its own where there are some, else its share of the cores."""
    if gpus:
        own = range(worker * processes, (worker + 1) * processes)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, own))}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // workers))}


class _Crew:
    """Workers as processes: started, signals passed on, one that was killed replaced, the first error told."""

    def __init__(self, search: Search, workers: int, deadline: float | None, *, is_silent: bool) -> None:
        self.search, self.num, self.deadline, self.is_silent = search, workers, deadline, is_silent
        self.folder = search.folder / "workers"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.asked_to_stop: int | None = None

    def work(self) -> None:
        with signals.noted(self._ask):
            try:
                for worker in range(self.num):
                    self._start(worker)
                self._follow()
            finally:
                for process in self.processes.values():
                    process.kill()  # nothing is lost: what it has saved is taken up
                    process.wait()
                for path in self.folder.glob(f"{os.getpid()}-*.*"):
                    path.unlink()
        if self.asked_to_stop is not None:
            raise InterruptedRun(
                self.asked_to_stop,
                f"stopped by {signal.Signals(self.asked_to_stop).name}; the trials at work are saved",
                fix="run the same command again: the search goes on",
            )

    def _start(self, worker: int) -> None:
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        request = {
            "search": self.search.to_json(),
            "parent": os.getpid(),
            "workers": self.num,
            "seconds_left": left,
            "is_silent": self.is_silent,
        }
        path = self.folder / f"{os.getpid()}-{worker}.request"
        durable.write_json(path, request)
        path.with_suffix(".end").unlink(missing_ok=True)
        environment = {
            **os.environ,
            **share_of_machine(worker, self.num, self.search.spec.train.processes, _num_gpus()),
        }
        environment.pop(STORAGE_VARIABLE, None)
        if self.search.storage:
            environment[STORAGE_VARIABLE] = self.search.storage
        self.processes[worker] = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.tuning", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal reaches this process only, which passes it on
        )

    def _follow(self) -> None:
        """Until all have ended. A worker that something killed is replaced; the trial it had is taken up."""
        is_told = False
        error: TunesmithError | None = None
        saved = time.monotonic()
        while self.processes:
            time.sleep(POLL_S)
            if time.monotonic() - saved > 15:
                self.search.clock.save()
                saved = time.monotonic()
            for worker, process in list(self.processes.items()):
                status = process.poll()
                if status is None:
                    continue
                del self.processes[worker]
                if status < 0 and not is_told:
                    self._start(worker)
                elif status != 0:
                    error = error or self._error(worker, status)
            if (self.asked_to_stop is not None or error) and not is_told:
                is_told = True
                for process in self.processes.values():
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(self.asked_to_stop or signal.SIGTERM)
        if error and self.asked_to_stop is None:
            raise error

    def _error(self, worker: int, status: int) -> TunesmithError | None:
        """What a worker raised. Raises RuntimeError for a bug, whose traceback it has printed."""
        path = self.folder / f"{os.getpid()}-{worker}.end"
        if not path.exists():
            raise RuntimeError(f"worker {worker} left with status {status}; its traceback stands above")
        end = json.loads(path.read_bytes())
        told = end["error"]
        problems = [Problem(**problem) for problem in told["problems"]]
        if end["family"] == "InterruptedRun":
            return InterruptedRun(status - 128, told["what"], fix="run the same command again: the search goes on")
        return getattr(errors, end["family"])(told["error"], told["what"], problems=problems)

    def _ask(self, signum: int) -> None:
        self.asked_to_stop = signum
