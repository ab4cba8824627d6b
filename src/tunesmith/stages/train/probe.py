"""`micro_batch: auto` proven on the real device: the longest rows go forward and back once before step 1."""

from __future__ import annotations

import gc
import time

import torch

from tunesmith.errors import ModelError
from tunesmith.runs.run import Run
from tunesmith.stages.train.batches import share
from tunesmith.stages.train.loop import Loop
from tunesmith.stages.train.memory import PeakMemory


def fitting_micro_batch(loop: Loop, examples: list[int], asked: int, run: Run) -> int:
    """The largest of asked, asked/2, ... that goes through on every process; what was measured is recorded.

    examples: all training examples. Gradients of the probe are thrown away, no weight changes.
    Raises ModelError TRN-003 when a single longest row does not fit.
    """
    longest = share(examples, loop.lengths, 0, 1)
    micro_batch = max(1, min(asked, len(examples)))
    while True:
        memory, started = PeakMemory(loop.device), time.perf_counter()
        fits = _goes_through(loop, longest[:micro_batch])
        seconds, peak = time.perf_counter() - started, memory.peak()
        (num_fitting,) = loop.engine.total(float(fits))
        if num_fitting == loop.engine.world_size:
            run.record("train", "probe/seconds", round(seconds, 4), unit="s")
            run.record("train", "probe/peak_memory", peak, unit="bytes")
            run.record("train", "probe/micro_batch", micro_batch, unit="examples")
            return micro_batch
        if micro_batch == 1:
            raise ModelError(
                "TRN-003",
                f"one row of {int(loop.lengths[longest[0]])} tokens does not fit into the memory of {loop.device}",
                where=f"row {loop.dataset.row(longest[0])}",
                expected="the longest training row, alone, to fit",
                fix="train.gradient_checkpointing: on, a smaller data.max_tokens, adapter: lora, or a smaller model.base",
            )
        run.record("train", "probe/out_of_memory", micro_batch, unit="examples")
        micro_batch //= 2


def _goes_through(loop: Loop, group: list[int]) -> bool:
    reserve, fits = [], False
    try:
        reserve = loop.engine.reserve(loop.train)
        loop.accumulate(1, [group], total_weight=1.0)
        if loop.device.type == "cuda":
            torch.cuda.synchronize(loop.device)
        fits = True
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if loop.engine.in_step:
            raise _cut_short(loop, len(group)) from error
    finally:
        del reserve
    loop.engine.discard()
    if loop.device.type == "cuda":
        gc.collect()  # the failed pass sits in reference cycles
        torch.cuda.empty_cache()
    return fits


def _cut_short(loop: Loop, micro_batch: int) -> ModelError:
    """A pass that ends in the middle leaves the other processes waiting for its part: there is no second try."""
    return ModelError(
        "TRN-023",
        f"{micro_batch} of the longest rows do not fit into the memory of {loop.device} with engine {loop.engine.name}",
        where="train.micro_batch",
        expected="a micro-batch that fits on every process",
        fix=f"--set train.micro_batch={max(1, micro_batch // 2)}"
        if micro_batch > 1
        else "train.gradient_checkpointing: on, a smaller data.max_tokens, more train.processes, or a smaller model.base",
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
