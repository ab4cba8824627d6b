"""The story of a run: which stages have to work, with what, and what is noted of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith import hub
from tunesmith.errors import GateError, InterruptedRun, StoppedError, TrialPruned, TunesmithError
from tunesmith.runner import base_model, environment, fingerprints, planning, signals
from tunesmith.runner.stages import STAGES, Stage, check_switches, load_stages
from tunesmith.runs.run import Listener, Run
from tunesmith.runs.store import Artifact

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

Status = Literal["started", "done", "reused", "held", "stopped", "pruned", "failed"]


@dataclass(frozen=True)
class StageOutcome:
    name: str
    status: Literal["done", "reused"]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    run: Run
    stages: list[StageOutcome]

    @property
    def did_nothing(self) -> bool:
        """True when everything was there already."""
        return all(stage.status == "reused" for stage in self.stages)


def execute(
    spec: Recipe,
    workspace: Path,
    *,
    until: str = "serve",
    allow_code: frozenset[str] = frozenset(),
    listeners: Sequence[Listener] = (),
    on_begin: Callable[[Run], None] | None = None,
    on_stage: Callable[[str, Status], None] | None = None,
    table: Mapping[str, str] = STAGES,
    parent: Run | None = None,
) -> Outcome:
    """Carries a recipe through its stages up to `until`; what exists already is reused.

    allow_code: Python code of the recipe that may run, as "file.py:function".
    listeners: get every event. on_begin: gets the Run before its first event, and never when there is nothing to do.
    on_stage: told (stage, "started", then how it ended: "done" | "reused" | "held" by the gate | "stopped" on purpose |
    "pruned" by a search | "failed").
    table: stage names in order, with their packages. parent: the Run that a new one names as its parent.
    Raises TunesmithError: of a stage, StoppedError when another process works on the Run, InterruptedRun after Ctrl-C,
    GateError when the gate holds. What was finished before is kept; the same command goes on from there.
    """
    stages = load_stages(table, until)
    check_switches(spec, stages)
    code = fingerprints.allowed(spec, allow_code)
    workspace = Path(workspace).absolute()
    run = Run.open_or_create(workspace, spec, parent)
    run.listeners.extend(listeners)
    tell = on_stage or (lambda name, status: None)
    attempt = _Attempt(run, on_begin)
    with run.lock(), signals.handled(run), hub.telling(attempt.note_fetched):
        run.allowed_code = code
        with _noted(attempt, stages[0].info.name, tell):
            spec = base_model.pin(run)
        pool: dict[str, Artifact] = {}
        outcomes = []
        for stage in stages:  # what is made already needs no machine that could make it
            if run.outputs(stage.info.name) is None:
                with _noted(attempt, stage.info.name, tell):
                    stage.check(spec)
        for stage in stages:
            with _noted(attempt, stage.info.name, tell):
                outcome, outputs = _carry_out(stage, spec, pool, attempt, tell)
            pool.update(outputs)
            outcomes.append(outcome)
            if run.stopping:
                run.leave(f"after {stage.info.name}")
        attempt.finish(until)
    return Outcome(run, outcomes)


class _Attempt:
    """The notes of one command. They begin with the first stage that changes something or fails: else nothing is written."""

    def __init__(self, run: Run, on_begin: Callable[[Run], None] | None) -> None:
        self.run, self.on_begin = run, on_begin
        self.has_begun = False

    def begin(self) -> None:
        if self.has_begun:
            return
        self.has_begun = True
        run = self.run
        if self.on_begin is not None:
            self.on_begin(run)
        told, now = run.environment, environment.describe(run.workspace)
        run.record("run", "run/started", now["command"])
        changed = environment.differences(told, now) if told else {}
        if changed:  # bit-identical results hold for the same threads, torch build and processor
            run.record("run", "environment/changed", changed)
        if now["file_system"]["is_network"]:
            run.record("run", "run/network_file_system", now["file_system"]["type"])
        run.write_environment({**now, "attempt": run.attempt})
        base_model.note_moved(run)

    def note_fetched(self, done: int, total: int) -> None:
        self.begin()
        base_model.note_fetched(self.run, done, total)

    def finish(self, until: str) -> None:
        if self.has_begun:
            self.run.record("run", "run/finished", until)
            self.run.flush_events()


def _carry_out(
    stage: Stage, spec: Recipe, pool: Mapping[str, Artifact], attempt: _Attempt, tell: Callable[[str, Status], None]
) -> tuple[StageOutcome, dict[str, Artifact]]:
    """One stage: takes up what its fingerprint has made before, or lets it work."""
    run, name = attempt.run, stage.info.name
    started = time.monotonic()
    missing = set(stage.info.needs) - set(pool)
    assert not missing, f"{name} needs {sorted(missing)}, which no stage made and no switch leaves out"
    inputs = {need: pool[need] for need in stage.info.needs}
    what = fingerprints.ingredients(stage, spec, inputs, run)
    run.stage_key = fingerprints.stage_key(what)
    outputs = fingerprints.recall(run.store, run.stage_key)
    if outputs is not None:
        if run.outputs(name) != outputs:
            attempt.begin()
            run.set_outputs(name, outputs)
            run.record(name, "stage/reused", run.stage_key)
        tell(name, "reused")
        return StageOutcome(name, "reused", time.monotonic() - started), outputs
    attempt.begin()
    tell(name, "started")
    planning.plan_stage(name, spec, inputs, run)
    run.record(name, "stage/started", run.stage_key)
    outputs = _work(stage, spec, inputs, run)
    seconds = time.monotonic() - started
    fingerprints.remember(run.store, run.stage_key, what, outputs, seconds)
    run.set_outputs(name, outputs)
    run.record(name, "stage/seconds", round(seconds, 3), unit="s")
    run.flush_events()
    tell(name, "done")
    return StageOutcome(name, "done", seconds), outputs


def _work(stage: Stage, spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    if stage.info.name == "train" and spec.train.processes > 1:
        from tunesmith import launch

        outputs = launch.train(spec, run, inputs, spec.train.processes, entry=f"{stage.package}.run")
    else:
        outputs = stage.run(spec, inputs, run)
    unknown = set(outputs) - set(stage.info.makes)
    assert not unknown, f"{stage.info.name} made {sorted(unknown)}, which its INFO does not promise"
    return outputs


@contextlib.contextmanager
def _noted(attempt: _Attempt, stage: str, tell: Callable[[str, Status], None]) -> Iterator[None]:
    """What ends a stage early is an event of the run, so that the report can say where and why."""
    try:
        yield
    except BaseException as error:
        ending = _ending(error)
        # The disk may be full: then the event is lost and the error still reaches the user.
        with contextlib.suppress(TunesmithError, OSError):
            attempt.begin()
            attempt.run.record(stage, f"stage/{ending}", _describe(error))
            attempt.run.flush_events()
        tell(stage, ending)
        raise


def _ending(error: BaseException) -> Literal["held", "pruned", "stopped", "failed"]:
    """In a word; what is no fault of anything is not called a failure."""
    if isinstance(error, GateError):
        return "held"
    if isinstance(error, TrialPruned):
        return "pruned"
    if isinstance(error, (InterruptedRun, KeyboardInterrupt, StoppedError)):
        return "stopped"
    return "failed"


def _describe(error: BaseException) -> dict[str, object]:
    if isinstance(error, TunesmithError):
        return error.to_json()
    return {"error": type(error).__name__, "what": str(error)[:2000], "exit_status": 70, "problems": []}
