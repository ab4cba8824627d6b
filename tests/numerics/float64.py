"""The loop's arithmetic in float64, so that what rounding explains can be told from what it does not.

Rounding falls by 2**29 from float32 to float64; a wrong scale, a lost sum, a state that was read back as another does not fall.
"""

from __future__ import annotations

from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.modeling.forward import ROOT, Batch, _base_of


def in_float64(model: nn.Module) -> nn.Module:
    """The same weights in float64. Quantised ones stay as they are and are unpacked into it: to the numbers they stand for."""
    model = model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Nf4Linear":
            module.forward = MethodType(_nf4, module)
        elif kind == "Int8Linear":
            module.compute_dtype = torch.float64
        elif kind.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)
    return model


def loss_in_float64(model: nn.Module) -> partial[Tensor]:
    """`Loop.loss` of whole logits: the loop's own rounds to float32."""
    return partial(_loss, _base_of(model))


def _loss(base: nn.Module, batch: Batch, weights_K: Tensor) -> Tensor:
    root = base.__dict__.get(ROOT)
    logits_BTV = (root.call if root else base)(input_ids=batch.ids_BT, use_cache=False).logits
    assert logits_BTV.dtype == torch.float64
    logits_KV = logits_BTV.flatten(0, 1)[batch.places_K]
    return (F.cross_entropy(logits_KV, batch.targets_K, reduction="none") * weights_K).sum()


def _nf4(layer: nn.Module, x: Tensor) -> Tensor:
    import bitsandbytes as bnb

    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.quant_state)
    return F.linear(x, weight.to(x.dtype))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Llama's, which turns to float32 for itself."""
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
