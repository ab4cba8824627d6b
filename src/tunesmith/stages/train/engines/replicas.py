"""Several processes, each with the whole model (DDP): gradients are summed once per step, at the accumulation boundary."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.stages.train.engines.local import LocalEngine

TIMEOUT = timedelta(minutes=30)  # the first process alone writes checkpoints while the others wait


class ReplicaEngine(LocalEngine):
    """Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK). gloo on CPUs, nccl on GPUs.

    Losses are divided by the step's weight over all processes, so gradients are summed, not averaged: unequal label
    counts per process then weigh as they must.
    """

    def __init__(self, max_grad_norm: float | None) -> None:
        super().__init__(max_grad_norm)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def total(self, *values: float) -> list[float]:
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def close(self) -> None:
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()

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
