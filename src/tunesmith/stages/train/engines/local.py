"""One process: accumulate, judge, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.stages.train.engines.loss_scale import LossScale
from tunesmith.stages.train.optimizer import NamedParameters, load_state_tensors, state_tensors, trainable

LOSS_SCALE = "loss_scale"


@dataclass(frozen=True)
class Verdict:
    """What a step came to, over all processes.

    finite: False when loss or gradients were not; then no weight and no average was touched. again: the loss scale was
    too high and is lower now, do the same step again. loss: sum of what went through `backward`. grad_norm: before
    clipping. tokens, stopping: as told to `step`, summed and or-ed.
    """

    finite: bool
    again: bool
    loss: float
    grad_norm: float
    tokens: int
    stopping: bool


class LocalEngine:
    """Clipping, accumulation boundary, loss scale and, in the subclass, gradient synchronisation live here."""

    rank = 0
    world_size = 1

    def __init__(self, max_grad_norm: float | None) -> None:
        self.max_grad_norm = max_grad_norm
        self.loss_scale: LossScale | None = None

    def wrap(
        self, model: nn.Module, make: Callable[[NamedParameters], torch.optim.Optimizer], *, scale_loss: bool = False
    ) -> nn.Module:
        """Take over a model whose parameters are final; the optimizer is made for them. scale_loss: for fp16."""
        self.model = model
        self.parameters = trainable(model)
        self.optimizer = make(self.parameters)
        self.loss_scale = LossScale() if scale_loss else None
        self._share_start()
        return model

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor) -> None:
        """Add gradients. The loss is already divided by the step's total weight over all processes."""
        (loss * self.loss_scale.value if self.loss_scale else loss).backward()

    def step(self, loss: Tensor, tokens: int = 0, stopping: bool = False) -> Verdict:
        """Update, unless something is not finite: the verdict falls before any weight or average changes.

        loss: the sum of this process's losses, on the device. Reading it together with the gradients' norm is the one
        moment of a step at which the host waits for the device.
        """
        sums_3 = self._synchronise(loss, tokens, stopping)
        gradients = [p.grad for _, p in self.parameters if p.grad is not None]
        scale = self.loss_scale.value if self.loss_scale else 1.0
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        loss_value, num_tokens, num_stopping, norm_value = torch.cat([sums_3, norm.float().view(1)]).tolist()
        norm_value /= scale
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        again = False
        if finite:
            self._update(gradients, norm_value, scale)
        elif self.loss_scale and math.isfinite(loss_value):  # a loss that is not finite is no fault of the scale
            again = self.loss_scale.note_overflow()
        self.model.zero_grad(set_to_none=True)
        return Verdict(finite, again, loss_value, norm_value, int(num_tokens), num_stopping > 0)

    def _update(self, gradients: list[Tensor], norm: float, scale: float) -> None:
        clip = min(1.0, self.max_grad_norm / (norm + 1e-6)) if self.max_grad_norm is not None else 1.0
        if clip != 1.0 or scale != 1.0:
            torch._foreach_mul_(gradients, clip / scale)
        self.optimizer.step()
        if self.loss_scale:
            self.loss_scale.note_finite()

    # ------------------------------------------------------------------------------------------------------ state

    def whole_parameters(self) -> dict[str, Tensor]:
        """Trainable weights with full names, as CPU copies."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self.parameters}

    def gather_state(self) -> dict[str, Tensor]:
        """What an update depends on besides weights and gradients, as CPU tensors."""
        state = state_tensors(self.optimizer, self.parameters)
        if self.loss_scale:
            state[LOSS_SCALE] = torch.tensor(self.loss_scale.state(), dtype=torch.float64)
        return state

    def load_state(self, weights: dict[str, Tensor], state: dict[str, Tensor] | None) -> None:
        """Put weights back and, unless None, the rest. Raises ModelError TRN-006 when the names are not the model's."""
        names = {name for name, _ in self.parameters}
        if set(weights) != names:
            odd = sorted(names ^ set(weights))
            raise ModelError(
                "TRN-006",
                f"the checkpoint's weights are not those of this model: {', '.join(odd[:3])}",
                expected=f"its {len(names)} trainable weights by name",
                fix="install the versions of peft and transformers that wrote it, or remove the checkpoints to start again",
            )
        with torch.no_grad():
            for name, parameter in self.parameters:
                parameter.copy_(weights[name])
        if state is not None:
            load_state_tensors(self.optimizer, self.parameters, state)
            if self.loss_scale and LOSS_SCALE in state:
                self.loss_scale.load(state[LOSS_SCALE].tolist())

    # -------------------------------------------------------------------------------------------------- processes

    def total(self, *values: float) -> list[float]:
        """Numbers summed over all processes; every process must ask. Also a barrier."""
        return list(values)

    def close(self) -> None:
        """Nothing to leave in one process."""

    def _synchronise(self, loss: Tensor, tokens: int, stopping: bool) -> Tensor:
        """Makes gradients whole. Returns loss, tokens and stopping summed over all processes: float32 [3]."""
        return torch.stack([loss.detach().float(), loss.new_tensor(tokens), loss.new_tensor(stopping)])

    def _share_start(self) -> None:
        """One process starts from its own weights."""
