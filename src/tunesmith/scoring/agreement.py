"""Do two greedy answers to one prompt agree, and if not: was the model undecided at the first differing token?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn


def first_difference(one: Sequence[int], other: Sequence[int]) -> tuple[list[int], int | None, int | None]:
    """The common prefix of two answers (ids without the stop token) and the token after it in each; None is the end."""
    pairs = zip(one, other, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return list(one[:same]), one[same] if same < len(one) else None, other[same] if same < len(other) else None


@torch.inference_mode()
def distance_below_top(
    model: nn.Module, prefix: Sequence[int], tokens: Sequence[int | None], stop_ids: Collection[int]
) -> tuple[float, float]:
    """How far the farthest of some next tokens lies below the highest logit after `prefix`, and the largest |logit|.

    tokens: ids; None stands for the best of the stop tokens.
    """
    device = next(model.parameters()).device
    logits_V = model(input_ids=torch.tensor([list(prefix)], device=device), use_cache=False).logits[0, -1].float()
    found = [
        max(float(logits_V[stop]) for stop in stop_ids) if token is None else float(logits_V[token]) for token in tokens
    ]
    return float(logits_V.max()) - min(found), float(logits_V.abs().max())
