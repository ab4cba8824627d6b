"""Cross-entropy through the output layer, a chunk of positions at a time: the logits of a micro-batch never exist at once.

A chunk's logits become its loss and, in their own place, its gradients; what stays is one gradient as large as the hidden
states and, where the output layer is trained, one as large as its weights. So memory does not grow with positions times
vocabulary, and a chunk's logits are read again while they are still near the processor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: K learned positions, C positions of a chunk, V vocabulary, D hidden.


def weighted_cross_entropy(logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor) -> Tensor:
    """Summed weighted cross-entropy in nats of logits that are there already."""
    return (F.cross_entropy(logits_KV, targets_K, reduction="none") * weights_K).sum()


def chunked_cross_entropy(
    hidden_KD: Tensor, head: nn.Linear, targets_K: Tensor, weights_K: Tensor, chunk: int
) -> Tensor:
    """The same of `head(hidden_KD)`: a float32 scalar, to go backward through once.

    chunk: positions whose logits exist at once. Multiplied in the number format of autocast where there is one, else in
    that of the weights; everything else is fp32.
    """
    kind = hidden_KD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    return _Chunked.apply(hidden_KD, head.weight, head.bias, targets_K, weights_K, chunk, dtype)


class _Chunked(torch.autograd.Function):
    """Gradients are made in the forward pass, where the logits are; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        weights_K: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden_KD.device)
        of_hidden_KD = torch.empty_like(hidden_KD) if wants_hidden else None
        of_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        of_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        with torch.autocast(hidden_KD.device.type, enabled=False):
            low_VD, low_bias_V = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
            for start in range(0, len(targets_K), chunk):
                part = slice(start, start + chunk)
                hidden_CD, targets_C1 = hidden_KD[part].to(dtype), targets_K[part, None]
                weights_C1 = weights_K[part, None]
                logits_CV = F.linear(hidden_CD, low_VD, low_bias_V)
                logits_CV = F.log_softmax(logits_CV, dim=1, dtype=torch.float32)
                total -= (logits_CV.gather(1, targets_C1) * weights_C1).sum()
                # d loss / d logits = weight * (softmax - one at the target); the weight is multiplied in where it is smaller.
                gradient_CV = logits_CV.exp_()
                gradient_CV.scatter_add_(1, targets_C1, gradient_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
                low_CV = gradient_CV.to(dtype)
                if of_hidden_KD is not None:
                    of_hidden_KD[part] = (low_CV @ low_VD) * weights_C1
                if of_weight_VD is not None:
                    weighted_CD = (hidden_CD * weights_C1).to(dtype)
                    if dtype == torch.float32:
                        of_weight_VD.addmm_(low_CV.t(), weighted_CD)
                    else:
                        of_weight_VD += low_CV.t() @ weighted_CD
                if of_bias_V is not None:
                    of_bias_V += (gradient_CV * weights_C1).sum(0)
        ctx.gradients = of_hidden_KD, of_weight_VD, of_bias_V
        ctx.formats = hidden_KD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a chunked loss goes backward once: its gradients are used up in place"
        scaled = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.formats, strict=True)
        ]
        return (*scaled, None, None, None, None)
