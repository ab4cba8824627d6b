"""Losses as pure functions of logits and targets. What divides them is decided once per step, by the loop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Shape suffixes: K learned positions, V vocabulary.


def sft_loss(logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor) -> Tensor:
    """Summed weighted cross-entropy in nats. The caller divides by the step's total weight, so that the loss of a step
    does not depend on how it was cut into micro-batches or over processes."""
    return (F.cross_entropy(logits_KV, targets_K, reduction="none") * weights_K).sum()
