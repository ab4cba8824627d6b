"""Greedy answers: the same for every batch size, and those of transformers' own generate; stops, limits and the context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from held_out import speaker
from torch import nn

from tunesmith.errors import DataError, ModelError
from tunesmith.scoring import fitting, generation
from tunesmith.scoring.generation import Answer, generate_greedy
from tunesmith.scoring.items import Item

CONTEXT = 64


class Ids:
    """A decoder of ids: the text is the ids."""

    pad_id = 0

    def __init__(self, stop_ids: Sequence[int]) -> None:
        self.stop_ids = set(stop_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def ragged(lengths: Sequence[int], seed: int = 0) -> list[Item]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Item(row, "test", (), "", torch.randint(5, 256, (length,), generator=draw).tolist())
        for row, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    from transformers import AutoModelForCausalLM

    folder = speaker(tmp_path_factory.mktemp("speaker"), tiny_model_dir, max_position_embeddings=CONTEXT)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    """Learned positions: one beyond the context is an error, not a guess."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, vocab_size=256, initializer_range=0.3)
    config.eos_token_id = config.bos_token_id = None
    return GPT2LMHeadModel(config).eval()


ITEMS = ragged([3, 17, 9, 1, 30, 9, 24, 5, 12, 40])


def ask(model: nn.Module, items: Sequence[Item], stops: Sequence[int], batch_size: int, limit: int) -> list[Answer]:
    return generate_greedy(model, Ids(stops), items, max_new_tokens=limit, batch_size=batch_size)


def stops_of(model: nn.Module, limit: int) -> list[int]:
    """Tokens that the model says early in some answers and never in others."""
    free = ask(model, ITEMS, [], 1, limit)
    said = [set(answer.ids) for answer in free]
    return [answer.ids[place] for answer, place in zip(free[:4], (0, 3, 7, 12), strict=True)] if said else []


@pytest.mark.parametrize("kind", ["model", "gpt2"])
def test_answers_do_not_depend_on_the_batch(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    stops = stops_of(model, 20)
    single = ask(model, ITEMS, stops, 1, 20)
    assert {answer.finish for answer in single} == {"stop", "length"}
    assert len({len(answer.ids) for answer in single}) > 3, "answers of many lengths, so that rows leave at many times"
    for batch_size in (2, 3, 10, 64):
        assert ask(model, ITEMS, stops, batch_size, 20) == single


@pytest.mark.parametrize("shrink_below", [0.0, 1.0])
def test_rows_that_have_finished_leave_or_wait_without_effect(
    model: nn.Module, shrink_below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = stops_of(model, 20)
    single = ask(model, ITEMS, stops, 1, 20)
    widths: list[int] = []
    inner = model.forward

    def watched(*args: object, **options: object) -> object:
        widths.append(len(options["input_ids"]))  # type: ignore[arg-type]
        return inner(*args, **options)

    monkeypatch.setattr(generation, "SHRINK_BELOW", shrink_below)
    monkeypatch.setattr(model, "forward", watched)
    monkeypatch.setattr(generation, "_accepted", lambda model: ("position_ids", "logits_to_keep"))
    assert ask(model, ITEMS, stops, len(ITEMS), 20) == single
    assert (len(set(widths)) > 2) is (shrink_below == 1.0), "the batch shrinks or it does not"


@pytest.mark.parametrize("kind", ["model", "gpt2"])
def test_answers_are_those_of_transformers_generate(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    stops = stops_of(model, 20)
    for item, answer in zip(ITEMS, ask(model, ITEMS, stops, 4, 20), strict=True):
        prompt = torch.tensor([list(item.prompt_ids)])
        whole = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, eos_token_id=stops,
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        expected = whole[:-1] if whole[-1] in stops else whole
        assert answer.ids == expected
        assert answer.finish == ("stop" if whole[-1] in stops else "length")


@pytest.mark.parametrize("kind", ["model", "gpt2"])
def test_the_context_ends_an_answer_and_no_neighbour(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SHRINK_BELOW", 0.0)  # rows at the end of the context wait for the others
    model = request.getfixturevalue(kind)
    items = ragged([CONTEXT - 2, 10, CONTEXT - 30], seed=4)
    together = ask(model, items, [], 3, 50)
    assert [len(answer.ids) for answer in together] == [2, 50, 30]
    assert together == ask(model, items, [], 1, 50)


def test_a_prompt_that_fills_the_context_is_named(model: nn.Module) -> None:
    with pytest.raises(
        DataError, match=rf"EVL-001 the prompt of row 1 \(test\) has {CONTEXT} tokens; the model reads {CONTEXT}"
    ):
        ask(model, ragged([4, CONTEXT]), [], 2, 5)


def test_a_batch_that_does_not_fit_is_cut_and_nothing_is_lost(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(model, ITEMS, [], 1, 6)
    tried: list[int] = []
    inner = generation._decode

    def small_device(model: nn.Module, items: Sequence[Item], *rest: object) -> list[list[int]]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "_decode", small_device)
    assert ask(model, ITEMS, [], 8, 6) == expected
    assert tried == [8, 4, 2, 2, 2, 2, 2], "what fitted once is not tried larger again"

    def tiny_device(*_: object) -> list[list[int]]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "_decode", tiny_device)
    with pytest.raises(ModelError, match="EVL-012 one prompt alone does not fit"):
        ask(model, ITEMS, [], 4, 6)
    monkeypatch.setattr(
        fitting.torch, "distributed", SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
    )
    with pytest.raises(torch.OutOfMemoryError):
        ask(model, ITEMS, [], 4, 6)


def test_nothing_asked_is_nothing_answered(model: nn.Module) -> None:
    assert ask(model, [], [], 4, 6) == []


# --------------------------------------------------------------------------------------------------------- static cache


def test_a_static_cache_gives_the_same_answers(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding and without, with rows that leave the batch and without, to the end of the context."""
    stops = stops_of(model, 20)
    seen: list[type] = []
    monkeypatch.setattr(generation, "_keep_rows", lambda cache, keep: seen.append(type(cache)) or kept(cache, keep))
    for items, batch_size in ((ITEMS, 4), (ITEMS, 1), (ragged([9, 9, 9], seed=2), 3), (ragged([CONTEXT - 2, 10]), 2)):
        asked = {"max_new_tokens": 20, "batch_size": batch_size}
        dynamic, static = (
            generate_greedy(model, Ids(stops), items, cache=kind, **asked) for kind in ("dynamic", "static")
        )
        assert static == dynamic
        assert any(answer.ids for answer in static)
    assert {found.__name__ for found in seen} == {"DynamicCache", "StaticCache"}, "rows left batches of both kinds"


kept = generation._keep_rows


def test_a_model_that_would_read_beyond_what_is_filled_is_refused(model: nn.Module) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"EVL-013 evaluate\.cache: no static cache for MistralForCausalLM with sdpa"):
        generate_greedy(MistralForCausalLM(config), Ids([]), ITEMS, max_new_tokens=2, batch_size=2, cache="static")
    implementation = model.config._attn_implementation
    try:
        model.config._attn_implementation_internal = "flash_attention_2"
        with pytest.raises(ModelError, match="EVL-013"):
            generate_greedy(model, Ids([]), ITEMS, max_new_tokens=2, batch_size=2, cache="static")
    finally:
        model.config._attn_implementation_internal = implementation
