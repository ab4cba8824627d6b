"""Rows of every format as columns: what is recognised, what is kept, and what is wrong with it by code."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from tunesmith.text.example import Answer, Example, Message
from tunesmith.text.formats import (
    JUDGED,
    MAKERS,
    READS,
    Evidence,
    FormatProblem,
    learnable,
    tell,
    to_columns,
    to_example,
)
from tunesmith.text.keys import content_key, plain_text, prompt_key

ASK, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
READ_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def turns(row: dict[str, Any], **how: Any) -> list[tuple[str, str]]:
    example, _ = to_example(row, **how)
    return [(message.role, message.content) for message in example.messages]


def test_tools_calls_and_reasoning_are_kept() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "think"}
    answered = {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "add"}
    row = {
        "messages": [{"role": "developer", "content": "s"}, ASK, called, answered, REPLY],
        "tools": [{"name": "add"}],
    }
    example, form = to_example(row)
    assert form == "messages"
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2] == Message("assistant", "", reasoning="think", tool_calls=(READ_CALL,))
    assert example.messages[3] == Message("tool", "1", name="add", tool_call_id="c1")
    assert example.tools == ({"type": "function", "function": {"name": "add"}},)


def test_typed_parts_are_joined_and_reasoning_among_them_is_told_apart() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "output_text", "text": "b"},
    ]
    example, _ = to_example({"messages": [ASK, {"role": "assistant", "content": parts}]})
    assert example.messages[1] == Message("assistant", "ab", reasoning="hm")
    called = [{"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]
    example, _ = to_example({"messages": [ASK, {"role": "assistant", "content": called}]})
    assert example.messages[1].tool_calls[0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]}, ["user", "assistant"]),
        ({"conversations": [ASK, REPLY]}, ["user", "assistant"]),
        ({"conversation": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}], "system": "s"}, ["system", "user", "assistant"]),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]], "system": "s"}, ["system", "user", "assistant", "user", "assistant"]),
        ({"prompt": [ASK], "completion": [REPLY]}, ["user", "assistant"]),
    ],
)  # fmt: skip
def test_dialects_come_to_the_same_roles(row: dict, expected: list[str]) -> None:
    assert [role for role, _ in turns(row)] == expected


def test_sharegpt_turns_that_call_and_observe() -> None:
    said = [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "1"),
        ("gpt", "a"),
    ]
    row = {"conversations": [{"from": who, "value": text} for who, text in said], "tools": '[{"name": "f"}]'}
    example, _ = to_example(row)
    assert [message.role for message in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert example.tools[0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("turn", "learn", "weight"),
    [({"weight": 0}, False, None), ({"weight": 1}, True, None), ({"loss_weight": 0.5}, True, 0.5), ({"train": False}, False, None)],
)  # fmt: skip
def test_what_a_turn_says_of_being_learned(turn: dict, learn: bool, weight: float | None) -> None:
    example, _ = to_example({"messages": [ASK, {**REPLY, **turn}]})
    assert (example.messages[1].learn, example.messages[1].weight) == (learn, weight)


FLAT = "\n\nHuman: q\n\nAssistant: {}"
PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [ASK], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "b"}]},
    {"chosen": [ASK, REPLY], "rejected": [ASK, {"role": "assistant", "content": "b"}]},
    {"prompt": "q", "chosen": [ASK, REPLY], "rejected": [ASK, {"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    {"chosen_messages": [ASK, REPLY], "rejected_messages": [ASK, {"role": "assistant", "content": "b"}]},
    {"chosen": FLAT.format("a"), "rejected": FLAT.format("b")},
    {"question": "q", "response_j": "a", "response_k": "b"},
    {"instruction": "q", "input": "", "output": "a", "chosen": "a", "rejected": "b"},
    {"messages": [ASK, REPLY], "rejected_response": "b"},
    {"input": {"messages": [ASK]}, "preferred_output": [REPLY], "non_preferred_output": [{"role": "assistant", "content": "b"}]},
]  # fmt: skip


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: " ".join(row))
def test_eleven_schemas_of_a_pair_are_one_prompt_and_two_answers(row: dict) -> None:
    example, form = to_example(row)
    assert form == "pair"
    assert example.messages == (Message("user", "q"),)
    assert example.answers == (
        Answer((Message("assistant", "a"),), "chosen"),
        Answer((Message("assistant", "b"),), "rejected"),
    )
    assert turns(row, asked="chosen") == [("user", "q"), ("assistant", "a")]


def test_liked_and_ranked_answers() -> None:
    liked, form = to_example({"messages": [ASK, REPLY], "label": False})
    assert (form, liked.messages, liked.answers[0].label) == ("kto", (Message("user", "q"),), False)
    assert to_example({"prompt": "q", "completion": "a", "label": True})[1] == "kto"
    assert to_example({"messages": [ASK, REPLY], "label": "cat"})[1] == "messages", "a word is a column like others"
    row = {
        "instruction": "q",
        "completions": [{"response": "a", "overall_score": 2}, {"response": "b", "overall_score": 9}],
    }
    ranked, form = to_example(row)
    assert (form, [answer.score for answer in ranked.answers]) == ("ranked", [2.0, 9.0])
    assert turns(row, asked="chosen")[1] == ("assistant", "b")
    assert to_example({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]})[1] == "ranked"


@pytest.mark.parametrize("form", JUDGED)
def test_sft_does_not_learn_from_judged_answers_unasked(form: str) -> None:
    rows = {
        "pair": PAIRS[0],
        "kto": {"prompt": "q", "completion": "a", "label": True},
        "ranked": {"prompt": "q", "responses": ["a"], "scores": [1]},
    }
    with pytest.raises(FormatProblem, match="SFT learns from one answer") as caught:
        learnable(to_columns(rows[form]))
    assert caught.value.code == "TXT-048"
    assert "data.sources" in caught.value.fix
    assert learnable(to_columns(PAIRS[0], "chosen")).roles == [1, 2]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": [ASK, {**REPLY, "tool_calls": [{"function": {"name": "f", "arguments": "{no"}}]}]}, "TXT-006"),
        ({"messages": [ASK, {**REPLY, "tool_calls": [{"function": {}}]}]}, "TXT-006"),
        ({"messages": [ASK, REPLY], "tools": "[no"}, "TXT-042"),
        ({"messages": [ASK, REPLY], "tools": [{"parameters": {}}]}, "TXT-042"),
        ({"messages": [ASK, REPLY], "images": ["a.png"]}, "TXT-041"),
        ({"messages": [ASK, {**REPLY, "weight": "much"}]}, "TXT-040"),
        ({"messages": [ASK, REPLY], "system": 3}, "TXT-008"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}, ASK, REPLY]}, "TXT-016"),
        ({"prompt": "q", "chosen": "a"}, "TXT-043"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "TXT-044"),
        ({"chosen": [ASK, REPLY], "rejected": [{"role": "user", "content": "other"}, REPLY]}, "TXT-045"),
        ({"chosen": "a", "rejected": "b"}, "TXT-045"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "TXT-047"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "TXT-043"),
        ({"chosen": FLAT.format(""), "rejected": FLAT.format("b")}, "TXT-016"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_code(row: dict, code: str) -> None:
    with pytest.raises(FormatProblem) as caught:
        to_columns(row)
    assert caught.value.code == code
    assert caught.value.expected
    assert caught.value.fix


def test_an_unknown_role_is_answered_with_the_likely_one() -> None:
    with pytest.raises(FormatProblem, match="'Assistant '") as caught:
        to_columns({"messages": [ASK, {"role": "Assistant ", "content": "a"}]})
    assert caught.value.fix == "write 'assistant'"


def test_a_mapping_leads_inwards_and_columns_beside_are_kept() -> None:
    row = {"q": "do", "instances": [{"output": "a"}], "id": 7, "nested": {"x": 1}}
    columns = to_columns(row, fields={"instruction": "q", "output": "instances.0.output"})
    assert (columns.contents, columns.meta) == (["do", "a"], {"id": 7})
    with pytest.raises(FormatProblem, match=r"instances\.1\.output"):
        to_columns(row, fields={"instruction": "q", "output": "instances.1.output"})


def test_columns_and_examples_are_inverse_and_equal_content_has_an_equal_key() -> None:
    rows = [
        *PAIRS,
        {"text": "t", "id": 3},
        {"messages": [ASK, {**REPLY, "tool_calls": [CALL], "weight": 0.5}], "tools": [{"name": "f"}]},
    ]
    for row in rows:
        form, *columns = to_columns(row)
        example = Example.from_columns(*columns)
        assert example.to_columns() == tuple(columns), form
        stored = orjson.loads(orjson.dumps(columns))
        assert Example.from_columns(*stored) == example
        assert Example.from_json(json.loads(json.dumps(example.to_json()))).to_columns()[:3] == tuple(columns[:3])
        assert example.content_hash() == content_key(*columns[:3]).hex()
    one, same = to_columns({"instruction": "q", "output": "a"}), to_columns({"messages": [ASK, REPLY]})
    assert content_key(*one[1:4]) == content_key(*same[1:4]), "the format is no part of it"
    learned = to_columns({"messages": [ASK, {**REPLY, "train": False}]})
    assert content_key(*learned[1:4]) != content_key(*same[1:4])
    assert content_key([1, 2], ["a", "bc"]) != content_key([1, 2], ["ab", "c"])


def test_prompts_are_equal_but_for_case_and_blanks() -> None:
    def key(question: str) -> bytes:
        return prompt_key([1, 2], [question, "a"])

    assert key("where  is x") == key(" where is x"), "one line, nothing but blanks"
    assert key("Where  is\nX ?") == key(" where is x ?") != key("whereis x?")
    assert plain_text("A\u00a0b\u3000c\x1fd ") == " ".join("A\u00a0b\u3000c\x1fd ".lower().split())
    pair = to_columns(PAIRS[0])
    assert prompt_key(*pair[1:4]) == key("q"), "the prompt of a pair is its question"


def test_an_empty_answer_is_seen_on_the_short_way_too() -> None:
    to_columns({"messages": [ASK, REPLY]})
    for empty in ("", " \n"):
        with pytest.raises(FormatProblem, match="is empty"):
            to_columns({"messages": [ASK, {"role": "assistant", "content": empty}]})


def test_evidence_says_which_columns_were_read_and_which_not() -> None:
    evidence = Evidence()
    for row in ({"text": "a", "id": 1}, {"text": "b"}, {"frage": "q", "antwort": "a"}):
        fields = {"prompt": "frage", "completion": "antwort"} if "frage" in row else None
        evidence.note(to_columns(row, fields=fields).format, row, fields)
    assert evidence.to_json()["text"] == {"rows": 2, "read": {"text": 2}, "others": {"id": 1}}
    recognised, unread = tell([evidence.to_json(), evidence.to_json()])
    assert recognised == "text 4 by text; prompt_completion 2 by prompt, completion"
    assert unread == "id (2)"


def test_the_short_way_and_the_long_way_give_the_same() -> None:
    rows = [
        {"messages": [ASK, REPLY]}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "ä"}]},
        {"instruction": "q", "input": "i", "output": "a"}, {"prompt": "q", "completion": "a"}, {"question": "q", "answer": "a"},
    ]  # fmt: skip
    for row in rows:
        to_columns(row)  # an order of roles is learned by the first row that has it
        columns = to_columns(row)
        assert MAKERS[columns.format](row) == columns[1:4]
    assert set(MAKERS) == set(READS)


def test_real_sets_are_recognised_whole(test_data: Path) -> None:
    expected = {
        "preference/dpo_en_demo.json": {"pair": 300}, "preference/kto_en_demo.json": {"kto": 300},
        "preference/hh_rlhf_harmless_half.jsonl.gz": {"pair": 1153, "TXT-016": 3}, "preference/v1_dpo_demo.jsonl": {"pair": 10},
        "preference/rasbt_instruction_preference.json": {"pair": 1094, "TXT-044": 6},
        "preference/stack_exchange_paired_tiny.json": {"pair": 25}, "chat/glaive_toolcall_en_demo.json": {"sharegpt": 300},
        "chat/v1_sft_demo.jsonl": {"messages": 500}, "multimodal/mllm_demo.json": {"TXT-041": 6},
    }  # fmt: skip
    for name, counts in expected.items():
        path = test_data / "data" / name
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = orjson.loads(data) if ".jsonl" not in name else map(orjson.loads, data.splitlines())
        found: Counter[str] = Counter()
        for row in rows:
            try:
                found[to_columns(row).format] += 1
            except FormatProblem as problem:
                found[problem.code] += 1
        assert found == counts, name
