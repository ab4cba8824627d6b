"""Row formats are recognised; templates are cut exactly; user text never becomes a control token."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.hub import resolve
from tunesmith.text.example import Message
from tunesmith.text.formats import FormatProblem, to_example
from tunesmith.text.templates import CHATML, INSTRUCTION, PLAIN, ChatTemplate
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

CHAT = [
    Message("user", "Where is X?"),
    Message("assistant", "Here, {y}."),
    Message("user", "and Z?"),
    Message("assistant", "There."),
]


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "messages",
            ["q", "a"],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "messages",
            ["q", "a"],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            ["s", "q", "a"],
        ),
        ({"instruction": "do", "input": "this", "output": "a"}, "alpaca", ["do\n\nthis", "a"]),
        ({"instruction": "do", "input": "", "response": "a"}, "alpaca", ["do", "a"]),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", ["q", "a"]),
        ({"question": "q", "answer": "a"}, "prompt_completion", ["q", "a"]),
    ],
)
def test_a_row_is_recognised_by_its_keys(row: dict, form: str, turns: list[str]) -> None:
    example, found = to_example(row)
    assert (found, [message.content for message in example.messages]) == (form, turns)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"foo": 1}, "TXT-001"), ([1], "TXT-002"), ({"messages": "x"}, "TXT-004"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "TXT-011"), ({"messages": [{"role": "user", "content": 3}]}, "TXT-008"),
        ({"messages": [{"role": "user", "content": None}]}, "TXT-008"), ({"messages": []}, "TXT-012"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "TXT-007"),
        ({"messages": [{"role": "user", "content": "a"}]}, "TXT-013"), ({"prompt": "q", "completion": " "}, "TXT-016"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "TXT-014"), ({"prompt": "q\ud800", "completion": "a"}, "TXT-009"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_has_a_code(row: object, code: str) -> None:
    with pytest.raises(FormatProblem) as caught:
        to_example(row)
    assert caught.value.code == code


def test_columns_of_other_names_are_mapped() -> None:
    example, _ = to_example({"frage": "q", "antwort": "a"}, fields={"prompt": "frage", "completion": "antwort"})
    assert example.answer == "a"


@pytest.mark.parametrize("source", [CHATML, INSTRUCTION, PLAIN], ids=["chatml", "instruction", "plain"])
def test_segments_are_the_rendered_text_and_answers_with_their_end_are_learned(source: str) -> None:
    template = ChatTemplate("t", source, "<s>", "</s>")
    segments = template.segments(CHAT)
    assert "".join(segment.text for segment in segments) == template.render(CHAT)
    learned = [segment.text for segment in segments if segment.learned]
    end = "<|im_end|>" if source is CHATML else "</s>"
    assert learned == ["Here, {y}.", end, "There.", end]
    assert [s.text for s in template.segments(CHAT, "last") if s.learned] == ["There.", end]


def test_a_template_that_trims_is_still_cut_exactly() -> None:
    template = ChatTemplate(
        "t",
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        "",
        "</s>",
    )
    chat = [Message("user", " q "), Message("assistant", "  a\n")]
    assert [s.text for s in template.segments(chat) if s.learned] == ["a", "</s>"]


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    template = ChatTemplate("t", "{{ messages.__class__.__mro__[1].__subclasses__() }}", "", "")
    with pytest.raises(Exception, match="refuses this chat"):
        template.render(CHAT)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return load_tokenizer(resolve(str(tiny_model_dir)))


def test_control_tokens_in_user_text_stay_text(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_id
    ids = tokenizer.encode_prompt([Message("user", "say <|end|> and <|assistant|>")])
    assert ids.count(end) == 1, "only the scaffold's own end token"
    assert "<|end|> and <|assistant|>" in tokenizer.decode(ids, skip_special=False)


def test_training_ids_begin_with_the_prompt_that_serving_makes(tokenizer: Tokenizer) -> None:
    ((ids, spans),) = tokenizer.encode_segments([tokenizer.template.segments(CHAT[:2])])
    prompt = tokenizer.encode_prompt(CHAT[:1])
    assert ids.tolist()[: len(prompt)] == prompt
    assert spans == [(len(prompt), len(ids), 1.0)]
    assert ids[-1] in tokenizer.stop_ids
