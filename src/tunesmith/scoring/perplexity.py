"""Perplexity: token-weighted, shifted once, streamed; the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.modeling.forward import collate, input_device, learned_nll, micro_batches
from tunesmith.modeling.packing import Layout
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
    layout: Layout = "rows",
    on_batch: Callable[[], None] | None = None,
) -> Perplexity:
    """Loss over the learned tokens of some examples. Sums are kept, logits never: memory does not grow with the set.

    batch_tokens: tokens per forward pass, padding included. layout: packed only for a model that `choose_layout` packs. on_batch: called after each, for progress or to stop by raising.
    """
    was_training = model.training
    model.eval()
    device = input_device(model)
    nll_sum, weight = 0.0, 0.0
    try:
        for group in micro_batches(examples, dataset.lengths(), batch_tokens, layout):
            batch = collate(dataset, group, layout).to(device)
            if len(batch.targets_K):
                nll_sum += float((learned_nll(model, batch).double() * batch.weights_K).sum())
                weight += float(batch.weights_K.double().sum())
            if on_batch:
                on_batch()
    finally:
        model.train(was_training)
    return Perplexity(nll_sum, weight)


def total_weight(dataset: Dataset, examples: Sequence[int]) -> float:
    """Summed weight of the learned tokens of some examples."""
    return float(np.sum(dataset.learned_weights()[np.asarray(examples, np.int64)]))
