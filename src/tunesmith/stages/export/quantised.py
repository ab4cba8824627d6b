"""How far the model that training saw, on a quantised base, is from what is exported, merged into the unquantised one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tunesmith.modeling.forward import collate, learned_logits
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring.generation import generate_greedy
from tunesmith.stages.export.proof import Asked
from tunesmith.text.tokenizers import Tokenizer

MAX_ROWS, MAX_ANSWERS = 64, 32


@torch.no_grad()
def logit_distance(exported: nn.Module, seen: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Over the learned tokens of held-out rows; training rows only where nothing else is left.

    Returns kl_per_token: mean of KL(exported || seen) in nats; top_token_share: tokens on which both favour the same one.
    """
    examples = [*dataset.split("test"), *dataset.split("validation"), *dataset.split("train")][:MAX_ROWS]
    device = next(exported.parameters()).device
    kl_sum, same, count = 0.0, 0, 0
    for example in examples:
        batch = collate(dataset, [example]).to(device)
        if len(batch.targets_K):
            ours_KV = learned_logits(exported, batch).log_softmax(-1)
            theirs_KV = learned_logits(seen, batch).log_softmax(-1)
            kl_sum += float((ours_KV.exp() * (ours_KV - theirs_KV)).sum())
            same += int((ours_KV.argmax(-1) == theirs_KV.argmax(-1)).sum())
            count += len(batch.targets_K)
    return {"tokens": count, "kl_per_token": kl_sum / max(1, count), "top_token_share": same / max(1, count)}


def answer_distance(
    seen: nn.Module, tokenizer: Tokenizer, asked: Sequence[Asked], max_new_tokens: int, check: Callable[[], None]
) -> dict[str, Any]:
    """How many greedy answers of the model that training saw are those that evaluation got from the exported weights."""
    asked = asked[:MAX_ANSWERS]
    items = [question.item for question in asked]
    made = generate_greedy(seen, tokenizer, items, max_new_tokens=max_new_tokens, batch_size=MAX_ANSWERS, on_step=check)
    equal = sum(answer.ids == question.ids for question, answer in zip(asked, made, strict=True))
    return {"answers": len(asked), "equal_answers": equal, "answer_share": equal / len(asked) if asked else None}
