"""Ids and masks: training's ids are those of serving, nobody's text becomes a control token, and wrong masks stop a run."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_templates import SOURCES, plain
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tunesmith.errors import DataError
from tunesmith.text.checks import check_columns, check_masks, told
from tunesmith.text.example import Example, Message
from tunesmith.text.templates import NAMED, ChatTemplate
from tunesmith.text.tokenizers import Tokenizer, adds_bos

TEXTS = [
    "the quick brown fox",
    "Hello there.\n\nHow are you?",
    "x = 1\n  y = 2\n\n",
    "user assistant system <think> hmm </think>",
] * 3
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "[INST]",
    "[/INST]",
    "<|eot_id|>",
]


def wrapped(backend: Backend, special: Any = SPECIAL, *, bos: bool = False) -> PreTrainedTokenizerFast:
    if bos:
        backend.add_special_tokens(["<s>"])
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
    )
    hf.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>", "<b>")])
    return hf


def byte_level(**more: Any) -> PreTrainedTokenizerFast:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return wrapped(backend, **more)


def sentencepiece(legacy: bool, **more: Any) -> PreTrainedTokenizerFast:
    """Blanks are letters, and a text's start gets one: `legacy` as Llama 2 in its normaliser, else as Metaspace does."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if legacy else None
    backend.pre_tokenizer = (
        None if legacy else pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    )
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False)
    texts = [text.replace("\n", " ") for text in TEXTS]
    trained = Backend(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trained.train_from_iterator(texts, trainer)
    state = json.loads(trained.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = []
    made = Backend.from_str(json.dumps(state))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(made, **more)


TOKENIZERS = {
    "byte level": byte_level,
    "metaspace": lambda **more: sentencepiece(False, **more),
    "llama": lambda **more: sentencepiece(True, **more),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def hf(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def with_template(
    hf: PreTrainedTokenizerFast, source: str, stops: tuple[str, ...] = ("</s>", "<|im_end|>", "<|eot_id|>")
) -> Tokenizer:
    template = ChatTemplate("t", source, hf.bos_token, hf.eos_token)
    return Tokenizer(hf, template, frozenset(hf.convert_tokens_to_ids(token) for token in stops))


def chat(*contents: str, **more: Any) -> Example:
    roles = ("user", "assistant") * len(contents)
    return Example(tuple(Message(role, content) for role, content in zip(roles, contents, strict=False)), **more)


HARD = [
    ("Hello", "There."), ("\n\nHello ", "  There.\n\n"), ("a\u200db 日本 🎉", "é ﬁ…"), ("x", "y", " z", " w"), ("1", "2", "3", "4", "5", "6"),
    ("a <b> c", "<b>"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "phi", "gemma"])
def test_ids_are_those_of_the_whole_text_and_begin_with_the_served_prompt(
    hf: PreTrainedTokenizerFast, name: str
) -> None:
    tokenizer = with_template(hf, plain(name))
    compared = 0
    for contents in HARD:
        example = chat(*contents)
        segments = tokenizer.encode_example(example, "all")
        ((ids, spans),) = tokenizer.encode_segments([segments])
        whole = tokenizer.encode_whole("".join(segment.text for segment in segments))
        prompt = tokenizer.encode_prompt(example.messages[:-1])
        assert ids[: len(prompt)].tolist() == prompt
        assert len(prompt) == spans[-1][0]
        compared += ids.tolist() == whole
    # An answer's edge beside blanks may cut what the whole text holds together (before a letter, GPT-2's words part the
    # two line ends of Llama 3's prompt, which are one token where the prompt ends); all the other rows are equal.
    assert compared >= (1 if name == "llama3" else len(HARD) - 2)


def test_what_is_learned_decodes_to_the_learned_text(hf: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(hf, plain("llama2"))
    ((ids, spans),) = tokenizer.encode_segments([tokenizer.encode_example(chat("Hello", "There."), "all")])
    ((start, end, weight),) = spans
    assert tokenizer.decode(ids[start:end].tolist(), skip_special=False).strip() == "There. </s>"
    assert weight == 1.0


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a<|im_end|>b <|im_start|>user", "<think>x</think>", "</s>", "<|im_end|", "|im_end|>"]
)
def test_no_text_becomes_a_control_token(hf: PreTrainedTokenizerFast, text: str) -> None:
    source = "<think>" + plain("llama3") + "{# </think> #}"
    tokenizer = with_template(hf, source)
    assert {"<think>", "</think>", "<|im_end|>"} <= tokenizer.control
    assert "<b>" not in tokenizer.control, "an added token that the template does not write is text like any other"
    example = chat(text, "x " + text, text, "y")
    segments = tokenizer.encode_example(example, "all")
    ((ids, _),) = tokenizer.encode_segments([segments])
    control = [id for id in ids.tolist() if id in set(tokenizer.control_ids.tolist())]
    assert len(control) == tokenizer.count_control_tokens(segments)
    ((empty, _),) = tokenizer.encode_segments([tokenizer.encode_example(chat("q", "a", "q", "b"), "all")])
    usual = [id for id in empty.tolist() if id in set(tokenizer.control_ids.tolist())]
    marks = [tokenizer.hf.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")]
    assert [id for id in control if id not in marks] == [id for id in usual if id not in marks]
    # An answer's own <think> is what the model generates; a user's is text.
    assert sum(id in marks for id in control) - sum(id in marks for id in usual) == (2 if "<think>" in text else 0)


def test_two_fields_make_no_control_token_together(hf: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(
        hf, "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    segments = tokenizer.encode_example(
        Example((Message("system", "<|im_"), Message("user", "end|>"), Message("assistant", "a"))), "all"
    )
    assert tokenizer.holds_control_tokens(segments)
    ((ids, _),) = tokenizer.encode_segments([segments])
    assert tokenizer.hf.convert_tokens_to_ids("<|im_end|>") not in ids.tolist()


def test_tools_and_calls_become_no_control_tokens() -> None:
    tokenizer = with_template(byte_level(), plain("chatml"))
    call = {"type": "function", "function": {"name": "f<|im_end|>", "arguments": {"<|im_start|>": "<|im_end|>"}}}
    tools = ({"type": "function", "function": {"name": "f<|im_end|>", "description": "<|im_start|>system"}},)
    example = Example((Message("user", "q"), Message("assistant", "", tool_calls=(call,))), tools=tools)
    segments = tokenizer.encode_example(example, "all")
    ((ids, _),) = tokenizer.encode_segments([segments])
    end = tokenizer.hf.convert_tokens_to_ids("<|im_end|>")
    assert ids.tolist().count(end) == 3


def test_a_token_that_swallows_blanks_keeps_them() -> None:
    tokens = [AddedToken(token, rstrip=True, special=True) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer = with_template(byte_level(special=tokens), plain("phi"), ("<|end|>",))
    segments = tokenizer.encode_example(chat("Hello", "There.", "a", "b"), "all")
    ((ids, spans),) = tokenizer.encode_segments([segments])
    assert ids.tolist() == tokenizer.encode_whole("".join(segment.text for segment in segments))
    assert all(ids[end - 1] == tokenizer.hf.convert_tokens_to_ids("<|end|>") for _, end, _ in spans)


def test_weights_reach_the_spans() -> None:
    tokenizer = with_template(byte_level(), plain("chatml"))
    messages = (
        Message("user", "q"),
        Message("assistant", "a", weight=0.25),
        Message("user", "r"),
        Message("assistant", "b"),
    )
    ((_, spans),) = tokenizer.encode_segments([tokenizer.encode_example(Example(messages), "all")])
    assert [weight for _, _, weight in spans] == [0.25, 1.0]


def test_plain_text_and_named_templates_begin_as_the_tokenizer_begins_a_text() -> None:
    starting = byte_level(bos=True)
    assert adds_bos(starting)
    assert not adds_bos(byte_level())
    template = ChatTemplate.load(None, "instruction", None, "<s>", "</s>", adds_bos=True)  # type: ignore[arg-type]
    tokenizer = Tokenizer(starting, template, frozenset({starting.eos_token_id}))
    for example in (chat("q", "a"), Example(text="a text")):
        ((ids, _),) = tokenizer.encode_segments([tokenizer.encode_example(example, "all")])
        assert ids.tolist().count(starting.bos_token_id) == 1
        assert ids[0] == starting.bos_token_id


# ---------------------------------------------------------------------------------------------------------- the checks


def rows(*examples: Example) -> list[tuple[str, Example]]:
    return [(f"rows.jsonl:{number}", example) for number, example in enumerate(examples, 1)]


def test_good_rows_pass_and_what_was_seen_is_told() -> None:
    tokenizer = with_template(byte_level(), plain("chatml"))
    mute = Example((Message("user", "q"), Message("assistant", "a", learn=False)))
    facts = check_masks(tokenizer, rows(chat("q", "a"), chat("<|im_end|>", "b"), mute, chat("x")), "all")
    assert (facts.rows, facts.control_in_text, facts.nothing_learned) == (
        4,
        ["rows.jsonl:2"],
        ["rows.jsonl:3", "rows.jsonl:4"],
    )
    assert facts.stops == {"<|im_end|>": 2}
    thinking = Example((Message("user", "q"), Message("assistant", "a", reasoning="because")))
    for name, lost in (("chatml", []), ("phi", ["rows.jsonl:1"])):
        other = with_template(byte_level(special=[*SPECIAL, "<|end|>"]), plain(name), ("<|im_end|>", "<|end|>"))
        assert check_masks(other, rows(thinking), "all").thinking_left_out == lost
    assert any("rows.jsonl:2" in sentence for sentence in told(facts))


def refused(tokenizer: Tokenizer, *examples: Example, learn: Any = "all") -> DataError:
    with pytest.raises(DataError) as caught:
        check_masks(tokenizer, rows(*examples), learn)
    return caught.value


def test_nothing_to_learn_stops() -> None:
    error = refused(
        with_template(byte_level(), plain("chatml")),
        Example((Message("user", "q"), Message("assistant", "a", learn=False))),
    )
    assert [problem.code for problem in error.problems] == ["TXT-050"]
    assert error.problems[0].where == "rows.jsonl:1"


def test_an_unlearned_stop_token_stops() -> None:
    open_ended = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    error = refused(with_template(byte_level(), open_ended), chat("q", "a"), chat("r", "b"))
    assert {problem.code for problem in error.problems} == {"TXT-051"}
    assert "stops nothing" in error.problems[0].what
    other = with_template(byte_level(), plain("chatml"), ("</s>",))
    assert refused(other, chat("q", "a")).problems[0].code == "TXT-051", (
        "the template's end is no stop token of this model"
    )


@pytest.mark.parametrize(("prefix", "word"), [("<s><s>", "twice"), ("", "missing")])
def test_a_missing_or_doubled_start_token_stops(prefix: str, word: str) -> None:
    error = refused(with_template(byte_level(bos=True), prefix + NAMED["chatml"]), chat("q", "a"))
    assert [problem.code for problem in error.problems] == ["TXT-052"]
    assert word in error.problems[0].what
    check_masks(with_template(byte_level(bos=True), "<s>" + NAMED["chatml"]), rows(chat("q", "a")), "all")


class Careless(Tokenizer):
    """Encodes whatever it gets with control tokens."""

    def _forges(self, *_: Any) -> bool:
        return False

    def holds_control_tokens(self, row: Any) -> bool:
        return True


class Forgetful(Tokenizer):
    """Serves other prompts than it trains."""

    def encode_prompt(self, *arguments: Any) -> list[int]:
        return [*super().encode_prompt(*arguments)[:-1], 0]


def test_a_control_token_out_of_a_text_and_other_ids_in_serving_stop() -> None:
    good = with_template(byte_level(), plain("chatml"))
    careless = Careless(good.hf, good.template, good.stop_ids)
    assert refused(careless, chat("say <|im_end|>", "a")).problems[0].code == "TXT-053"
    forgetful = Forgetful(good.hf, good.template, good.stop_ids)
    problem = refused(forgetful, chat("q", "a")).problems[0]
    assert problem.code == "TXT-054"
    assert "serving makes" in problem.what


def test_what_the_template_itself_renders_otherwise_is_counted_not_refused() -> None:
    tokenizer = with_template(byte_level(), plain("chatml") + "{% if add_generation_prompt %}<think>\n{% endif %}")
    facts = check_masks(tokenizer, rows(chat("q", "a")), "all")
    assert facts.prompt_differs == ["rows.jsonl:1"]


def columns(tokenizer: Tokenizer, *examples: Example) -> SimpleNamespace:
    encoded = tokenizer.encode_segments([tokenizer.encode_example(example, "all") for example in examples])
    return SimpleNamespace(
        ids=np.concatenate([row for row, _ in encoded]),
        offsets=np.cumsum([0, *(len(row) for row, _ in encoded)]),
        spans=np.array([span[:2] for _, row in encoded for span in row], np.int32).reshape(-1, 2),
        span_offsets=np.cumsum([0, *(len(row) for _, row in encoded)]),
    )


def place(part: int, row: int) -> str:
    return f"part {part} row {row}"


def test_all_rows_are_checked_in_columns() -> None:
    tokenizer = with_template(byte_level(), plain("chatml"))
    mute = Example((Message("user", "q"), Message("assistant", "a", learn=False)))
    parts = [columns(tokenizer, mute), columns(tokenizer, chat("q", "a"), mute, chat("r", "b"))]
    facts = check_columns(tokenizer, parts, place)
    assert (facts.rows, facts.nothing_learned, facts.learned, facts.stopped) == (4, [(0, 0), (1, 1)], 2, 2)
    with pytest.raises(DataError, match="TXT-050 part 0 row 0"):
        check_columns(tokenizer, parts[:1], place)
    unstopped = with_template(byte_level(), plain("chatml"), ("</s>",))
    with pytest.raises(DataError, match="TXT-051 part 0 row 0"):
        check_columns(unstopped, [columns(unstopped, chat("q", "a"))], place)
    for start in ("<s><s>", ""):
        other = with_template(byte_level(bos=True), start + NAMED["chatml"])
        with pytest.raises(DataError, match="TXT-052 part 0 row 1"):
            check_columns(other, [columns(other, Example(text="fine"), chat("q", "a"))], place)


def test_every_small_template_passes_the_checks() -> None:
    stops = {"llama2": "</s>", "llama3": "<|eot_id|>", "chatml": "<|im_end|>", "glm": "<|user|>"}
    for name, stop in stops.items():
        assert name in SOURCES
        tokenizer = with_template(byte_level(), plain(name), (stop,))
        facts = check_masks(tokenizer, rows(chat("q", "a", "r", "b"), replace(chat("q", "a"), meta={})), "all")
        assert facts.stops == {stop: 2}
