"""What export depends on besides the recipe and its inputs. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import hub

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of the base model's files."""
    return {"base": hub.resolve(spec.model.base, spec.model.revision).fingerprint}
