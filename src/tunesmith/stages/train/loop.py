"""The step: examples -> micro-batches -> loss -> gradients -> update. To be read in one sitting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import Batch, collate, micro_batches
from tunesmith.modeling.out_of_memory import is_out_of_memory, release_memory
from tunesmith.modeling.packing import Layout
from tunesmith.recipe.tree import Train
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order, num_rounds, share
from tunesmith.stages.train.engines import LocalEngine, Verdict
from tunesmith.stages.train.noise import GradientNoise, estimate
from tunesmith.stages.train.objectives import sft_loss
from tunesmith.stages.train.room import fresh_start_without_room, out_of_step
from tunesmith.stages.train.schedule import PlateauState, rate_factor


@dataclass(frozen=True)
class StepResult:
    """What a step came to, over all processes.

    loss: mean over the step's learned tokens. grad_norm: before clipping. finite: False when loss or gradients were not.
    fits: False when memory ran out on some process. applied: False when the update was withheld, for one of these or
    because the step before it was. misfit: the examples for which memory ran out in this process. tokens: without padding. examples: dataset indices. stopping: some process was asked
    to stop. noise: (tr(Sigma), |G|^2) per example, where it is measured and the step had two micro-batches.
    """

    number: int
    loss: float
    grad_norm: float
    finite: bool
    fits: bool
    applied: bool
    misfit: list[int]
    rate: float
    tokens: int
    seconds: float
    examples: list[int]
    stopping: bool
    noise: tuple[float, float] | None = None

    @classmethod
    def passed_over(cls, number: int, examples: list[int], tokens: int) -> StepResult:
        """Of a step that is known to give nothing finite and was not begun."""
        nan = math.nan
        return cls(number, nan, nan, False, True, False, [], nan, tokens, 0.0, examples, False)

    @property
    def was_begun(self) -> bool:
        return self.seconds > 0


@dataclass(frozen=True)
class StepInFlight:
    """A step that the device was given. What it came to is asked for by `Loop.result`, perhaps after the next one began."""

    number: int
    examples: list[int]
    rate: float
    started: float
    misfit: list[int]  # the micro-batch for which memory ran out in this process
    verdict: Verdict
    noise: tuple[float, int, float] | None  # squares and micro-batches as noise.estimate takes them, weight of the step


class Loop:
    """One optimizer step at a time; between two of them everything may be saved.

    budget_tokens: tokens per micro-batch, padding included. layout: packed end to end, or rows. is_stopping: asked once
    per step. What the engine asks for is done here: the number format of the forward pass, and as many passes on every
    process where weights lie in shards.
    """

    def __init__(
        self,
        train: Train,
        dataset: Dataset,
        order: Order,
        model: nn.Module,
        engine: LocalEngine,
        context: StepContext,
        *,
        budget_tokens: int,
        layout: Layout = "rows",
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.train, self.dataset, self.order = train, dataset, order
        self.model, self.engine, self.context = model, engine, context
        self.budget_tokens, self.layout, self.is_stopping = budget_tokens, layout, is_stopping
        self.device = engine.device
        self.lengths = dataset.lengths()
        self.learned_weights = dataset.learned_weights()
        self.at: list[int] = []  # the micro-batch at work
        self.heard = 0.0  # when the last step's result came, as time.perf_counter
        self.shortest = int(order.examples[np.argmin(self.lengths[order.examples])])
        self.plateau = PlateauState()  # of the rate; changed between steps
        self.noise = GradientNoise([p for _, p in engine.parameters]) if train.gradient_noise == "on" else None

    def step(self, number: int) -> StepResult:
        """Step `number`, from 1 to order.num_steps, and what it came to."""
        return self.result(self.begin(number))

    def begin(self, number: int) -> StepInFlight:
        """Gives step `number` to the device and waits for nothing, where the engine reads verdicts late.

        Raises OutOfMemory where no second try in this process can be the same step.
        """
        started = time.perf_counter()
        examples = self.order.step(number)
        # Known before anything runs and the same on every process, so no count has to travel.
        total_weight = float(self.learned_weights[examples].sum())
        rate = self.train.learning_rate * rate_factor(self.train.schedule, number, self.order.num_steps, self.plateau)
        self.engine.set_rate(rate)
        groups = self.groups(examples)
        while True:  # again only where a loss scale was too high
            loss, tokens, misfit = self._accumulate_if_it_fits(number, groups, total_weight)
            with fresh_start_without_room(f"in the update of step {number}"):
                verdict = self.engine.step(loss, tokens, self.is_stopping(), fits=not misfit)
            if not verdict.again:
                break
        noise = (*self.engine.total(*self.noise.found), total_weight) if self.noise else None
        return StepInFlight(number, examples, rate, started, misfit, verdict, noise)

    def result(self, step: StepInFlight) -> StepResult:
        """Waits for the device. After an update that was withheld the next `begin` counts again."""
        verdict = step.verdict
        if not verdict.applied:
            self.engine.release()
        now = time.perf_counter()
        seconds, self.heard = now - max(step.started, self.heard), now
        return StepResult(
            step.number,
            verdict.loss,
            verdict.grad_norm,
            verdict.finite,
            verdict.fits,
            verdict.applied,
            step.misfit,
            step.rate,
            verdict.tokens,
            seconds,
            step.examples,
            verdict.stopping,
            _noise(step),
        )

    def groups(self, examples: list[int]) -> list[list[int]]:
        """This process's micro-batches of a step's examples; empty ones where it has to keep in step with the others."""
        engine = self.engine
        mine = share(examples, self.lengths, engine.rank, engine.world_size)
        groups = micro_batches(mine, self.lengths, self.budget_tokens, self.layout)
        if engine.in_step:
            rounds = num_rounds(examples, self.lengths, self.budget_tokens, self.layout, engine.world_size)
            groups += [[]] * (rounds - len(groups))
        return groups

    def _accumulate_if_it_fits(
        self, number: int, groups: list[list[int]], total_weight: float
    ) -> tuple[Tensor, int, list[int]]:
        """As `accumulate`, and the micro-batch for which memory ran out; what the failed try has added is thrown away."""
        try:
            return *self.accumulate(number, groups, total_weight), []
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.engine.in_step:
                raise out_of_step(number, self.engine) from error
        # Not within the handler: there the traceback would still hold what the pass has left.
        self.engine.discard()
        release_memory()
        return torch.zeros((), device=self.device), 0, self.at

    def accumulate(self, number: int, groups: list[list[int]], total_weight: float) -> tuple[Tensor, int]:
        """Add the gradients of this process's micro-batches. Returns their summed loss, on the device, and tokens.

        An empty micro-batch only keeps in step with the other processes: a short row goes through and weighs nothing.
        """
        loss_sum, tokens = torch.zeros((), device=self.device), 0
        if self.noise:
            self.noise.begin()
        for place, group in enumerate(groups, start=1):
            self.at = group
            batch = collate(self.dataset, group or [self.shortest], self.layout).to(self.device)
            self.context.set(number, batch.examples_E, batch.lengths)
            weights_K = batch.weights_K if group else torch.zeros_like(batch.weights_K)
            loss = self.loss(batch, weights_K) / total_weight
            self.engine.backward(loss, is_last=place == len(groups))
            if self.noise:
                scale = self.engine.loss_scale.value if self.engine.loss_scale else 1.0
                self.noise.take(float(self.learned_weights[group].sum()) / total_weight if group else 0.0, scale)
            loss_sum += loss.detach()
            tokens += batch.num_tokens if group else 0
        if self.noise:
            self.noise.put_back()
        return loss_sum, tokens

    def loss(self, batch: Batch, weights_K: Tensor) -> Tensor:
        """Summed over the learned positions, in nats."""
        with self.number_format():
            return sft_loss(self.model, batch, weights_K)

    def number_format(self) -> AbstractContextManager[object]:
        autocast = self.engine.autocast
        return torch.autocast(self.device.type, autocast) if autocast else nullcontext()


def _noise(step: StepInFlight) -> tuple[float, float] | None:
    """Per example rather than per learned token: the unit of train.batch_size."""
    if step.noise is None:
        return None
    squares, parts, weight = step.noise
    found = estimate(squares, int(parts), step.verdict.grad_norm, weight)
    return (found[0] * len(step.examples) / weight, found[1]) if found else None
