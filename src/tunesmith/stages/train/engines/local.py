"""One process: accumulate, judge, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

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


class Verdict:
    """What a step came to, over all processes. It may still be on its way from the device: reading it waits for it.

    finite: loss and gradients were. fits: memory sufficed on every process. applied: the update was made; False where it
    was withheld, and then no weight and no average was touched. again: the loss scale was too high and is lower now, do
    the same step again. loss: sum of what went through `backward`. grad_norm: before clipping. tokens, stopping: as told
    to `step`, summed and or-ed.
    """

    def __init__(self, numbers_6: Tensor, *, again: bool = False) -> None:
        """numbers_6: loss, tokens, stopping, misfits, norm, withheld."""
        self.again = again
        self._host, self._copied = numbers_6, None
        if numbers_6.device.type == "cuda":
            self._host = torch.empty(numbers_6.shape, dtype=numbers_6.dtype, pin_memory=True)
            self._host.copy_(numbers_6, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @cached_property
    def _numbers(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()  # waits for this step, not for those that were queued behind it
        return self._host.tolist()

    @property
    def loss(self) -> float:
        return self._numbers[0]

    @property
    def tokens(self) -> int:
        return int(self._numbers[1])

    @property
    def stopping(self) -> bool:
        return self._numbers[2] > 0

    @property
    def fits(self) -> bool:
        return self._numbers[3] == 0

    @property
    def grad_norm(self) -> float:
        return self._numbers[4]

    @property
    def applied(self) -> bool:
        return self._numbers[5] == 0

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class LocalEngine:
    """Clipping, accumulation boundary, loss scale and, in the subclasses, gradient synchronisation live here.

    in_step: every process makes the same number of forward and backward passes, because weights are gathered in them.
    loads_on: the device a model is loaded on before `wrap`; None for the device of training.
    notes: what the user should know of how the engine was set up, told once. After `wrap`: parameters, the trainable
    ones by name; device, that of activations; autocast, the number format that the loop computes in, or None;
    reads_late, True where a step's verdict may be read after the next step was queued.
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
        self.reads_late = False

    def wrap(self, model: nn.Module, make: MakeOptimizer, *, precision: str = "fp32") -> nn.Module:
        """Take over a model whose parameters are final; the optimizer is made for them. precision: fp32, bf16 or fp16."""
        self.model = model
        self.parameters = trainable(model)
        self.device = next(model.parameters()).device
        self.optimizer = make(self.parameters)
        self._compute_in(precision)
        self._withhold_on(self.device)
        self._share_start()
        return model

    def _compute_in(self, precision: str) -> None:
        self.autocast = DTYPES[precision] if precision != "fp32" else None
        self.loss_scale = LossScale() if precision == "fp16" else None

    def _withhold_on(self, device: torch.device) -> None:
        """Where the optimizer's kernel takes a flag (AdamW's fused one does), the update is withheld on the device and the
        host need not wait for the verdict. A loss scale that was too high asks for the same step at once."""
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        self.judges_on_device = fused and self.loss_scale is None
        self.reads_late = self.judges_on_device and device.type == "cuda"  # on a CPU there is nothing to wait for
        self._withheld = torch.zeros((), device=device)

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

    def step(self, loss: Tensor, tokens: int = 0, stopping: bool = False, fits: bool = True) -> Verdict:
        """Update, unless something is not finite or did not fit: no weight and no average changes then.

        loss: the sum of this process's losses, on the device. fits: False where memory ran out on the way to it.
        Where the verdict is read late, steps that follow a withheld one are withheld as well, until `release`.
        """
        numbers_5 = self._synchronise_and_measure(loss, tokens, stopping, fits)
        numbers_5[4] /= self.loss_scale.value if self.loss_scale else 1.0
        is_good = torch.isfinite(numbers_5[0]) & torch.isfinite(numbers_5[4]) & (numbers_5[3] == 0)
        self._withheld = torch.maximum((~is_good).float(), self._withheld)
        verdict = Verdict(torch.cat([numbers_5, self._withheld.double().view(1)]))
        if self.judges_on_device:
            self._clip(numbers_5[4])
            self.optimizer.found_inf = self._withheld
            self.optimizer.step()
        elif verdict.applied:
            self._clip(numbers_5[4])
            self.optimizer.step()
            if self.loss_scale:
                self.loss_scale.note_finite()
        elif self.loss_scale and verdict.fits and math.isfinite(verdict.loss):
            verdict.again = self.loss_scale.note_overflow()  # a loss that is not finite is no fault of the scale
        self.discard()
        if not self.reads_late:
            self.release()
        return verdict

    def release(self) -> None:
        """After a withheld step was heard of: the next one counts again."""
        self._withheld = torch.zeros_like(self._withheld)

    def _synchronise_and_measure(self, loss: Tensor, tokens: int, stopping: bool, fits: bool) -> Tensor:
        """Loss, tokens, stopping, misfits summed over all processes, and the norm of the whole gradients: float64 [5]."""
        sums_4 = self._synchronise(loss, tokens, stopping, fits)
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        return torch.cat([sums_4, norm.float().view(1)]).double()

    def _gradients(self) -> list[Tensor]:
        """What this process holds of the gradients."""
        return [p.grad for _, p in self.parameters if p.grad is not None]

    def finite_gradients(self) -> bool:
        """Of what `backward` has added in this process, read at once."""
        return all(bool(torch.isfinite(gradient).all()) for gradient in self._gradients())

    def _clip(self, norm: Tensor) -> None:
        """Divides by the loss scale as well. norm: float64 [], of gradients without it."""
        factor = torch.ones_like(norm)
        if self.max_grad_norm is not None:
            factor = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        elif self.loss_scale is None:
            return
        factor = factor / (self.loss_scale.value if self.loss_scale else 1.0)
        gradients = self._gradients()
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0]))

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

    def _synchronise(self, loss: Tensor, tokens: int, stopping: bool, fits: bool) -> Tensor:
        """Makes gradients whole. Returns loss, tokens, stopping and misfits summed over all processes: float32 [4]."""
        told = (loss.new_full((), float(number)) for number in (tokens, stopping, not fits))  # no copy from the host
        return torch.stack([loss.detach().float(), *(number.float() for number in told)])

    def _share_start(self) -> None:
        """One process starts from its own weights."""
