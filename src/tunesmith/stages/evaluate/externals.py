"""What evaluation depends on besides the recipe and its inputs. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import hub
from tunesmith.recipe.tree import NoQuantisation, Quantisation

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of the base model's files and of the files of own metrics; on what base a quantised training is judged."""
    found = {
        "base": hub.resolve(spec.model.base, spec.model.revision).fingerprint,
        "code": sorted(run.allowed_code[name] for name in spec.evaluate.metrics if name in run.allowed_code),
    }
    # Only then does a key of the export change what is judged.
    return found if spec.model.quantisation.type == "none" else {**found, "judged_on": judged_base(spec).type}


def judged_base(spec: Recipe) -> Quantisation:
    """How the base is held while it is asked: as what is exported will be (docs/decisions/qlora.md).

    A merged export has the unquantised base in it; an adapter that is exported alone goes on with the base it was trained on.
    """
    return NoQuantisation() if spec.export.merged else spec.model.quantisation
