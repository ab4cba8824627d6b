"""`--continue RUN --allow KEY`: an existing Run goes on with a changed recipe, from its last checkpoint on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.errors import Problem, RecipeError
from tunesmith.recipe import difference
from tunesmith.runs.run import Run

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

CHECKPOINT = "Checkpoint"
# What a checkpoint's step number and tensors mean follows from these: with another value they would mean something else.
FIXED = {
    "name": "names the run",
    "seed": "decides which examples a step sees",
    "data": "decides which examples a step sees",
    "model": "decides which weights there are",
    "adapter": "decides which weights there are",
    "train.batch_size": "decides which examples a step sees",
    "train.optimizer.type": "decides what the optimizer's state is",
}


def take_up(run: Run, recipe: Recipe, allow: frozenset[str]) -> dict[str, list[Any]]:
    """From now on the Run is one of this recipe; call it with the Run's lock held. Returns the keys that changed.

    allow: keys, or sections, that may differ. Raises RecipeError RUN-040 that lists every difference that was not allowed,
    RUN-041 for one that no checkpoint could go on with.
    """
    changed = difference(run.recipe, recipe)
    fixed = {key: why for key in changed if (why := _why_fixed(key))}
    if fixed:
        key, why = next(iter(fixed.items()))
        raise RecipeError(
            "RUN-041",
            f"run {run.id} cannot go on with another {key}: it {why}",
            where=key,
            expected=f"{_told(changed[key][0])}, as this run has it, and not {_told(changed[key][1])}",
            fix="without --continue the changed recipe becomes a run of its own, which names this one as its parent",
        )
    refused = {key: values for key, values in changed.items() if not _is_below(key, allow)}
    if refused:
        problems = [
            Problem("RUN-040", key, f"is {_told(new)}; run {run.id} has {_told(old)}", fix=f"--allow {key}")
            for key, (old, new) in refused.items()
        ]
        raise RecipeError("RUN-040", f"the recipe is not that of run {run.id}", problems=problems)
    if changed:
        before = run.continued[-1]["checkpoint"] if run.continued else None
        run.go_on_with(recipe, changed, _last_checkpoint(run) or before if _touches_training(changed) else before)
    return changed


def _why_fixed(key: str) -> str | None:
    return next((why for fixed, why in FIXED.items() if _is_below(key, frozenset({fixed}))), None)


def _is_below(key: str, names: frozenset[str]) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in names)


def _touches_training(changed: dict[str, list[Any]]) -> bool:
    return any(key.startswith("train.") for key in changed)


def _last_checkpoint(run: Run) -> dict[str, Any] | None:
    """{"key", "step"} of the newest sound checkpoint of the training that the Run was at; None before the first."""
    keys = [e.value for e in run.events() if e.stage == "train" and e.name in ("stage/started", "stage/reused")]
    for key in keys[-1:]:
        for step in reversed(run.store.steps(CHECKPOINT, key)):
            if run.store.find(CHECKPOINT, f"{key}/step-{step:08d}", verify="hash") is not None:
                return {"key": key, "step": step}
    return None


def _told(value: Any) -> str:
    return "not there" if value is None else str(value)
