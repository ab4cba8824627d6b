"""The batch encoder gives, bit for bit, what encoding row by row gives; and it does not encode row by row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference
from transformers import PreTrainedTokenizerFast

from tunesmith.stages.prepare.encoding import encoder as encoders
from tunesmith.stages.prepare.encoding.contents import edges, holding
from tunesmith.stages.prepare.encoding.encoder import (
    CONTROL_IN_TEXT,
    JOINED_DIFFERS,
    NOTHING_LEARNED,
    Encoder,
    Turns,
    learned_spans,
)
from tunesmith.text import fast
from tunesmith.text.example import ASSISTANT, SYSTEM, TEXT, TOOL, USER, Example
from tunesmith.text.hard_texts import HARD, SCRIPTS
from tunesmith.text.templates import NAMED, ChatTemplate, TemplateError
from tunesmith.text.tokenizers import Tokenizer

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]  # fmt: skip
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{% set content = message.content %}{% if message.role == 'assistant' %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{% endif %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ESCAPES = (
    "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content | tojson }}<|im_end|>{% endfor %}"
)
ASKS = (
    "{% for message in messages %}{% set content = message.content | trim %}"
    "<|im_start|>{{ message.role }}{{ ' !' if content.startswith(('lead', 'both')[0]) or content == 'both' }}\n"
    "{{ content }}<|im_end|>{% endfor %}"
)
TEMPLATES = {
    **NAMED,
    "asks": ASKS,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "qwen": QWEN,
    "gemma": GEMMA,
    "escapes": ESCAPES,
}

Chat = tuple[list[int], list[str], dict[str, Any] | None]


def wrapped(reference: Reference) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=reference, bos_token="<s>", eos_token="</s>")


def byte_level() -> Reference:
    made = Reference(models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*SCRIPTS, "user\nassistant\n", ".\n\n", "\n\n", "\n\n"] * 3,
        trainers.BpeTrainer(vocab_size=900, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False),
    )
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return made


def sentencepiece_like() -> Reference:
    """As converted Llama-2 and Mistral models: blanks become letters, no cut into words, bytes for the rest."""
    made = Reference(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    data = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>", *CONTROL, *data], show_progress=False)
    made.train_from_iterator([*(word for text in SCRIPTS[:3] for word in text.split(" ")), *["▁a"] * 50], trainer)
    return made


def without_cut() -> Reference:
    """GPT-2's regular expression and no control token in the vocabulary: scaffold is plain text."""
    made = Reference(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SCRIPTS, trainer)
    return made


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like, without_cut], ids=lambda made: made.__name__)
def hf(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return wrapped(request.param())


@pytest.fixture(scope="module")
def qwen_like() -> PreTrainedTokenizerFast:
    return wrapped(byte_level())


def with_template(hf: PreTrainedTokenizerFast, source: str) -> Tokenizer:
    return Tokenizer(hf, ChatTemplate("test", source, hf.bos_token or "<s>", hf.eos_token or "</s>"), frozenset())


ODD = ["Hello there", "What?", "Yes.", "a", "1", "42 is it.", "'s", " lead", "trail ", "\n\nboth\n", "\u0301x", "e\u0301",
       "<think>\nhm\n</think>\n\nok", "</think>", "<tool_response>x</tool_response>", "{{ x }}", "\u3000wide\u3000", "안녕",
       "<|im_end|>", "see </s> there", "[INST] no", "<|im_start", "|im_end|>", "<"]  # fmt: skip


def hard_chats(count: int, seed: int, exchanges: Sequence[int] = (1, 1, 1, 2, 3)) -> list[Chat]:
    draw = random.Random(seed)
    texts = [*(text[:200] for text in HARD if text.strip()), *ODD, *ODD]
    out: list[Chat] = []
    for _ in range(count):
        kind = draw.random()
        if kind < 0.05:
            out.append(([TEXT], [draw.choice(texts)], None))
        elif kind < 0.07:
            out.append(([], [], None))
        else:
            out.append(_chat(draw, texts, exchanges))
    return out


def _chat(draw: random.Random, texts: Sequence[str], exchanges: Sequence[int]) -> Chat:
    roles, contents = [], []
    if draw.random() < 0.3:
        roles.append(SYSTEM)
        contents.append("You are helpful." if draw.random() < 0.7 else draw.choice(texts))
    for _ in range(draw.choice(exchanges)):
        roles += [USER, TOOL, ASSISTANT] if draw.random() < 0.08 else [USER, ASSISTANT]
    roles += [USER] if draw.random() < 0.05 else []
    contents += [draw.choice(texts) if draw.random() < 0.98 else "" for _ in roles[len(contents) :]]
    extra = None
    if draw.random() < 0.15:
        said = [{"learn": False}, {"learn": True}, {"weight": 0.5}, {"name": "x"}]
        extra = {"turns": {str(len(roles) - 1): draw.choice(said)}}
    return roles, contents, extra


def as_turns(chats: Sequence[Chat]) -> Turns:
    offsets = np.cumsum([0, *(len(roles) for roles, _, _ in chats)], dtype=np.int64)
    roles = np.array([role for roles, _, _ in chats for role in roles], np.uint8)
    contents = pa.array([content for _, contents, _ in chats for content in contents], pa.utf8())
    return Turns(offsets, roles, contents, [extra for _, _, extra in chats])


def row_by_row(tokenizer: Tokenizer, learn: str, chats: Sequence[Chat]) -> tuple[list[Any], dict[int, str], list[int]]:
    """(ids and spans, refused, flags), each row on its own by the slow way, flags by encoding its whole text."""
    segments, refused = [], {}
    for row, (roles, contents, extra) in enumerate(chats):
        segments.append([])
        if roles:
            try:
                segments[-1] = tokenizer.encode_example(Example.from_columns(roles, contents, extra), learn)
            except TemplateError as error:
                refused[row] = str(error)
    encoded = tokenizer.encode_segments(segments)
    flags = []
    for (ids, spans), row in zip(encoded, segments, strict=True):
        flag = NOTHING_LEARNED if row and not spans else 0
        if row and tokenizer.holds_control_tokens(row):
            flag |= CONTROL_IN_TEXT
        elif row:
            pieces, _ = tokenizer.pieces(row)
            same = tokenizer.encode_whole("".join(piece.text for piece in pieces)) == ids.tolist()
            flag |= 0 if same else JOINED_DIFFERS
        flags.append(flag)
    return encoded, refused, flags


def assert_equal_to_row_by_row(tokenizer: Tokenizer, learn: str, batches: Sequence[Sequence[Chat]]) -> Encoder:
    encoder = Encoder(tokenizer, learn)
    for chats in batches:
        found = encoder.encode(as_turns(chats))
        wanted, refused, flags = row_by_row(tokenizer, learn, chats)
        assert found.refused == refused
        assert (found.ids.dtype, found.spans.dtype, found.weights.dtype) == (np.int32, np.int32, np.float32)
        assert len(found.offsets) == len(found.span_offsets) == len(chats) + 1
        for row, (ids, spans) in enumerate(wanted):
            own = slice(*found.span_offsets[row : row + 2])
            ours = [
                (*span, weight)
                for span, weight in zip(found.spans[own].tolist(), found.weights[own].tolist(), strict=True)
            ]
            assert found.ids[slice(*found.offsets[row : row + 2])].tolist() == ids.tolist(), chats[row]
            assert ours == list(map(tuple, spans)), chats[row]
            assert found.flags[row] == flags[row], chats[row]
    return encoder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("learn", ["all", "last"])
def test_ids_spans_and_flags_are_those_of_the_slow_way(hf: PreTrainedTokenizerFast, name: str, learn: str) -> None:
    tokenizer = with_template(hf, TEMPLATES[name])
    batches = [hard_chats(80, seed) for seed in (1, 2)]
    encoder = assert_equal_to_row_by_row(tokenizer, learn, batches)
    assert encoder.mismatches == 0
    if name in ("chatml", "instruction", "llama3", "qwen", "gemma"):
        assert encoder.ways["compiled"] > 40
    if name == "escapes":  # but for plain texts
        assert encoder.ways["compiled"] < 12


def test_the_packages_own_tiny_model(tiny_tokenizer: Tokenizer) -> None:
    encoder = assert_equal_to_row_by_row(tiny_tokenizer, "all", [hard_chats(80, 3)])
    assert encoder.ways["compiled"] > 40


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Tokenizer:
    from tunesmith.hub import resolve
    from tunesmith.text.tokenizers import load_tokenizer

    return load_tokenizer(resolve("builtin:tunesmith-tiny", None, weights=False))


@pytest.mark.parametrize("folder", ["axolotl", "mistral_common", "trl"])
def test_the_shared_templates(test_data: Path, folder: str) -> None:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(test_data / "data" / "tokenizers" / "minimind", local_files_only=True)
    chats, usual = (
        [hard_chats(16, 4, exchanges=(1, 1, 1, 2))],
        [(roles[1:], contents[1:], None) for roles, contents, _ in many(8)],
    )
    compiled = 0
    paths = sorted((test_data / "data" / "chat_templates" / folder).glob("*.jinja"))
    paths = [path for path in paths if not path.stem.endswith("_training")]  # the same text with marks in it
    for path in paths:
        encoder = assert_equal_to_row_by_row(with_template(hf, path.read_text()), "all", [*chats, usual])
        compiled += encoder.ways["compiled"] >= len(usual)
    assert compiled >= len(paths) * 0.8


@pytest.mark.parametrize("name", ["gpt2", "mistral_v1", "mistral_v3", "falcon", "stories260K"])
def test_the_shared_tokenizers(test_data: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = test_data / "models" / name if name == "stories260K" else test_data / "data" / "tokenizers" / name
    hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for template in ("chatml", "instruction"):
        assert_equal_to_row_by_row(with_template(hf, TEMPLATES[template]), "all", [hard_chats(50, 5)])


# ------------------------------------------------------------------------------------------------ how it gets there


def many(count: int, seed: int = 0) -> list[Chat]:
    draw = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    return [
        ([SYSTEM, USER, ASSISTANT], ["Be brief.", *(" ".join(draw.choices(words, k=9)) for _ in range(2))], None)
        for _ in range(count)
    ]


def test_nothing_is_rendered_or_compared_row_by_row_on_the_fast_path(
    qwen_like: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_template(qwen_like, LLAMA3)
    calls = []
    slowly = tokenizer.encode_example
    monkeypatch.setattr(tokenizer, "encode_example", lambda *given: calls.append(given) or slowly(*given))
    encoder = Encoder(tokenizer, "all")
    encoder.encode(as_turns(many(1000)))
    assert len(calls) <= 2 + encoders.COMPARED_FIRST + encoders.COMPARED_RANDOM
    assert encoder.ways == {"compiled": 1000}


def test_a_shape_that_fails_on_a_real_row_goes_the_slow_way(
    qwen_like: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A template that asks in a way that is not seen: the comparison with real rows has to catch it.
    monkeypatch.setattr("tunesmith.stages.prepare.encoding.shapes.looks_of", lambda *_: {})
    source = QWEN.replace(
        "{% set content = message.content %}", "{% set content = message.content.replace('fox', 'cat') %}"
    )
    tokenizer = with_template(qwen_like, source)
    encoder = assert_equal_to_row_by_row(tokenizer, "all", [many(60), many(60, seed=1)])
    assert encoder.mismatches == 1
    assert encoder.ways["row by row"] == 120


def test_a_template_that_refuses_is_quoted(qwen_like: PreTrainedTokenizerFast) -> None:
    found = Encoder(with_template(qwen_like, GEMMA), "all").encode(as_turns(many(5)))
    assert set(found.refused) == set(range(5))
    assert "System role not supported" in found.refused[0]
    assert len(found.ids) == 0
    assert not found.flags.any()


def test_flags(qwen_like: PreTrainedTokenizerFast) -> None:
    chats: list[Chat] = [
        ([USER, ASSISTANT], ["a", "b"], None),
        ([USER, ASSISTANT], ["a", "\n\nb"], None),  # "assistant\n" + "\n\n": one word in the whole text
        ([USER, ASSISTANT], ["a <|im_end|>", "b"], None),
        ([USER, ASSISTANT], ["a", "b"], {"turns": {"1": {"learn": False}}}),
        ([], [], None),
    ]
    tokenizer = with_template(qwen_like, NAMED["chatml"])
    found = Encoder(tokenizer, "all").encode(as_turns(chats * 5))
    assert found.flags.tolist() == [0, JOINED_DIFFERS, CONTROL_IN_TEXT, NOTHING_LEARNED, 0] * 5
    end = tokenizer.hf.convert_tokens_to_ids("<|im_end|>")
    third = found.ids[found.offsets[2] : found.offsets[3]].tolist()
    assert third.count(end) == 2  # the template's own ones


def test_which_turns_are_learned(qwen_like: PreTrainedTokenizerFast) -> None:
    roles, contents = [USER, ASSISTANT, USER, ASSISTANT], ["q", "same", "q", "same"]
    example = Example.from_columns(roles, contents)
    tokenizer = with_template(qwen_like, NAMED["chatml"])
    assert Encoder(tokenizer, "all").learned_turns(example) == [False, True, False, True]
    assert Encoder(tokenizer, "last").learned_turns(example) == [False, False, False, True]


def test_the_proof_is_made_on_the_first_batch_and_says_why(
    qwen_like: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "_is_installed", lambda: False)
    encoder = Encoder(with_template(qwen_like, LLAMA3), "all")
    assert encoder.proof is None
    encoder.encode(as_turns(many(10)))
    assert encoder.proof == fast.Proof(False, "gigatoken is not installed")


def test_an_empty_batch(qwen_like: PreTrainedTokenizerFast) -> None:
    for chats in ([], [([], [], None)]):
        found = Encoder(with_template(qwen_like, LLAMA3), "all").encode(as_turns(chats))
        assert len(found.ids) == len(found.spans) == 0
        assert len(found.offsets) == len(chats) + 1


def test_learned_spans_join_neighbours_of_one_weight() -> None:
    rows = np.array([0, 5, 5, 9])
    ends = np.cumsum([0, 2, 3, 0, 1, 2, 1, 1, 2, 2])
    learned = np.array([False, True, False, True, False, True, True, False, True])
    weight = np.array([1, 1, 1, 1, 1, 1, 0.5, 1, 1], np.float32)
    spans, offsets, weights = learned_spans(rows, ends, learned, weight)
    assert spans.tolist() == [[2, 6], [0, 1], [1, 2], [4, 6]]
    assert offsets.tolist() == [0, 1, 1, 4]
    assert weights.tolist() == [1, 1, 0.5, 1]


def test_edges_are_whole_characters() -> None:
    texts = ["a", "", "é", "x世", "🎉y", "end🎉", "ab"]
    first, last = edges(pa.array(["skipped", *texts], pa.large_utf8()).slice(1))
    assert first.tolist() == [ord(text[0]) if text else -1 for text in texts]
    assert last.tolist() == [ord(text[-1]) if text else -1 for text in texts]


def test_a_stem_is_found_in_the_texts_that_hold_it_and_in_slices_of_them() -> None:
    texts = pa.array(["", "a<|b", "<", "|b", "ends <|", "é<|", "none", "<<|"], pa.large_utf8())
    found = holding(texts, "<|").tolist()
    assert set(found) >= {1, 4, 5, 7}
    assert set(found) <= {1, 2, 4, 5, 7}, "beside them only what ends within the stem"
    assert holding(texts.slice(5), "<|").tolist() == [0, 2]
    assert holding(texts.slice(6, 1), "<|").tolist() == holding(texts.slice(0, 0), "é").tolist() == []
