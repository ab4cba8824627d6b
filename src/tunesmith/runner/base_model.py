"""The base model of a Run: pinned to one commit of the hub by the first attempt, so that a run that goes on a month later
goes on from the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith import hub
from tunesmith.runs.run import Run

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

FETCHED = "run/base_model_bytes"
MOVED = "run/base_model_moved"


def pin(run: Run) -> Recipe:
    """The recipe that stages get: model.revision is the commit this Run stays with. Fetches config.json at most.

    Raises ModelError MDL-0xx for a model that is not there or cannot be used, before any weight is fetched.
    """
    asked = run.recipe.model
    if run.base_model is None and hub.is_hub_name(asked.base):
        commit = hub.resolve_config(asked.base, asked.revision).commit
        assert commit is not None, "a model of the hub has a commit"
        run.pin_base_model(asked.base, asked.revision, commit)
    return run.pinned_recipe


def note_moved(run: Run) -> None:
    """An event when the branch has moved since the Run was pinned; asks the hub, and is silent where it cannot be asked."""
    pinned = run.base_model
    if pinned is None or run.attempt == 1 or pinned["revision"] == pinned["commit"]:
        return
    latest = hub.latest_commit(pinned["base"], pinned["revision"])
    if latest not in (None, pinned["commit"]):
        run.record("run", MOVED, {**pinned, "latest": latest})


def note_fetched(run: Run, done: int, total: int) -> None:
    """How far a download is; ends it when a stop was asked for."""
    run.record("run", FETCHED, {"done": done, "total": total}, unit="bytes")
    if run.stopping:
        run.leave("while the base model was fetched")
