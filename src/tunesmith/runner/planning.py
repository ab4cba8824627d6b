"""When the plan is made: before anything is loaded, and again with the counts of the prepared data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import FileError, TunesmithError
from tunesmith.runner import fingerprints
from tunesmith.runner.stages import STAGES, load_stages
from tunesmith.runs import durable
from tunesmith.runs.events import read_lines
from tunesmith.runs.run import Run, folder_of
from tunesmith.runs.store import Artifact, Store
from tunesmith.units import format_bytes

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe


def plan_stage(stage: str, spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> None:
    """Writes plan.json before prepare and before train, and refuses what does not fit on the disk.

    A plan is not made anew after training: the report shows it beside what was measured.
    Raises what the planner refuses, FileError RUN-023 when the disk is too small.
    """
    if stage not in ("prepare", "train"):
        return
    statistics = None
    if "dataset" in inputs:
        from tunesmith.runs.dataset import Dataset

        statistics = Dataset(inputs["dataset"].path).statistics
    plan = make_plan(spec, statistics, run.workspace)
    run.write_plan(plan)
    if plan["unusual"]:
        _warn(plan, run)
    check_disk(plan, run.workspace, bytes_there(spec, run.workspace))


def _warn(plan: Mapping[str, Any], run: Run) -> None:
    """An event for each unusual value, once per command: prepare and train both make a plan."""
    told = {event.value for event in run.events() if event.name == "plan/unusual" and event.attempt == run.attempt}
    for item in plan["unusual"]:
        if item["text"] not in told:
            run.record("plan", "plan/unusual", item["text"])


def make_plan(spec: Recipe, statistics: dict[str, Any] | None, workspace: Path) -> dict[str, Any]:
    from tunesmith import hub, planner
    from tunesmith.planner import hardware

    config = hub.resolve_config(spec.model.base, spec.model.revision).config  # the weights may not be here yet
    made = planner.plan(spec, config, statistics=statistics, hardware=hardware.detect(), workspace=workspace)
    return made.to_json()


def prepared_statistics(spec: Recipe, workspace: Path) -> dict[str, Any] | None:
    """Of the Dataset that this recipe's rows became in this workspace; None where they were not prepared yet.

    What cannot be read is left for `check` to say: a plan is also asked for with rows that are not there.
    """
    found = prepared_dataset(spec, workspace)
    if found is None:
        return None
    from tunesmith.runs.dataset import Dataset

    return Dataset(found.path).statistics


def prepared_dataset(spec: Recipe, workspace: Path) -> Artifact | None:
    """The Dataset that this recipe's rows became in this workspace; None where they were not prepared yet."""
    if not (workspace / "artifacts" / "stages").is_dir():
        return None
    (stage,) = load_stages(STAGES, "prepare")
    try:
        key = fingerprints.stage_key(fingerprints.ingredients(stage, spec, {}, None))
    except TunesmithError:
        return None
    outputs = fingerprints.recall(Store(workspace / "artifacts"), key)
    return outputs["dataset"] if outputs else None


def bytes_there(spec: Recipe, workspace: Path) -> int:
    """What an earlier attempt of this recipe has written already of what its plan counts: checkpoints and result."""
    path = folder_of(workspace, spec)
    keys = {e.value for e in read_lines(path / "events.jsonl") if (e.stage, e.name) == ("train", "stage/started")}
    store = Store(workspace / "artifacts")
    folders = [store.folder(kind, key) for key in keys for kind in ("Checkpoint", "Adapter", "Model")]
    return sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def check_disk(plan: Mapping[str, Any], workspace: Path, there: int = 0) -> None:
    """Refuses to begin what can not end: a disk without room for what the plan counts, two checkpoints at the least.

    there: bytes of it that lie there already. Judged by the plan's lower bounds, so that it never refuses what would fit.
    """
    figures = plan["figures"]
    if "disk" not in figures:
        return
    two = 2 * figures.get("checkpoint", {"low": 0})["low"]
    least = max(figures["disk"]["low"], two) - there
    free = durable.free_bytes(workspace)
    if free < least:
        needed = max(figures["disk"]["value"] - there, least)
        raise FileError(
            "RUN-023",
            f"the run needs {format_bytes(needed)} on the disk of {workspace}, {format_bytes(free)} are free",
            expected=f"at least {format_bytes(least)}; a checkpoint is written while the one before it is kept",
            fix="free some space, choose another disk with --workspace, or --set train.keep_checkpoints=1",
        )
