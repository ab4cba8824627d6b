"""Several processes, each with the whole model (DDP): gradients are summed once per step, at the accumulation boundary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.stages.train.engines.processes import GroupEngine


class ReplicaEngine(GroupEngine):
    """Losses are divided by the step's weight over all processes, so gradients are summed, not averaged: unequal label
    counts per process then weigh as they must."""

    name = "ddp"

    def _share_start(self) -> None:
        for _, parameter in self.parameters:
            dist.broadcast(parameter.data, src=0)

    def _synchronise(self, loss: Tensor, tokens: int, stopping: bool) -> Tensor:
        """One all-reduce: all gradients laid end to end, the step's numbers behind them.

        A process without examples adds zeros. What one process finds not finite is so for all of them after the sum.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in self.parameters]
        sums_3 = super()._synchronise(loss, tokens, stopping)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), sums_3.to(gradients[0].dtype)])
        dist.all_reduce(flat)
        start = 0
        for (_, parameter), gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(gradient)
            start += gradient.numel()
        return flat[start:]
