"""One process: accumulate, clip, update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tunesmith.stages.train.optimizer import NamedParameters, load_state_tensors, state_tensors, trainable


class LocalEngine:
    """Clipping, accumulation boundary, loss scale and, in the subclass, gradient synchronisation live here."""

    rank = 0
    world_size = 1

    def __init__(self, max_grad_norm: float | None, scale_loss: bool = False) -> None:
        self.max_grad_norm = max_grad_norm
        self.scaler = torch.amp.GradScaler("cuda", enabled=scale_loss)

    def wrap(self, model: nn.Module, make: Callable[[NamedParameters], torch.optim.Optimizer]) -> nn.Module:
        """Take over a model whose parameters are final; the optimizer is made for them."""
        self.model = model
        self.parameters = trainable(model)
        self.optimizer = make(self.parameters)
        self._share_start()
        return model

    def backward(self, loss: Tensor) -> None:
        """Add gradients. The loss is already divided by the step's total weight over all processes."""
        self.scaler.scale(loss).backward()

    def step(self) -> tuple[Tensor, Tensor]:
        """Update, unless a gradient is not finite. Returns (gradient norm before clipping, finite) as device tensors.

        The verdict falls before any weight or average changes.
        """
        self._synchronise()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for _, p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(norm)
        if finite:
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_([p for _, p in self.parameters], self.max_grad_norm, norm)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def whole_parameters(self) -> dict[str, Tensor]:
        """Trainable weights with full names, as CPU copies."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self.parameters}

    def gather_state(self) -> dict[str, Tensor]:
        return state_tensors(self.optimizer, self.parameters)

    def load_state(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor] | None) -> None:
        """Put weights (and the optimizer's state) back; names must be the model's own."""
        with torch.no_grad():
            for name, parameter in self.parameters:
                parameter.copy_(weights[name])
        if optimizer is not None:
            load_state_tensors(self.optimizer, self.parameters, optimizer)

    def total(self, value: float) -> float:
        """A number summed over all processes."""
        return value

    def close(self) -> None:
        """Nothing to leave in one process."""

    def _synchronise(self) -> None:
        """Gradients of one process are whole already."""

    def _share_start(self) -> None:
        """One process starts from its own weights."""
