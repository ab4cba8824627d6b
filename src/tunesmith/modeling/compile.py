"""torch.compile by region: each decoder layer by itself, so that one compilation serves them all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface

from tunesmith.errors import ModelError
from tunesmith.modeling.packing import PACKED_SDPA, packed_attention


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that the model's class names as wholes, in order; none where it names none."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(model: nn.Module) -> int:
    """From now on each decoder layer runs compiled, for any number of rows and tokens. Returns how many layers there are.

    Nothing is compiled before the first pass. Raises ModelError MDL-110 for a model without known decoder layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ModelError(
            "MDL-110",
            f"{type(model).__name__} does not say which of its modules are decoder layers",
            where="train.compile",
            expected="a decoder that transformers can split by layers",
            fix="--set train.compile=off",
        )
    # The lengths of documents differ in each pass: what loops over them is called, not compiled into the layer.
    AttentionInterface.register(PACKED_SDPA, torch.compiler.disable(packed_attention))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which torch's compiler imports
        for layer in layers:
            layer.compile(dynamic=True)
    return len(layers)


def graphs_compiled() -> int:
    """By this process so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@contextmanager
def compiling() -> Iterator[None]:
    """For the passes in which layers are compiled: torch's warnings about its own modules are left out.

    Raises ModelError MDL-111 with the compiler's own words where it fails.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TorchDynamoException as error:
        raise ModelError(
            "MDL-111",
            f"torch.compile failed: {type(error).__name__}: {' '.join(str(error).split(chr(10))[:2])}",
            where="train.compile",
            expected="decoder layers that the installed torch can compile",
            fix="--set train.compile=off",
        ) from error


def eagerly() -> torch.compiler.set_stance:
    """Within it compiled layers run as they were written."""
    return torch.compiler.set_stance("force_eager")
