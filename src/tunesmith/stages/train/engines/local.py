"""One process: accumulate, judge, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.modeling.load import DTYPES
from tunesmith.recipe.tree import Train
from tunesmith.stages.train.engines.loss_scale import LossScale
from tunesmith.stages.train.optimizer import (
    NamedParameters,
    expected_state,
    load_state_tensors,
    state_tensors,
    trainable,
)

LOSS_SCALE = "loss_scale"
MakeOptimizer = Callable[[NamedParameters], torch.optim.Optimizer]


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
    """Clipping, accumulation boundary, loss scale and, in the subclasses, gradient synchronisation live here.

    in_step: every process makes the same number of forward and backward passes, because weights are gathered in them.
    loads_on: the device a model is loaded on before `wrap`; None for the device of training.
    notes: what the user should know of how the engine was set up, told once. After `wrap`: parameters, the trainable
    ones by name; device, that of activations; autocast, the number format that the loop computes in, or None.
    """

    name = "local"
    rank = 0
    world_size = 1
    in_step = False
    loads_on: torch.device | None = None

    def __init__(self, max_grad_norm: float | None) -> None:
        self.max_grad_norm = max_grad_norm
        self.loss_scale: LossScale | None = None
        self.autocast: torch.dtype | None = None
        self.notes: list[str] = []

    def wrap(self, model: nn.Module, make: MakeOptimizer, *, precision: str = "fp32") -> nn.Module:
        """Take over a model whose parameters are final; the optimizer is made for them. precision: fp32, bf16 or fp16."""
        self.model = model
        self.parameters = trainable(model)
        self.device = next(model.parameters()).device
        self.optimizer = make(self.parameters)
        self._compute_in(precision)
        self._share_start()
        return model

    def _compute_in(self, precision: str) -> None:
        self.autocast = DTYPES[precision] if precision != "fp32" else None
        self.loss_scale = LossScale() if precision == "fp16" else None

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Add gradients. The loss is already divided by the step's total weight over all processes.

        is_last: no further micro-batch of this step follows.
        """
        (loss * self.loss_scale.value if self.loss_scale else loss).backward()

    def discard(self) -> None:
        """Throw away the gradients that `backward` has added: no weight and no average changes."""
        self.model.zero_grad(set_to_none=True)

    def reserve(self, train: Train) -> list[Tensor]:
        """Room on a GPU that the first update will take: what is held while it is tried what fits."""
        return self._room(expected_state(self.parameters, train))

    def _room(self, num_bytes: int) -> list[Tensor]:
        on_gpu = self.device.type == "cuda"
        return [torch.empty(num_bytes, dtype=torch.uint8, device=self.device)] if on_gpu else []

    def step(self, loss: Tensor, tokens: int = 0, stopping: bool = False) -> Verdict:
        """Update, unless something is not finite: the verdict falls before any weight or average changes.

        loss: the sum of this process's losses, on the device. Reading it together with the gradients' norm is the one
        moment of a step at which the host waits for the device.
        """
        loss_value, num_tokens, num_stopping, norm_value = self._synchronise_and_measure(loss, tokens, stopping)
        gradients = self._gradients()
        scale = self.loss_scale.value if self.loss_scale else 1.0
        norm_value /= scale
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        again = False
        if finite:
            self._update(gradients, norm_value, scale)
        elif self.loss_scale and math.isfinite(loss_value):  # a loss that is not finite is no fault of the scale
            again = self.loss_scale.note_overflow()
        self.discard()
        return Verdict(finite, again, loss_value, norm_value, int(num_tokens), num_stopping > 0)

    def _synchronise_and_measure(self, loss: Tensor, tokens: int, stopping: bool) -> list[float]:
        """Loss, tokens, stopping summed over all processes, and the norm of the whole gradients."""
        sums_3 = self._synchronise(loss, tokens, stopping)
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        return torch.cat([sums_3, norm.float().view(1)]).tolist()

    def _gradients(self) -> list[Tensor]:
        """What this process holds of the gradients."""
        return [p.grad for _, p in self.parameters if p.grad is not None]

    def _update(self, gradients: list[Tensor], norm: float, scale: float) -> None:
        clip = min(1.0, self.max_grad_norm / (norm + 1e-6)) if self.max_grad_norm is not None else 1.0
        if clip != 1.0 or scale != 1.0:
            torch._foreach_mul_(gradients, clip / scale)
        self.optimizer.step()
        if self.loss_scale:
            self.loss_scale.note_finite()

    # ------------------------------------------------------------------------------------------------------ state

    def whole_parameters(self) -> dict[str, Tensor]:
        """Trainable weights, whole and in fp32 where training keeps them so, by their full names, as CPU copies.

        Every process must ask. Where weights lie in shards, the first process gets them and the others get {}.
        """
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self.parameters}

    def gather_state(self) -> dict[str, Tensor]:
        """What an update depends on besides weights and gradients, by "<slot>.<full name>", as CPU tensors.

        Every process must ask. Where it lies in shards, the first process gets it and the others get {}.
        """
        state = state_tensors(self.optimizer, self.parameters)
        self._save_loss_scale(state)
        return state

    def load_state(self, weights: dict[str, Tensor], state: dict[str, Tensor] | None) -> None:
        """Put weights back and, unless None, the rest. Raises ModelError TRN-006 when the names are not the model's."""
        self._check_names(weights)
        with torch.no_grad():
            for name, parameter in self.parameters:
                parameter.copy_(weights[name])
        if state is not None:
            load_state_tensors(self.optimizer, self.parameters, state)
            self._load_loss_scale(state)

    def _check_names(self, weights: dict[str, Tensor]) -> None:
        names = {name for name, _ in self.parameters}
        if set(weights) != names:
            odd = sorted(names ^ set(weights))
            raise ModelError(
                "TRN-006",
                f"the checkpoint's weights are not those of this model: {', '.join(odd[:3])}",
                expected=f"its {len(names)} trainable weights by name",
                fix="install the versions of peft and transformers that wrote it, or remove the checkpoints to start again",
            )

    def _save_loss_scale(self, state: dict[str, Tensor]) -> None:
        if self.loss_scale:
            state[LOSS_SCALE] = torch.tensor(self.loss_scale.state(), dtype=torch.float64)

    def _load_loss_scale(self, state: dict[str, Tensor]) -> None:
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
