"""Faults put into a small training: in a step, in a place, once or whenever that step is done."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.modeling.compile import decoder_layers
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.loop import Loop

KINDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "too large to square": 1e30}


@dataclass
class Fault:
    """place: "gradient", "last gradient", "loss", "told loss", "activation", "last activation". micro_batch: of the step,
    from 0. is_lasting: whenever the step is done; else the first time only."""

    place: str
    kind: str
    step: int
    micro_batch: int = 0
    is_lasting: bool = False

    @property
    def value(self) -> float:
        return KINDS[self.kind]


class Stage:
    """What a training is doing, and how often it has begun which step. One at a time."""

    def __init__(self) -> None:
        self.step, self.micro_batch = 0, -1
        self.begun: list[int] = []


@contextlib.contextmanager
def watched() -> Iterator[Stage]:
    """Within it the trainings of this process say where they are."""
    stage = Stage()
    begin, loss = Loop.begin, Loop.loss

    def noted_begin(self: Loop, number: int) -> Any:
        stage.step, stage.micro_batch = number, -1
        stage.begun.append(number)
        try:
            return begin(self, number)
        finally:
            stage.step = 0

    def noted_loss(self: Loop, *told: Any) -> Tensor:
        stage.micro_batch += 1
        return loss(self, *told)

    with replaced(Loop, "begin", noted_begin), replaced(Loop, "loss", noted_loss):
        yield stage


@contextlib.contextmanager
def spoiled(fault: Fault) -> Iterator[Stage]:
    """Within it trainings of this process meet the fault."""
    met: list[int] = []

    def is_here(stage: Stage) -> bool:
        here = stage.micro_batch == fault.micro_batch or fault.place == "told loss"  # that is the whole step's
        return stage.step == fault.step and here and (fault.is_lasting or not met)

    with watched() as stage, contextlib.ExitStack() as changes:
        if fault.place.endswith("gradient"):
            changes.enter_context(_in_a_gradient(fault, lambda: is_here(stage), met))
        elif fault.place.endswith("activation"):
            changes.enter_context(_in_an_activation(fault, lambda: is_here(stage), met))
        else:
            changes.enter_context(_in_the_loss(fault, lambda: is_here(stage), met))
        yield stage


@contextlib.contextmanager
def _in_a_gradient(fault: Fault, is_here: Callable[[], bool], met: list[int]) -> Iterator[None]:
    backward = LocalEngine.backward

    def spoil(self: LocalEngine, loss: Tensor, is_last: bool = True) -> None:
        backward(self, loss, is_last)
        if is_here():
            met.append(1)
            parameter = self.parameters[-1 if fault.place.startswith("last") else 0][1]
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = fault.value

    with replaced(LocalEngine, "backward", spoil):
        yield


@contextlib.contextmanager
def _in_an_activation(fault: Fault, is_here: Callable[[], bool], met: list[int]) -> Iterator[None]:
    wrap = LocalEngine.wrap

    def hooked(self: LocalEngine, model: nn.Module, *told: Any, **more: Any) -> nn.Module:
        made = wrap(self, model, *told, **more)
        base = getattr(model, "get_base_model", lambda: model)()
        layer = decoder_layers(base)[-1 if fault.place.startswith("last") else 0]

        def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not is_here() or not torch.is_grad_enabled():
                return output
            met.append(1)
            hidden = output[0] if isinstance(output, tuple) else output
            mark = torch.zeros_like(hidden)
            mark[0, 0, 0] = fault.value
            hidden = hidden + mark
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        layer.register_forward_hook(spoil)
        return made

    with replaced(LocalEngine, "wrap", hooked):
        yield


@contextlib.contextmanager
def _in_the_loss(fault: Fault, is_here: Callable[[], bool], met: list[int]) -> Iterator[None]:
    """The loss that gradients come from; or the told one only, while gradients are finite."""
    loss, accumulate = Loop.loss, Loop.accumulate

    def spoil(self: Loop, *told: Any) -> Tensor:
        made = loss(self, *told)
        if is_here() and fault.place == "loss":
            met.append(1)
            return made * fault.value
        return made

    def spoil_sum(self: Loop, *told: Any) -> tuple[Tensor, int]:
        made, tokens = accumulate(self, *told)
        if fault.place == "told loss" and is_here():
            met.append(1)
            return made * fault.value, tokens
        return made, tokens

    with replaced(Loop, "loss", spoil), replaced(Loop, "accumulate", spoil_sum):
        yield


@contextlib.contextmanager
def verdicts_read_late() -> Iterator[None]:
    """Within it a CPU's verdicts are read as those of a GPU: after the next step was begun."""
    withhold = LocalEngine._withhold_on

    def late(self: LocalEngine, device: torch.device) -> None:
        withhold(self, device)
        self.reads_late = self.judges_on_device

    with replaced(LocalEngine, "_withhold_on", late):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, before)


def bits(artifact: Any) -> bytes:
    """The weights of a result."""
    (path,) = artifact.path.glob("*model.safetensors")
    return path.read_bytes()


def state_of(checkpoint: Any) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_bytes())
