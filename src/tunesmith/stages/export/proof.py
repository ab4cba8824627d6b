"""The proof that what was exported is what was judged: logits row by row; and how far a quantised base was from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.forward import collate, learned_logits
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import hash_order, load_items
from tunesmith.text.tokenizers import Tokenizer

# fp32: merging adds B*A*scale to the weight once instead of to each output. Measured once: 2.9e-5 on 64
# rows of the quickstart (2.6 M parameters). The limits are chosen with room, not measured; those below fp32 were never tried.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}
MAX_ROWS, MAX_ANSWERS = 64, 32


@torch.no_grad()
def compare(trained: nn.Module, exported: nn.Module, dataset: Dataset, precision: str, what: str) -> dict[str, Any]:
    """Largest difference of the logits at the learned positions of held-out rows; equal where every top token agrees.

    Raises ModelError EXP-003 naming the row when the difference is above the tolerance.
    """
    examples = held_out(dataset)
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


def held_out(dataset: Dataset) -> list[int]:
    """The rows that proofs look at: test rows first, training rows only where nothing else is left."""
    return [*dataset.split("test"), *dataset.split("validation"), *dataset.split("train")][:MAX_ROWS]


@torch.no_grad()
def logit_distance(exported: nn.Module, seen: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """How far the model that training saw is from the exported one, over the learned tokens of held-out rows.

    Returns kl_per_token: mean of KL(exported || seen) in nats; top_token_share: tokens on which both favour the same one.
    """
    device = next(exported.parameters()).device
    kl_sum, same, count = 0.0, 0, 0
    for example in held_out(dataset):
        batch = collate(dataset, [example]).to(device)
        if len(batch.targets_K):
            ours_KV = learned_logits(exported, batch).log_softmax(-1)
            theirs_KV = learned_logits(seen, batch).log_softmax(-1)
            kl_sum += float((ours_KV.exp() * (ours_KV - theirs_KV)).sum())
            same += int((ours_KV.argmax(-1) == theirs_KV.argmax(-1)).sum())
            count += len(batch.targets_K)
    return {"tokens": count, "kl_per_token": kl_sum / max(1, count), "top_token_share": same / max(1, count)}


def answer_distance(
    seen: nn.Module,
    tokenizer: Tokenizer,
    dataset: Dataset,
    answers: Path,
    max_new_tokens: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """How many greedy answers of the model that training saw are those that evaluation got from the exported weights.

    answers: evaluation's answers.jsonl.
    """
    with answers.open(encoding="utf-8") as file:
        told = {(row["part"], row["row"]): list(row["tuned_ids"]) for row in map(json.loads, file)}
    items = sorted((item for item in load_items(dataset) if (item.part, item.row) in told), key=hash_order)
    items = items[:MAX_ANSWERS]
    made = generate_greedy(
        seen, tokenizer, items, max_new_tokens=max_new_tokens, batch_size=MAX_ANSWERS, on_progress=on_progress
    )
    equal = sum(answer.ids == told[item.part, item.row] for item, answer in zip(items, made, strict=True))
    return {"answers": len(items), "equal_answers": equal, "answer_share": equal / len(items) if items else None}


def write(folder: Path, parity: dict[str, Any]) -> None:
    (folder / "parity.json").write_text(json.dumps(parity, indent=1))
