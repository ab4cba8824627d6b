"""The step: examples -> micro-batches -> loss -> gradients -> update. To be read in one sitting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import collate, learned_logits
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order, micro_batches, share
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.objectives import sft_loss
from tunesmith.stages.train.schedule import rate_factor


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the step's learned tokens. rows: dataset indices of all its examples, over all processes."""

    step: int
    loss: float
    grad_norm: float
    finite: bool
    rate: float
    tokens: int
    seconds: float
    examples: list[int]


class Loop:
    """One optimizer step at a time.

    budget_tokens: padded tokens per micro-batch. autocast: number format of the forward pass, None for none.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        order: Order,
        model: nn.Module,
        engine: LocalEngine,
        context: StepContext,
        budget_tokens: int,
        autocast: torch.dtype | None,
    ) -> None:
        self.recipe, self.dataset, self.order = recipe, dataset, order
        self.model, self.engine, self.context = model, engine, context
        self.budget_tokens, self.autocast = budget_tokens, autocast
        self.device = next(model.parameters()).device
        self.lengths = dataset.lengths()
        self.learned_weights = dataset.learned_weights()

    def steps(self, first: int) -> Iterator[StepResult]:
        """Steps `first` to the last; between two of them everything may be saved."""
        for number in range(first, self.order.num_steps + 1):
            yield self.step(number)

    def step(self, number: int) -> StepResult:
        started = time.perf_counter()
        examples = self.order.step(number)
        # Known before anything runs, and the same on every process: no example count has to travel.
        total_weight = float(self.learned_weights[examples].sum())
        rate = self.recipe.train.learning_rate * rate_factor(self.recipe.train.schedule, number, self.order.num_steps)
        self.engine.set_rate(rate)

        mine = share(examples, self.lengths, self.engine.rank, self.engine.world_size)
        losses, tokens = [], 0
        for group in micro_batches(mine, self.lengths, self.budget_tokens):
            batch = collate(self.dataset, group).to(self.device)
            self.context.set(number, batch.examples_B)
            with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
                logits_KV = learned_logits(self.model, batch)
            loss = sft_loss(logits_KV, batch.targets_K, batch.weights_K) / total_weight
            self.engine.backward(loss)
            losses.append(loss.detach())
            tokens += batch.num_tokens

        norm, finite = self.engine.step()
        # The one host synchronisation of a step: all its scalars at once.
        loss_sum = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        loss_value, norm_value, finite_value = torch.stack([loss_sum.float(), norm.float(), finite.float()]).tolist()
        loss_value = self.engine.total(loss_value)
        return StepResult(
            number, loss_value, norm_value, bool(finite_value), rate, tokens, time.perf_counter() - started, examples
        )
