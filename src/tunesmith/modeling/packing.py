"""Documents laid end to end in one row of tokens: no padding, and no document sees another.

Linear layers, norms and the loss then work on real tokens only. Attention runs document by document, through
transformers' attention interface: flash attention has kernels for it; elsewhere documents of equal length go through
scaled_dot_product_attention together, in the exact causal form that needs no mask.

A model is packed only after a proof on itself: some models carry state from token to token by other ways than attention
(convolutions, recurrences, sinks), and these must see each document in a row of its own.
"""

# Shape suffixes: B rows (1 when packed), H heads, K key heads, N tokens of all documents, D features of a head.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Layout = Literal["packed", "rows"]

PACKED_SDPA = "tunesmith_packed"
FLASH = ("flash_attention_2", "flash_attention_3")  # they have kernels for documents laid end to end
PROOF_LENGTHS = (7, 5, 5, 2)  # of different and of equal length, so that both ways are proven
PROOF_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # share of the largest hidden value
# What else an attention layer may be told to do; none of it has a place in the plain causal form.
FOREIGN = ("softcap", "s_aux", "position_bias", "cache")


class Documents:
    """The lengths of packed documents, on their way through the layers.

    In a thing of its own: of a tuple torch.compile would look at the length, and compile anew for each number of documents.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Documents | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document. query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D].

    document_lengths: tokens of each document, in order, N together. Without them (generation, say) it is plain sdpa.
    """
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    foreign = [name for name in FOREIGN if options.get(name) is not None]
    assert not foreign, f"packed attention cannot do {foreign}"  # the proof has turned such models away
    groups = key.shape[1]
    if groups != query.shape[1]:  # grouped heads: sdpa's own way to repeat them is slow on CPUs
        key, value = (x.repeat_interleave(query.shape[1] // groups, dim=1) for x in (key, value))
    runs = [(length, len(list(same))) for length, same in itertools.groupby(document_lengths.lengths)]
    sizes = [length * count for length, count in runs]
    # Token by token, as the projections wrote them: so the gradients of the pieces are put together by plain copies.
    pieces = zip(*(x[0].transpose(0, 1).split(sizes) for x in (query, key, value)), strict=True)
    outputs = []
    for (length, count), piece in zip(runs, pieces, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in piece)  # [count, H, length, D]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, scale=options.get("scaling"))
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(PACKED_SDPA, packed_attention)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def choose_layout(model: nn.Module, longest: int) -> Layout:
    """Switches a model to packed documents where a proof on it holds, else leaves it as it is.

    longest: tokens of the longest document; a sliding window shorter than it is left to the model's own code.
    """
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation not in ("sdpa", PACKED_SDPA, *FLASH) or _window(model) < longest:
        return "rows"
    if implementation == "sdpa":
        model.set_attn_implementation(PACKED_SDPA)
    if _is_exact(model):
        return "packed"
    model.set_attn_implementation(implementation)
    return "rows"


def packed_inputs(model: nn.Module, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What the model must be told about a row of packed documents, besides their ids.

    The mask is one element with four dimensions: transformers passes such a mask on as it is, instead of making one of
    N x N; the attention looks at the lengths alone.
    """
    inputs: dict[str, Any] = {"position_ids": positions(lengths).to(device)[None]}
    if getattr(model.config, "_attn_implementation", None) in FLASH:
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        bounds = {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        return {**inputs, **bounds}
    return {
        **inputs,
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "document_lengths": Documents(tuple(lengths)),
    }


def positions(lengths: Sequence[int]) -> Tensor:
    """0, 1, ... within each document: int64 [N]."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)])
    return torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(ends.diff())


def _window(model: nn.Module) -> float:
    """The shortest span that any layer attends over, in tokens."""
    config = model.config.get_text_config()
    spans = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((span for span in spans if span), default=float("inf"))


@torch.no_grad()
def _is_exact(model: nn.Module) -> bool:
    """True where a few documents packed give the hidden states that each gives alone."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    weights = model.get_input_embeddings().weight
    if decoder is None:
        return False
    was_training = model.training
    model.eval()
    try:
        total = sum(PROOF_LENGTHS)
        ids_N = (torch.arange(total, device=weights.device) * 7919 + 1) % weights.shape[0]
        inputs = packed_inputs(model, PROOF_LENGTHS, weights.device)
        packed = decoder(input_ids=ids_N[None], use_cache=False, **inputs).last_hidden_state[0]
        alone = [
            decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in ids_N.split(PROOF_LENGTHS)
        ]
        reference = torch.cat(alone)
        limit = PROOF_TOLERANCE.get(reference.dtype, 1e-4) * float(reference.abs().max())
        return packed.shape == reference.shape and float((packed - reference).abs().max()) <= limit
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError):
        return False  # a model whose code has no place for packed documents answers in its own ways
    finally:
        model.train(was_training)
