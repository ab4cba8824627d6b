"""One of several processes: how they find each other, and what they add up."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.stages.train.engines.local import LocalEngine

TIMEOUT = timedelta(minutes=30)  # the first process alone writes checkpoints while the others wait


class GroupEngine(LocalEngine):
    """Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK), or a group of one. gloo on CPUs, nccl on GPUs."""

    def __init__(self, max_grad_norm: float | None) -> None:
        super().__init__(max_grad_norm)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            if "RANK" in os.environ:
                dist.init_process_group(backend, timeout=TIMEOUT)
            else:
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def total(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=group_device())
        dist.all_reduce(tensor)
        return tensor.tolist()

    def close(self) -> None:
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def _step_sums(self, loss: Tensor, tokens: int, stopping: bool, *more: Tensor) -> list[float]:
        """Loss, tokens, stopping and more, summed over all processes in one message: float64, read by the host."""
        told = [loss.detach(), loss.new_tensor(float(tokens)), loss.new_tensor(float(stopping)), *more]
        sums = torch.stack([value.double().to(group_device()) for value in told])
        dist.all_reduce(sums)
        return sums.tolist()


def group_device() -> torch.device:
    """Where tensors must lie that the processes send each other."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
