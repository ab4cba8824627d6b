"""Greedy answers to many prompts at once: a small decode loop on top of the model's own forward.

Legend: B rows of a batch, P longest prompt, V vocabulary. Prompts are padded on the left, so that all rows go on at the
same column; position ids count real tokens only. Rows that have finished leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import StaticCache

from tunesmith.errors import DataError, ModelError
from tunesmith.scoring.fitting import in_fitting_groups
from tunesmith.scoring.items import Item

# Copying the cache of the rows that stay costs about one step (measured on 2 CPU cores, 3 M parameters), so it is done
# when a sixth of the rows has finished rather than each time one does.
SHRINK_BELOW = 5 / 6

CacheKind = Literal["dynamic", "static"]
MASKED = (
    "eager",
    "sdpa",
    "tunesmith_packed",
)  # attention that is told by a mask which part of a static cache is filled


class Decoder(Protocol):
    """What generation needs of a tokenizer (text.tokenizers.Tokenizer has it)."""

    @property
    def pad_id(self) -> int: ...
    @property
    def stop_ids(self) -> Collection[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Answer:
    """ids: generated tokens without the stop token. finish: "stop" at a stop token, "length" at the limit."""

    ids: list[int]
    text: str
    finish: Literal["stop", "length"]


def generate_greedy(
    model: nn.Module,
    tokenizer: Decoder,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch_size: int,
    cache: CacheKind = "dynamic",
    on_progress: Callable[[int, int], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Answer]:
    """The most probable token, again and again, until a stop token or the limit: one answer per item, in their order.

    max_new_tokens: limit per answer; less where the model's context ends earlier. cache: of keys and values; dynamic grows
    with each token, static has its whole room from the start and is written in place.
    on_progress: called with (answers finished, answers in all) after each batch. on_step: called before each token; it
    may raise to stop.
    In fp32 the answers do not depend on batch_size (tests/numerics); in bf16 and fp16 near ties may turn out otherwise.
    A batch that does not fit on the device is cut in two. Raises DataError EVL-001 when a prompt alone fills the model's
    context, ModelError EVL-012 when one prompt alone does not fit on the device, EVL-013 when the model has no static cache.
    """
    if cache == "static":
        _refuse_static(model)
    limits = _limits(model, items, max_new_tokens)
    stop_ids = set(tokenizer.stop_ids)

    def decode(batch: list[int]) -> list[list[int]]:
        chosen = [items[index] for index in batch]
        return _decode(model, chosen, [limits[index] for index in batch], stop_ids, tokenizer.pad_id, on_step, cache)

    answers: dict[int, Answer] = {}
    for batch, made in in_fitting_groups(_batches(items, batch_size), decode, "prompt"):
        for index, tokens in zip(batch, made, strict=True):
            answers[index] = _answer(tokenizer, tokens[: limits[index]], stop_ids)
        if on_progress:
            on_progress(len(answers), len(items))
    return [answers[index] for index in range(len(items))]


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[int]]:
    """Indices of the items of each batch. Longest prompts first: what does not fit in memory shows at once."""
    order = sorted(range(len(items)), key=lambda index: (-len(items[index].prompt_ids), index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _answer(tokenizer: Decoder, tokens: list[int], stop_ids: set[int]) -> Answer:
    """tokens: what was generated, up to the row's limit; behind a stop token the row may have run on."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    ids = tokens[:end]
    return Answer(ids, tokenizer.decode(ids), "length" if end is None else "stop")


@torch.inference_mode()
def _decode(
    model: nn.Module,
    items: Sequence[Item],
    limits: list[int],
    stop_ids: set[int],
    pad_id: int,
    on_step: Callable[[], None] | None,
    kind: CacheKind = "dynamic",
) -> list[list[int]]:
    """Generated tokens of each row, up to and with its stop token; a row that waits to leave the batch runs on."""
    device = next(model.parameters()).device
    input_ids_BP, mask_BP = _pad_left([item.prompt_ids for item in items], pad_id, device)
    position_ids_BP = (mask_BP.cumsum(1) - 1).clamp(min=0)
    # Without padding no mask is needed, and the attention may take its fast causal path.
    mask_BP = None if bool(mask_BP.all()) else mask_BP
    rows = list(range(len(items)))  # the item that each row of the batch belongs to
    going = list(rows)
    generated: list[list[int]] = [[] for _ in items]
    cache = _static(model, input_ids_BP.shape[1] + max(limits)) if kind == "static" else None
    accepted, context = _accepted(model), _context_length(model)
    while True:
        if on_step:
            on_step()
        asked = {"position_ids": position_ids_BP, "logits_to_keep": 1}
        out = model(
            input_ids=input_ids_BP,
            attention_mask=mask_BP,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in asked.items() if name in accepted},
        )
        cache = out.past_key_values
        next_ids_B = out.logits[:, -1].argmax(-1)
        for row, token in zip(rows, next_ids_B.tolist(), strict=True):
            generated[row].append(token)
        going = [row for row in going if generated[row][-1] not in stop_ids and len(generated[row]) < limits[row]]
        if not going:
            return generated
        position_ids_BP = position_ids_BP[:, -1:] + 1
        if context:  # a row that waits to leave may stand at its end already; what it says is not kept
            position_ids_BP = position_ids_BP.clamp(max=context - 1)
        if len(going) < SHRINK_BELOW * len(rows):
            staying = set(going)
            keep = torch.tensor([place for place, row in enumerate(rows) if row in staying], device=device)
            _keep_rows(cache, keep)
            next_ids_B, position_ids_BP = next_ids_B[keep], position_ids_BP[keep]
            mask_BP = None if mask_BP is None else mask_BP[keep]
            rows = [row for row in rows if row in staying]
        input_ids_BP = next_ids_B[:, None]
        if mask_BP is not None:
            mask_BP = torch.cat([mask_BP, mask_BP.new_ones(len(rows), 1)], 1)


def _pad_left(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, P] padded on the left, and the mask int64 [B, P] that is 1 on real tokens."""
    width = max(len(ids) for ids in sequences)
    input_ids_BP = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask_BP = torch.zeros_like(input_ids_BP)
    for row, ids in enumerate(sequences):
        input_ids_BP[row, width - len(ids) :] = torch.as_tensor(ids, dtype=torch.int64)
        mask_BP[row, width - len(ids) :] = 1
    return input_ids_BP.to(device), mask_BP.to(device)


def _static(model: nn.Module, columns: int) -> StaticCache:
    """Room for so many tokens of each row; taken when the first of them come in."""
    return StaticCache(config=model.config, max_cache_len=columns)


def _keep_rows(cache: Any, keep: Tensor) -> None:
    if not isinstance(cache, StaticCache):
        cache.batch_select_indices(keep)
        return
    for layer in cache.layers:  # it has no such function: its rows are copied as the dynamic one's are
        layer.keys, layer.values = layer.keys[keep], layer.values[keep]
        layer.batch_size = len(keep)


def _refuse_static(model: nn.Module) -> None:
    """Raises ModelError EVL-013 where a static cache would be read beyond what is filled, or layers have none."""
    config = model.config.get_text_config()
    attention = getattr(model.config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if attention not in MASKED or kinds != {"full_attention"} or window:
        raise ModelError(
            "EVL-013",
            f"no static cache for {type(model).__name__} with {attention} attention",
            where="evaluate.cache",
            expected="layers that all look back to the start, and sdpa or eager attention",
            fix="--set evaluate.cache=dynamic",
        )


def _context_length(model: nn.Module) -> int | None:
    """Longest sequence that the model was made for, in tokens; None where its configuration does not say."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def _accepted(model: nn.Module) -> Collection[str]:
    """Names that the model's forward takes: not every architecture has position ids or picks logits."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(plain.forward).parameters


def _limits(model: nn.Module, items: Sequence[Item], max_new_tokens: int) -> list[int]:
    context = _context_length(model)
    if context is None:
        return [max_new_tokens] * len(items)
    for item in items:
        if len(item.prompt_ids) >= context:
            raise DataError(
                "EVL-001",
                f"the prompt of row {item.row} ({item.part}) has {len(item.prompt_ids)} tokens; "
                f"the model reads {context} in all, so there is no room for an answer",
                expected=f"prompts shorter than {context} tokens",
                fix=f"--set data.max_tokens={context} with data.too_long=drop leaves such rows out",
            )
    return [min(max_new_tokens, context - len(item.prompt_ids)) for item in items]
