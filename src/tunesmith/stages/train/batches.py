"""Which examples a step sees, and how they go through the model: pure functions of (seed, step)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunesmith.modeling.forward import longest_first, micro_batches
from tunesmith.modeling.packing import Layout
from tunesmith.recipe.tree import Train


@dataclass(frozen=True, eq=False)
class Order:
    """The order of the training examples: epoch after epoch, each in a permutation drawn from (seed, epoch).

    examples: int64 [N] dataset indices. Steps are numbered 1..num_steps; the last one may be smaller.
    """

    examples: np.ndarray
    seed: int
    batch_size: int
    num_steps: int
    num_draws: int

    @classmethod
    def of(cls, examples: np.ndarray, seed: int, train: Train) -> Order:
        num_draws = max(1, round(train.epochs * len(examples)))
        num_steps = math.ceil(num_draws / train.batch_size)
        if train.max_steps is not None and train.max_steps < num_steps:
            num_steps = train.max_steps
            num_draws = num_steps * train.batch_size
        return cls(np.asarray(examples, np.int64), seed, train.batch_size, num_steps, num_draws)

    def step(self, number: int) -> list[int]:
        """The examples of step `number` (from 1), the same for any number of processes and after any resume."""
        first = (number - 1) * self.batch_size
        end, size = min(first + self.batch_size, self.num_draws), len(self.examples)
        drawn: list[int] = []
        while first < end:
            epoch, place = divmod(first, size)
            chosen = _permutation(self.seed, epoch, size)[place : place + end - first]
            drawn += self.examples[chosen].tolist()
            first += len(chosen)
        return drawn


@lru_cache(maxsize=2)  # a step may straddle two epochs
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def share(examples: list[int], lengths: np.ndarray, rank: int, world_size: int) -> list[int]:
    """The part of a step's examples that one process takes: longest first, dealt back and forth, so that tokens balance."""
    order = longest_first(examples, lengths)
    return [example for place, example in enumerate(order) if _dealt(place, world_size) == rank]


def _dealt(place: int, world_size: int) -> int:
    turn, seat = divmod(place, world_size)
    return seat if turn % 2 == 0 else world_size - 1 - seat


def num_rounds(examples: list[int], lengths: np.ndarray, budget_tokens: int, layout: Layout, world_size: int) -> int:
    """The largest number of micro-batches that any of the processes makes of its share of some examples."""
    shares = (share(examples, lengths, rank, world_size) for rank in range(world_size))
    return max(len(micro_batches(mine, lengths, budget_tokens, layout)) for mine in shares)
