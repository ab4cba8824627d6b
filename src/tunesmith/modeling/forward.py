"""Forward passes that compute logits only where something is learned.

Documents are packed end to end (modeling/packing.py) or lie in rows padded on the right. With causal attention a position
never sees what follows it, and padding is never learned, so no attention mask is needed and the fastest causal kernel serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from tunesmith.modeling.packing import Layout, packed_inputs
from tunesmith.planner.activations import loss_chunk
from tunesmith.runs.dataset import Dataset

# Shape suffixes: E examples, B rows, T tokens, K learned positions of all rows together, V vocabulary, D hidden.

ROOT = "_tunesmith_root"  # kept in the model's own dictionary: it is no part of the network


@dataclass(frozen=True)
class Batch:
    """examples_E: dataset indices. ids_BT: int64; a row per example, padded on the right with 0 (never learned, never
    seen), or one row of all examples when packed.

    places_K: flat positions b * T + t whose hidden state predicts targets_K, with weights_K (float32).
    num_tokens: real tokens, without padding. lengths: tokens of each packed example; None where each has its row.
    """

    examples_E: Tensor
    ids_BT: Tensor
    places_K: Tensor
    targets_K: Tensor
    weights_K: Tensor
    num_tokens: int
    lengths: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = (
            t.pin_memory().to(device, non_blocking=True)
            for t in (self.examples_E, self.ids_BT, self.places_K, self.targets_K, self.weights_K)
        )
        return Batch(*moved, self.num_tokens, self.lengths)


def micro_batches(
    examples: Sequence[int], lengths: np.ndarray, budget_tokens: int, layout: Layout = "rows"
) -> list[list[int]]:
    """Groups of examples, longest first, within budget_tokens each; a single longer example goes alone.

    Packed, a group costs its tokens; in rows every example is padded to the group's longest, its first.
    """
    groups: list[list[int]] = []
    used = cost = 0
    for size, example in _by_length(examples, lengths):
        if groups and used + (size if layout == "packed" else cost) <= budget_tokens:
            groups[-1].append(example)
            used += size if layout == "packed" else cost
        else:
            groups.append([example])
            used = cost = size
    return groups


def longest_first(examples: Sequence[int], lengths: np.ndarray) -> list[int]:
    """Sorted by length, falling; equal lengths by number, so that the order follows from the set alone."""
    return [example for _, example in _by_length(examples, lengths)]


def _by_length(examples: Sequence[int], lengths: np.ndarray) -> list[tuple[int, int]]:
    """(length, example), longest first."""
    chosen = np.asarray(examples, np.int64)
    falling = sorted(zip((-lengths[chosen].astype(np.int64)).tolist(), chosen.tolist(), strict=True))
    return [(-length, example) for length, example in falling]


def collate(dataset: Dataset, examples: Sequence[int], layout: Layout = "rows") -> Batch:
    """Some examples side by side or end to end. Labels come from learned spans, never from the padding id."""
    rows = [dataset.sequence(int(example)) for example in examples]
    lengths = [len(ids) for ids, _, _ in rows]
    if layout == "packed":
        shape, starts = (1, sum(lengths)), np.cumsum([0, *lengths[:-1]])
    else:
        shape, starts = (len(rows), max(lengths)), np.arange(len(rows)) * max(lengths)
    ids_BT = np.zeros(shape, np.int64)
    places, targets, weights = [], [], []
    for first, (ids, spans, span_weights) in zip(starts, rows, strict=True):
        ids_BT.reshape(-1)[first : first + len(ids)] = ids
        for (start, end), weight in zip(spans, span_weights, strict=True):
            positions = np.arange(max(start, 1), end)
            places.append(first + positions - 1)  # the shift: position t - 1 predicts token t
            targets.append(ids[positions])
            weights.append(np.full(len(positions), weight, np.float32))
    empty = np.zeros(0, np.int64)
    return Batch(
        torch.as_tensor(np.asarray(examples, np.int64)),
        torch.from_numpy(ids_BT),
        torch.from_numpy(np.concatenate(places or [empty]).astype(np.int64)),
        torch.from_numpy(np.concatenate(targets or [empty]).astype(np.int64)),
        torch.from_numpy(np.concatenate(weights or [empty]).astype(np.float32)),
        sum(lengths),
        tuple(lengths) if layout == "packed" else None,
    )


def learned_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits at the learned positions only: [K, V], float32.

    The decoder's hidden states are picked before the output layer, so that logits of prompts are never computed; a
    model whose output is more than a linear layer (soft caps, scales) goes the whole way instead.
    """
    found = learned_hidden(model, batch)
    if found:
        hidden_KD, head = found
        return head(hidden_KD).float()
    base = _base_of(model)
    root = base.__dict__.get(ROOT)
    if root and _has_plain_head(base):
        with _picking(base.get_output_embeddings(), batch.places_K):
            return root.call(input_ids=batch.ids_BT, use_cache=False, **_packed(base, batch)).logits.float()
    logits_BTV = (root.call if root else base)(input_ids=batch.ids_BT, use_cache=False, **_packed(base, batch)).logits
    return logits_BTV.flatten(0, 1)[batch.places_K].float()


def learned_hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, nn.Module] | None:
    """(hidden states [K, D] at the learned positions, the output layer), where logits are that layer's and nothing more.

    None where they are more, and where weights lie in shards: then the whole model has to be called.
    """
    base = _base_of(model)
    if base.__dict__.get(ROOT) or not _has_plain_head(base):
        return None
    hidden_BTD = base.get_decoder()(input_ids=batch.ids_BT, use_cache=False, **_packed(base, batch)).last_hidden_state
    return hidden_BTD.flatten(0, 1)[batch.places_K], base.get_output_embeddings()


def _packed(base: nn.Module, batch: Batch) -> dict[str, Any]:
    return packed_inputs(base, batch.lengths, batch.ids_BT.device) if batch.lengths else {}


@dataclass(frozen=True)
class Root:
    """call: what a forward pass begins with. device: where its inputs belong."""

    call: Callable[..., Any]
    device: torch.device


def run_from_root(model: nn.Module, call: Callable[..., Any], device: torch.device) -> None:
    """From now on each forward pass begins with `call`, which gathers and releases weights that lie in shards.

    Asked before weights are cut into shards: what the model's head is made of is looked at while it is whole.
    """
    base = _base_of(model)
    _has_plain_head(base)
    base.__dict__[ROOT] = Root(call, device)


def input_device(model: nn.Module) -> torch.device:
    """Where the ids of a batch belong: with the weights, unless these lie elsewhere until they are needed."""
    root = _base_of(model).__dict__.get(ROOT)
    return root.device if root else next(model.parameters()).device


def _base_of(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _picking(head: nn.Module, places_K: Tensor) -> Iterator[None]:
    """Meanwhile the output layer sees the learned positions only: [B, T, D] becomes [K, D] as it enters."""

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1)[places_K], *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def learned_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log likelihood of each learned token, in nats: [K], float32. Without gradients, logits exist by chunks."""
    found = learned_hidden(model, batch)
    if found is None or torch.is_grad_enabled():
        return F.cross_entropy(learned_logits(model, batch), batch.targets_K, reduction="none")
    hidden_KD, head = found
    chunk = chunk_of(_base_of(model).get_input_embeddings().weight.shape[0], hidden_KD.device)
    parts = zip(hidden_KD.split(chunk), batch.targets_K.split(chunk), strict=True)
    return torch.cat([F.cross_entropy(head(h_CD).float(), t_C, reduction="none") for h_CD, t_C in parts])


def chunk_of(vocabulary: int, device: torch.device) -> int:
    """Learned positions whose logits exist at once."""
    return loss_chunk(vocabulary, on_cpu=device.type == "cpu")


def _has_plain_head(base: nn.Module) -> bool:
    """True where logits = output layer(hidden state): proven once per model by comparing both ways on a few tokens."""
    known = base.__dict__.get("_tunesmith_plain_head")
    if known is None:
        known = base.__dict__["_tunesmith_plain_head"] = _compare_heads(base)
    return known


@torch.no_grad()
def _compare_heads(base: nn.Module) -> bool:
    head = base.get_output_embeddings()
    if head is None or not hasattr(base, "get_decoder"):
        return False
    was_training = base.training
    base.eval()
    try:
        ids_BT = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
        whole = base(input_ids=ids_BT, use_cache=False).logits
        parts = head(base.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state)
        return whole.shape == parts.shape and torch.allclose(whole, parts, atol=1e-5, rtol=1e-4)
    finally:
        base.train(was_training)
