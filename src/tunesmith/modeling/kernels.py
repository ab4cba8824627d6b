"""Liger's Triton kernels for norms, rotations and activations: the only door to liger_kernel.

They are put in by the library's own function for the model's type, into the model that trains. What that function
replaces in transformers' module besides, where models loaded later would find it, is put back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from tunesmith.errors import ModelError

# We make the loss ourselves, at the learned positions only (modeling/loss.py).
SETTINGS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def liger_model_types() -> frozenset[str]:
    """Model types that the installed liger_kernel has kernels for."""
    return frozenset(import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN)


def apply_liger(model: nn.Module) -> Callable[[], None]:
    """Puts the kernels into a model, before adapters. Returns what takes them out of transformers' module again.

    Rotations are looked up there in each forward pass, so that it is called when training is over.
    Raises ModelError MDL-109 for a model type that Liger has no kernels for.
    """
    kind = model.config.model_type
    if kind not in liger_model_types():
        raise ModelError(
            "MDL-109",
            f"Liger has no kernels for models of type {kind}",
            where="train.kernels",
            expected="one of its model types, such as llama, qwen3 or mistral",
            fix="train.kernels: auto",
        )
    place = sys.modules[type(model).__module__]
    before = dict(vars(place))
    import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(model=model, **SETTINGS)
    changed = {name: value for name, value in before.items() if vars(place).get(name) is not value}
    for name, value in changed.items():
        if isinstance(value, type):  # classes serve what is loaded from now on
            setattr(place, name, value)

    def restore() -> None:
        _put(place, changed)

    return restore


def _put(place: Any, names: dict[str, Any]) -> None:
    for name, value in names.items():
        setattr(place, name, value)
