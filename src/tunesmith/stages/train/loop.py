"""The step: examples -> micro-batches -> loss -> gradients -> update. To be read in one sitting."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import Batch, collate, micro_batches
from tunesmith.modeling.packing import Layout
from tunesmith.recipe.tree import Train
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order, num_rounds, share
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.noise import GradientNoise, estimate
from tunesmith.stages.train.objectives import sft_loss
from tunesmith.stages.train.schedule import PlateauState, rate_factor


@dataclass(frozen=True)
class StepResult:
    """What a step came to, over all processes.

    loss: mean over the step's learned tokens. grad_norm: before clipping. finite: False when the update was withheld.
    tokens: without padding. examples: dataset indices. stopping: some process was asked to stop. noise: (tr(Sigma), |G|^2)
    per example, where it is measured and the step had two micro-batches.
    """

    number: int
    loss: float
    grad_norm: float
    finite: bool
    rate: float
    tokens: int
    seconds: float
    examples: list[int]
    stopping: bool
    noise: tuple[float, float] | None = None


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
        self.shortest = int(order.examples[np.argmin(self.lengths[order.examples])])
        self.plateau = PlateauState()  # of the rate; changed between steps
        self.noise = GradientNoise([p for _, p in engine.parameters]) if train.gradient_noise == "on" else None

    def step(self, number: int) -> StepResult:
        """Step `number`, from 1 to order.num_steps."""
        started = time.perf_counter()
        examples = self.order.step(number)
        # Known before anything runs and the same on every process, so no count has to travel.
        total_weight = float(self.learned_weights[examples].sum())
        rate = self.train.learning_rate * rate_factor(self.train.schedule, number, self.order.num_steps, self.plateau)
        self.engine.set_rate(rate)

        mine = share(examples, self.lengths, self.engine.rank, self.engine.world_size)
        groups = micro_batches(mine, self.lengths, self.budget_tokens, self.layout)
        if self.engine.in_step:
            world_size = self.engine.world_size
            rounds = num_rounds(examples, self.lengths, self.budget_tokens, self.layout, world_size)
            groups += [[]] * (rounds - len(groups))
        while True:  # again only where a loss scale was too high
            loss, tokens = self.accumulate(number, groups, total_weight)
            verdict = self.engine.step(loss, tokens, self.is_stopping())
            if not verdict.again:
                break
        return StepResult(
            number,
            verdict.loss,
            verdict.grad_norm,
            verdict.finite,
            rate,
            verdict.tokens,
            time.perf_counter() - started,
            examples,
            verdict.stopping,
            self._noise(verdict.grad_norm, total_weight, len(examples)),
        )

    def _noise(self, norm: float, weight: float, num_examples: int) -> tuple[float, float] | None:
        """Per example rather than per learned token: the unit of train.batch_size."""
        if self.noise is None:
            return None
        squares, parts = self.engine.total(*self.noise.found)
        found = estimate(squares, int(parts), norm, weight)
        return (found[0] * num_examples / weight, found[1]) if found else None

    def accumulate(self, number: int, groups: list[list[int]], total_weight: float) -> tuple[Tensor, int]:
        """Add the gradients of this process's micro-batches. Returns their summed loss, on the device, and tokens.

        An empty micro-batch only keeps in step with the other processes: a short row goes through and weighs nothing.
        """
        loss_sum, tokens = torch.zeros((), device=self.device), 0
        if self.noise:
            self.noise.begin()
        for place, group in enumerate(groups, start=1):
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
