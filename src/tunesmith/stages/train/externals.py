"""What training depends on besides the recipe and the Dataset. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import hub
from tunesmith.recipe import training_code
from tunesmith.recipe.tree import DeepSpeed
from tunesmith.runs import durable
from tunesmith.stages.train.engines.deepspeed_config import read_config

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of the base model's files, of own callbacks and metrics in the recipe's order, and of a DeepSpeed file."""
    found: dict[str, Any] = {
        "base": hub.resolve(spec.model.base, spec.model.revision).fingerprint,
        "code": [run.allowed_code.get(name) for name in training_code(spec)],
    }
    if isinstance(spec.train.engine, DeepSpeed) and spec.train.engine.config is not None:
        read_config(spec.train.engine)  # says what is wrong with a file that is not there
        found["deepspeed"] = durable.hash_file(Path(spec.train.engine.config))
    return found
