"""Sampling settings that belong to a request, as processors of transformers' continuous batching.

# R requests with a new token in this step, V vocabulary. Settings travel as int32 rows (floats by their bits), the
# library's own way, so that they live on the device and a captured graph can read them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor


class RequestSetting(ContinuousBatchingLogitsProcessor):
    """One setting of a request: its name, type and neutral value; `change` applies it to the scores."""

    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, name: str, neutral: float | int | bool) -> None:
        self.name, self.neutral = name, neutral
        self.supported_kwargs = {name: type(neutral)}
        self.dtype = torch.float32 if isinstance(neutral, float) else torch.int32

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        row = torch.full_like(int32_tensor, self.neutral, dtype=self.dtype)
        int32_tensor.copy_(row.view(torch.int32))

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        values = [item.state.logit_processor_kwargs.get(self.name, self.neutral) for item in requests_with_new_token]
        return torch.tensor(values, dtype=self.dtype, device="cpu").view(torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        values_R = tensor_arg[: scores.size(0)].view(self.dtype)
        # On the CPU a look at the values is free and saves sorting the vocabulary; on a GPU it would wait for the device.
        if scores.device.type == "cpu" and bool((values_R == self.neutral).all()):
            return scores
        return self.change(scores, values_R)

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        raise NotImplementedError


class Greedy(RequestSetting):
    """Leaves the first of the highest scores and nothing else: argmax, ties included."""

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        best_R1 = scores_RV.argmax(dim=-1, keepdim=True)
        only_best_RV = torch.full_like(scores_RV, float("-inf")).scatter(-1, best_R1, 0.0)
        return torch.where(values_R.bool().unsqueeze(-1), only_best_RV, scores_RV)


class Temperature(RequestSetting):
    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        return scores_RV / values_R.unsqueeze(-1)


class TopK(RequestSetting):
    """Keeps the k highest scores; k at or above the vocabulary keeps all."""

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        last_R1 = values_R.clamp(1, scores_RV.size(-1)).long().unsqueeze(-1) - 1
        threshold_R1 = scores_RV.sort(dim=-1, descending=True).values.gather(-1, last_R1)
        return scores_RV.masked_fill(scores_RV < threshold_R1, float("-inf"))


class TopP(RequestSetting):
    """Keeps the smallest set of tokens whose probabilities reach p; at least one."""

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        sorted_RV, order_RV = scores_RV.sort(dim=-1, descending=False)
        dropped_RV = sorted_RV.softmax(dim=-1).cumsum(dim=-1) <= (1 - values_R).unsqueeze(-1)
        dropped_RV[..., -1] = False
        return scores_RV.masked_fill(dropped_RV.scatter(-1, order_RV, dropped_RV), float("-inf"))


class Seeded(RequestSetting):
    """Draws the token itself where a request has a seed: what is drawn follows from (seed, position, token) alone, so that
    it does not depend on who else is in the batch. Adding Gumbel noise and taking the highest is sampling from the softmax.
    """

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        keys = [
            self.neutral
            if (seed := item.state.logit_processor_kwargs.get(self.name, self.neutral)) == self.neutral
            else mix(seed, item.state.position_offset)
            for item in requests_with_new_token
        ]
        return torch.tensor(keys, dtype=torch.int32, device="cpu")

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        tokens_V = torch.arange(scores_RV.size(-1), device=scores_RV.device)
        noise_RV = gumbel(values_R.long().unsqueeze(-1) * 0x9E3779B1 + tokens_V)
        best_R1 = (scores_RV + noise_RV).argmax(dim=-1, keepdim=True)
        only_best_RV = torch.full_like(scores_RV, float("-inf")).scatter(-1, best_R1, 0.0)
        return torch.where((values_R != self.neutral).unsqueeze(-1), only_best_RV, scores_RV)


class Adapter(RequestSetting):
    """The adapter's number; leaves the scores alone. It travels here because what travels here stays with its request."""

    def change(self, scores_RV: Tensor, values_R: Tensor) -> Tensor:
        return scores_RV


def mix(seed: int, position: int) -> int:
    """31 bits that follow from both."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def gumbel(counter: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, that follows from whole numbers: lowbias32 (C. Wellons, 2018), then -log(-log(u))."""
    x = counter & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    u = ((x >> 9).float() + 0.5) / 2**23  # 23 bits and a half are exact in float32: never 0, never 1
    return -torch.log(-torch.log(u))


def request_processors(vocabulary: int) -> list[RequestSetting]:
    """In the order of `generate`: temperature, top_k, top_p, then the draw; greedy first, since it leaves nothing to the others."""
    return [
        Greedy("greedy", False),
        Temperature("temperature", 1.0),
        TopK("top_k", vocabulary),
        TopP("top_p", 1.0),
        Seeded("seed", -1),
        Adapter("adapter", -1),
    ]
