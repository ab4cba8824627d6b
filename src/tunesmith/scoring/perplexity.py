"""Perplexity: token-weighted, shifted once, streamed; the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.modeling.forward import Batch, collate, input_device, learned_nll, micro_batches
from tunesmith.modeling.packing import Layout
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring.fitting import in_fitting_groups

LOGITS_AT_ONCE = 2**28  # 1 GiB in fp32
MAX_BATCH_TOKENS = 8192


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


def stream_perplexity(
    model: nn.Module,
    dataset: Dataset,
    examples: Sequence[int],
    *,
    batch_tokens: int = MAX_BATCH_TOKENS,
    layout: Layout = "rows",
    on_batch: Callable[[], None] | None = None,
) -> Perplexity:
    """Loss over the learned tokens of some examples together; see `row_losses`."""
    nll_N, weight_N = row_losses(model, dataset, examples, batch_tokens=batch_tokens, layout=layout, on_batch=on_batch)
    return Perplexity(float(nll_N.sum()), float(weight_N.sum()))


@torch.no_grad()
def row_losses(
    model: nn.Module,
    dataset: Dataset,
    examples: Sequence[int],
    *,
    batch_tokens: int = MAX_BATCH_TOKENS,
    layout: Layout = "rows",
    on_batch: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each example: (summed weighted nats [N], summed weights of learned tokens [N]), float64, in their order.

    Two numbers per row are kept, logits never: memory does not grow with the set.
    examples: no one twice. batch_tokens: tokens per forward pass, padding included. layout: packed only for a model that
    `choose_layout` packs. on_batch: called after each pass, for progress or to stop by raising.
    Raises ModelError EVL-012 when one row alone does not fit on the device.
    """
    was_training = model.training
    model.eval()
    device = input_device(model)
    nll_N, weight_N = np.zeros(len(examples)), np.zeros(len(examples))
    places = {int(example): place for place, example in enumerate(examples)}

    def losses(group: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = collate(dataset, group, layout)
        rows_K, weights_K = rows_of(batch), batch.weights_K.numpy().astype(np.float64)
        nll_K = learned_nll(model, batch.to(device)).double().cpu().numpy() if len(rows_K) else np.zeros(0)
        # Summed here and not on the device: its scattered sums come in an order of their own each time.
        nll_B, weight_B = (np.bincount(rows_K, values, len(group)) for values in (nll_K * weights_K, weights_K))
        return nll_B, weight_B

    try:
        groups = micro_batches(examples, dataset.lengths(), batch_tokens, layout)
        for group, (nll_B, weight_B) in in_fitting_groups(groups, losses, "row"):
            found = [places[example] for example in group]
            nll_N[found], weight_N[found] = nll_B, weight_B
            if on_batch:
                on_batch()
    finally:
        model.train(was_training)
    return nll_N, weight_N


def rows_of(batch: Batch) -> np.ndarray:
    """Which of the batch's examples each learned position belongs to: int64 [K]."""
    if batch.lengths:
        starts_B = np.cumsum([0, *batch.lengths[:-1]])
    else:
        starts_B = np.arange(batch.ids_BT.shape[0]) * batch.ids_BT.shape[1]
    return np.searchsorted(starts_B, batch.places_K.numpy(), side="right") - 1


def batch_tokens_for(vocabulary: int) -> int:
    """Tokens per forward pass, so that logits of about 1 GiB are held at once."""
    return max(1, min(MAX_BATCH_TOKENS, LOGITS_AT_ONCE // vocabulary))
