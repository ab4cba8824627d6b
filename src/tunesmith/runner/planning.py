"""When the plan is made: before anything is loaded, and again with the counts of the prepared data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import FileError, TunesmithError
from tunesmith.runner import fingerprints
from tunesmith.runner.stages import STAGES, load_stages
from tunesmith.runs import durable
from tunesmith.runs.run import Run
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
    check_disk(plan, run.workspace)


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


def check_disk(plan: Mapping[str, Any], workspace: Path) -> None:
    """Refuses to begin what can not end. Judged by the plan's lower bound, so that it never refuses what would fit."""
    figure = plan["figures"].get("disk")
    free = durable.free_bytes(workspace)
    if figure and free < figure["low"]:
        raise FileError(
            "RUN-023",
            f"the run needs {format_bytes(figure['value'])} on the disk of {workspace}, {format_bytes(free)} are free",
            expected=f"at least {format_bytes(figure['low'])}",
            fix="free some space, choose another disk with --workspace, or --set train.keep_checkpoints=1",
        )
