"""What training depends on besides the recipe and the Dataset. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import hub
from tunesmith.recipe import training_code

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of the base model's files, and of the files of own callbacks and metrics, in the recipe's order."""
    return {
        "base": hub.resolve(spec.model.base, spec.model.revision).fingerprint,
        "code": [run.allowed_code.get(name) for name in training_code(spec)],
    }
