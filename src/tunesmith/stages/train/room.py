"""Memory that ran out while training: what is tried again in this process, what needs a fresh start, what is hopeless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.errors import ModelError, OutOfMemory
from tunesmith.modeling.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from tunesmith.stages.train.engines import LocalEngine


def out_of_step(number: int, engine: LocalEngine) -> OutOfMemory:
    """A pass that ends in the middle leaves the other processes waiting for its part: this process cannot try again."""
    return _fresh_start(f"in a pass of step {number} with engine {engine.name}, whose processes go through it together")


@contextmanager
def fresh_start_without_room(where: str) -> Iterator[None]:
    """Where memory runs out within, nothing of this process is a state to go on from: the last checkpoint is.

    In an update some weights have moved and others not; in a validation of weights in shards the others wait.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _fresh_start(where) from error
        raise


def _fresh_start(where: str) -> OutOfMemory:
    return OutOfMemory(
        "TRN-063",
        f"memory ran out {where}",
        where="train.micro_batch",
        expected="room for a step and its update on every process",
        fix="a smaller train.micro_batch, train.gradient_checkpointing: on, or an optimizer with a smaller state; "
        "run again, it goes on from the last checkpoint",
    )


def row_too_large(row: str, length: int, device: object) -> ModelError:
    """row: FILE:LINE, or its id."""
    return ModelError(
        "TRN-003",
        f"one row of {length} tokens does not fit into the memory of {device}",
        where=f"row {row}",
        expected="the longest training row, alone, to fit",
        fix="train.gradient_checkpointing: on, a smaller data.max_tokens, adapter: lora, or a smaller model.base",
    )


def longest_misfit(misfit: list[int], lengths: np.ndarray, engine: LocalEngine) -> int:
    """The longest example of the micro-batches that did not fit, on whichever process; every process must ask."""
    told = [0.0] * engine.world_size
    told[engine.rank] = 1.0 + max(misfit, key=lambda example: lengths[example]) if misfit else 0.0
    found = [int(number) - 1 for number in engine.total(*told) if number]
    return max(found, key=lambda example: lengths[example])
