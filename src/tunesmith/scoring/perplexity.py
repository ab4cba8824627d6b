"""Perplexity: token-weighted, shifted once, streamed; the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.modeling.forward import collate, learned_nll
from tunesmith.runs.dataset import Dataset


@dataclass(frozen=True)
class Perplexity:
    """nll_sum: summed weighted loss in nats. weight: summed weights of learned tokens."""

    nll_sum: float
    weight: float

    @property
    def loss(self) -> float:
        return self.nll_sum / self.weight if self.weight else math.nan

    @property
    def value(self) -> float:
        return math.exp(min(self.loss, 700.0)) if self.weight else math.nan


@torch.no_grad()
def stream_perplexity(
    model: nn.Module,
    dataset: Dataset,
    examples: Sequence[int],
    *,
    batch_tokens: int = 8192,
    on_batch: Callable[[], None] | None = None,
) -> Perplexity:
    """Loss over the learned tokens of some examples. Sums are kept, logits never: memory does not grow with the set.

    batch_tokens: padded tokens per forward pass. on_batch: called after each, for progress or to stop by raising.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nll_sum, weight = 0.0, 0.0
    try:
        for group in _groups(dataset, examples, batch_tokens):
            batch = collate(dataset, group).to(device)
            if len(batch.targets_K):
                nll_sum += float((learned_nll(model, batch).double() * batch.weights_K).sum())
                weight += float(batch.weights_K.double().sum())
            if on_batch:
                on_batch()
    finally:
        model.train(was_training)
    return Perplexity(nll_sum, weight)


def _groups(dataset: Dataset, examples: Sequence[int], batch_tokens: int) -> list[list[int]]:
    lengths = dataset.lengths()
    order = sorted(map(int, examples), key=lambda example: (-int(lengths[example]), example))
    groups: list[list[int]] = []
    for example in order:
        if groups and (len(groups[-1]) + 1) * int(lengths[groups[-1][0]]) <= batch_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def total_weight(dataset: Dataset, examples: Sequence[int]) -> float:
    """Summed weight of the learned tokens of some examples."""
    return float(np.sum(dataset.learned_weights()[np.asarray(examples, np.int64)]))
