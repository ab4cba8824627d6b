"""`micro_batch: auto` proven on the real device: the longest rows go forward and back once before step 1."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.forward import collate, learned_logits
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.stages.train.objectives import sft_loss


def fitting_micro_batch(model: nn.Module, dataset: Dataset, examples: list[int], asked: int, run: Run) -> int:
    """The largest of asked, asked/2, ... that goes through; what was measured is recorded.

    Gradients of the probe are thrown away. Raises ModelError TRN-003 when a single longest row does not fit.
    """
    longest = sorted(examples, key=lambda example: (-int(dataset.lengths()[example]), example))
    device = next(model.parameters()).device
    micro_batch = max(1, min(asked, len(examples)))
    while True:
        try:
            started = time.perf_counter()
            batch = collate(dataset, longest[:micro_batch]).to(device)
            sft_loss(learned_logits(model, batch), batch.targets_K, batch.weights_K).backward()
            run.record("train", "probe/seconds", round(time.perf_counter() - started, 4), unit="s")
            run.record("train", "probe/micro_batch", micro_batch, unit="examples")
            return micro_batch
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if micro_batch == 1:
                tokens = int(np.max(dataset.lengths()[longest[:1]]))
                raise ModelError(
                    "TRN-003",
                    f"one row of {tokens} tokens does not fit into memory (row {dataset.row(longest[0])})",
                    where="data.max_tokens",
                    expected="a row that fits",
                    fix="train.gradient_checkpointing: on, a smaller data.max_tokens, or adapter: lora",
                ) from error
            micro_batch //= 2
        finally:
            model.zero_grad(set_to_none=True)


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)
    )
