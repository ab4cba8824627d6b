"""How much of the machine a step uses: model FLOPs per second beside what matrix multiplication reaches here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from tunesmith.errors import ModelError
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe

SIDE = {"cpu": 512, "cuda": 8192}  # of the square matrices that are multiplied; on a GPU large enough to fill it
REPEATS = 5


class Utilisation:
    """Model FLOPs utilisation (MFU) of a step: FLOPs that forward and backward need, over time and over the peak.

    Recomputed activations and gradients of frozen weights are not counted as work. peak_flops: per second, of all
    processes; None where the model's shape is not understood, and then there is no MFU.
    """

    def __init__(
        self,
        spec: Recipe,
        config: Mapping[str, Any],
        lengths: np.ndarray,
        learned_weights: np.ndarray,
        *,
        peak_flops: float,
    ) -> None:
        self.spec, self.lengths, self.learned_weights, self.peak_flops = spec, lengths, learned_weights, peak_flops
        self.shape = _dense_shape(config)

    def of(self, examples: Sequence[int], seconds: float) -> float | None:
        """Share of the peak, 0..1."""
        if self.shape is None:
            return None
        return self.flops(examples) / seconds / self.peak_flops

    def flops(self, examples: Sequence[int]) -> float:
        """Of one step, forward and backward: a weight costs 2 per token forward, 2 for the gradient of its inputs and, where
        it is trained, 2 for its own; attention is causal and costs by each row's length; the head works at learned positions."""
        assert self.shape is not None
        shape, adapter = self.shape, self.spec.adapter
        lengths = self.lengths[list(examples)].astype(np.float64)
        tokens = float(lengths.sum())
        learned = min(tokens, float(self.learned_weights[list(examples)].sum()))
        weights = shape.linear_parameters * tokens + shape.embedding_parameters * learned
        attention = 6 * shape.num_layers * shape.q_width * float((lengths**2).sum())
        if isinstance(adapter, Lora):
            return 4 * weights + 6 * shape.adapter_parameters(adapter) * tokens + attention
        return 6 * weights + attention


def _dense_shape(config: Mapping[str, Any]) -> Shape | None:
    """None for what the arithmetic does not know: odd architectures, and experts, of which a token sees a few only."""
    try:
        shape = Shape.of(config)
    except ModelError:
        return None
    return shape if shape.experts == 1 else None


@cache
def measured_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of multiplying two square matrices on this device now: the best of a few; a few milliseconds.

    threads: of this process; only there so that another number is measured anew.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    one, other = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(_seconds(one, other) for _ in range(REPEATS))
    if device.type == "cuda":
        del one, other
        torch.cuda.empty_cache()  # the peak of reserved memory is that of training
    return 2 * side**3 / best


def _seconds(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
    started = time.perf_counter()
    one @ other
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
    return time.perf_counter() - started
