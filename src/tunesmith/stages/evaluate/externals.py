"""What evaluation depends on besides the recipe and its inputs. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import hub

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of the base model's files, and of the files of own metrics."""
    return {
        "base": hub.resolve(spec.model.base, spec.model.revision).fingerprint,
        "code": sorted(run.allowed_code[name] for name in spec.evaluate.metrics if name in run.allowed_code),
    }
