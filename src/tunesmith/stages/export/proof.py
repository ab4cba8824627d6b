"""The proof that what was exported is what was trained: logits row by row, greedy answers against evaluation's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.forward import collate, learned_logits
from tunesmith.runs.dataset import Dataset

# fp32: merging adds B*A*scale to the weight once instead of to each output. Measured once: 2.9e-5 on 64
# rows of the quickstart (2.6 M parameters). The limits are chosen with room, not measured; those below fp32 were never tried.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}
MAX_ROWS = 64


@torch.no_grad()
def compare(trained: nn.Module, exported: nn.Module, dataset: Dataset, precision: str, what: str) -> dict[str, Any]:
    """Largest difference of the logits at the learned positions of held-out rows; equal where every top token agrees.

    Raises ModelError EXP-003 naming the row when the difference is above the tolerance.
    """
    examples = [*dataset.split("test"), *dataset.split("validation"), *dataset.split("train")][:MAX_ROWS]
    device = next(exported.parameters()).device
    largest, equal, worst = 0.0, 0, None
    for example in examples:
        batch = collate(dataset, [example]).to(device)
        if not len(batch.targets_K):
            equal += 1
            continue
        ours, theirs = learned_logits(exported, batch), learned_logits(trained, batch)
        difference = float((ours - theirs).abs().max())
        equal += bool((ours.argmax(-1) == theirs.argmax(-1)).all())
        if difference > largest or difference != difference:
            largest, worst = difference, dataset.row(int(example))
    tolerance = TOLERANCE[precision]
    verdict = (
        "equal"
        if equal == len(examples) and largest <= tolerance
        else "within tolerance"
        if largest <= tolerance
        else "different"
    )
    parity = {
        "what": what,
        "n": len(examples),
        "equal": equal,
        "share": equal / len(examples),
        "max_abs_logit_difference": largest,
        "tolerance": tolerance,
        "rule": "logits at learned positions of held-out rows; equal: the same top token everywhere",
        "verdict": verdict,
        "worst_row": worst,
        "differences": [],
    }
    if verdict == "different" or largest != largest:
        raise ModelError(
            "EXP-003",
            f"{what}: logits differ by {largest:.3g} on row {worst}",
            expected=f"at most {tolerance:g} ({precision})",
            fix="nothing was exported; please report this with the base model's name",
        )
    return parity


def write(folder: Path, parity: dict[str, Any]) -> None:
    (folder / "parity.json").write_text(json.dumps(parity, indent=1))
