"""Several processes, each with the whole model (DDP): gradients are summed once per step, at the accumulation boundary."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from tunesmith.stages.train.engines.local import LocalEngine


class ReplicaEngine(LocalEngine):
    """Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK). gloo on CPUs, nccl on GPUs.

    Losses are divided by the step's weight over all processes, so gradients are summed, not averaged: unequal label
    counts per process then weigh as they must.
    """

    def __init__(self, max_grad_norm: float | None, scale_loss: bool = False, timeout_s: float = 600.0) -> None:
        super().__init__(max_grad_norm, scale_loss)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def _share_start(self) -> None:
        for _, parameter in self.parameters:
            dist.broadcast(parameter.data, src=0)

    def _synchronise(self) -> None:
        """One all-reduce over all gradients laid end to end; a process without examples adds zeros."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in self.parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for (_, parameter), gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(gradient)
            start += gradient.numel()

    def total(self, value: float) -> float:
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)

    def close(self) -> None:
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
