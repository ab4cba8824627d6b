"""`doctor --numerics`: the recipe's own model and some of its rows, trained and asked both ways; what differs is named. Light.

All of it happens in a folder of its own that is removed at the end; prepared rows are taken from the workspace where they are.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import launch
from tunesmith.errors import InterruptedRun, TunesmithError
from tunesmith.recipe.load import with_values
from tunesmith.runner.execute import execute
from tunesmith.runner.planning import prepared_dataset
from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, Store, fingerprint

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

WORK = "tunesmith.stages.train.numerics"  # loaded by name: torch comes with it
SOURCE_ROWS = 200  # of each source, where rows have to be prepared first
PROCESSES = 2
FIXES = {
    "micro-batch": "--set train.micro_batch to one value and keep it; report the model's name: its loss depends on how rows are grouped",
    "recomputation": "--set train.gradient_checkpointing=off; report the model's name: its layers do not repeat themselves",
    "resume": "do not stop this training, or --set train.processes=1; report the model's name and the engine",
    "processes": "--set train.processes=1, or another train.engine; report the model's name and the engine",
}


def numerics(
    spec: Recipe,
    workspace: Path,
    *,
    on_check: Callable[[str], None] = lambda name: None,
    checks: Collection[str] | None = None,
) -> dict[str, Any]:
    """{"model", "rows", "tokens", "seconds", "holds", "checks": [Check as JSON]}.

    on_check: told what is compared now. checks: only these: micro-batch, recomputation, resume, processes, merge,
    evaluation batch, attention. Raises TunesmithError for what keeps the recipe from being prepared or trained at all.
    """
    started = time.monotonic()
    work = importlib.import_module(WORK)
    with tempfile.TemporaryDirectory(prefix="tunesmith-doctor-") as name:
        folder = Path(name)
        on_check("the rows")
        dataset = prepared_dataset(spec, workspace) or _prepared(spec, folder)
        small = work.some_rows(dataset.path, Store(folder / "artifacts"))
        found = [check.to_json() for check in _checks(spec, small, folder, work, on_check, checks)]
        rows = importlib.import_module("tunesmith.runs.dataset").Dataset(small.path)
        return {
            "model": spec.model.base,
            "rows": rows.num_examples,
            "tokens": rows.counts["tokens"],
            "seconds": round(time.monotonic() - started, 1),
            "holds": all(check["verdict"] != "fails" for check in found),
            "checks": found,
        }


def _prepared(spec: Recipe, folder: Path) -> Artifact:
    """The Dataset of a part of the rows; every source is read, and at most SOURCE_ROWS of each are kept."""
    limits = {
        f"data.sources.{place}.limit": min(source.limit or SOURCE_ROWS, SOURCE_ROWS)
        for place, source in enumerate(spec.data.sources)
    }
    outcome = execute(with_values(spec, limits), folder, until="prepare")
    outputs = outcome.run.outputs("prepare")
    assert outputs is not None
    return outputs["dataset"]


def _checks(
    spec: Recipe,
    small: Artifact,
    folder: Path,
    work: Any,
    on_check: Callable[[str], None],
    wanted: Collection[str] | None,
) -> Iterator[Any]:
    rows = importlib.import_module("tunesmith.runs.dataset").Dataset(small.path)
    count = len(rows.split("train"))
    trainings = _Trainings(spec, small, folder, work, count)
    is_wanted = (lambda name: True) if wanted is None else wanted.__contains__
    needed = ("micro-batch", "recomputation", "resume", "processes", "merge")
    reference = None
    if any(map(is_wanted, needed)):
        on_check("a short training")
        reference = trainings.train("reference")
    batch = trainings.batch
    for name, what, changes in (
        ("micro-batch", f"steps of {batch} rows in one pass, and row by row", {"micro_batch": 1}),
        ("recomputation", "activations kept, and computed again", {"gradient_checkpointing": "on"}),
        ("resume", f"a training, and one that was stopped after step {work.STOP_AFTER} and went on", {}),
        (
            "processes",
            f"one process, and {PROCESSES}",
            {"processes": PROCESSES, "engine": spec.train.engine.model_dump()},
        ),
    ):
        if not is_wanted(name):
            continue
        on_check(name)
        try:
            if name == "resume":
                other = trainings.train("resume", stop_after=work.STOP_AFTER)
            else:
                other = trainings.train(name, **changes)
        except TunesmithError as error:
            yield work.not_tried(name, what, error.headline)
            continue
        yield work.compared(name, what, reference, other, FIXES[name])
    if is_wanted("merge"):
        on_check("merge")
        yield _or_not_tried(work, "merge", lambda: work.merged_and_not(spec, reference.path))
    if is_wanted("evaluation batch"):
        on_check("evaluation batch")
        yield _or_not_tried(work, "evaluation batch", lambda: work.evaluated_in_batches(spec, rows))
    if is_wanted("attention"):
        on_check("attention")
        yield from work.attention_checks(spec, rows)


def _or_not_tried(work: Any, name: str, check: Callable[[], Any]) -> Any:
    try:
        return check()
    except TunesmithError as error:
        return work.not_tried(name, "", error.headline)


class _Trainings:
    """Short trainings of one set of rows, each in a Run of its own."""

    def __init__(self, spec: Recipe, small: Artifact, folder: Path, work: Any, rows: int) -> None:
        self.spec, self.small, self.folder, self.work, self.rows = spec, small, folder, work, rows
        self.batch: int = work.recipe_of(spec, "reference", rows).train.batch_size

    def train(self, name: str, *, stop_after: int | None = None, **changes: Any) -> Any:
        """By the train stage itself; of several processes by the launcher. stop_after: asked to stop there, then begun anew."""
        spec = self.work.recipe_of(self.spec, name, self.rows, **changes)
        if stop_after is not None:
            run = self._run(spec, name)
            run.listeners.append(lambda event: _stop(run, event, stop_after))
            with contextlib.suppress(InterruptedRun):
                self._outputs(spec, run)
        run = self._run(spec, name)
        return self.work.Trained.of(self._outputs(spec, run), run.events())

    def _run(self, spec: Recipe, name: str) -> Run:
        run = Run.open_or_create(self.folder, spec)
        run.stage_key = fingerprint({"doctor": name})
        return run

    def _outputs(self, spec: Recipe, run: Run) -> Mapping[str, Artifact]:
        inputs = {"dataset": self.small}
        if spec.train.processes > 1:
            return launch.train(spec, run, inputs, spec.train.processes)
        return importlib.import_module("tunesmith.stages.train.run").run(spec, inputs, run)


def _stop(run: Run, event: Event, step: int) -> None:
    if event.name == "train/loss" and event.step == step:
        run.stop(signal.SIGTERM)
