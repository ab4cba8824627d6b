"""Rows that are read many at once are the rows that are read one by one: same columns, keys, problems and counts."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tunesmith.stages.prepare import parts, rows
from tunesmith.stages.prepare.alike import Reader
from tunesmith.stages.prepare.reading.reader import PLAIN, parts_of
from tunesmith.stages.prepare.row_keys import content_keys, prompt_keys
from tunesmith.stages.prepare.rows import PartTask, make_part
from tunesmith.text.keys import content_key, prompt_key

QUESTIONS = (
    "Why?",
    "  What is 2 + 2?  ",
    "line\none",
    'say "hi"',
    "tab\there",
    "Größe ẞ",
    "日本語は？",
    "back\\slash",
    "😀",
    "a  b",
    "\x1ca",
    "",
)
ANSWERS = ("Because.", "Vier.", "e\u0301", "\u3000gap", "two\n\nlines", "\x7f")


def chat(number: int, turns: int = 2) -> list[dict[str, str]]:
    talk = [{"role": "system", "content": f"Be brief {number}."}] if number % 3 == 0 else []
    for turn in range(turns // 2):
        talk.append({"role": "user", "content": QUESTIONS[(number + turn) % 11]})
        talk.append({"role": "assistant", "content": ANSWERS[(number * 7 + turn) % 6]})
    return talk


def sharegpt(number: int) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in chat(number, 4)]


FORMS: dict[str, Any] = {
    "messages": lambda n: {"messages": chat(n, 2 + 2 * (n % 4))},
    "messages with more": lambda n: {"id": n, "messages": chat(n), "kind": "ä" if n % 2 else 'b"', "good": n % 2 == 0},
    "sharegpt": lambda n: {"conversations": sharegpt(n)},
    "alpaca": lambda n: {"instruction": QUESTIONS[n % 12], "input": QUESTIONS[-n % 12], "output": ANSWERS[n % 6]},
    "prompt": lambda n: {"prompt": QUESTIONS[n % 12], "completion": ANSWERS[n % 6]},
    "text": lambda n: {"text": QUESTIONS[n % 11]},
}
# Which blocks of other rows are left to the slow way, wholly.
ODD: dict[str, Any] = {
    "tool calls": lambda n: {"messages": [*chat(n)[:-1], {"role": "assistant", "content": "", "tool_calls": []}]},
    "a score": lambda n: {"messages": chat(n), "score": n / 2},
    "a list beside": lambda n: {"messages": chat(n), "tags": ["a"]},
    "a pair": lambda n: {"prompt": "a", "chosen": "b", "rejected": "c"},
    "no answer": lambda n: {"messages": chat(n)[:-1]},
    "an empty answer": lambda n: {"messages": [*chat(n)[:-1], {"role": "assistant", "content": " "}]},
    "an unknown role": lambda n: {
        "messages": [{"role": "User", "content": "a"}, {"role": "assistant", "content": "b"}]
    },
    "images": lambda n: {"messages": chat(n), "image": "a.png"},
}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(lines, asked format) -> ((table, facts) of both ways, rows read at once)."""
    count = 0

    def go(lines: bytes, asked: str = "auto") -> tuple[Any, Any, int]:
        nonlocal count
        count += 1
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(lines)
        (start, end), *more = parts_of(path)
        assert not more
        at_once = []

        class Counting(Reader):
            def __call__(self, lines: bytes, position: int, offset: int) -> Any:
                found = super().__call__(lines, position, offset)
                at_once.append(0 if found is None else len(found))
                return found

        found = []
        for reader in (Counting, lambda asked: None):
            monkeypatch.setattr(rows, "Reader", reader)
            folder = tmp_path / f"{count}-{len(found)}"
            folder.mkdir()
            task = PartTask(0, 0, 0, str(path), start, end, asked, {}, PLAIN, str(folder))
            facts = make_part(task)
            table = parts.open_table(parts.stem_of(folder, 0) / "rows.arrow")
            del facts["hashes"]  # of files with other batches
            found.append((table.combine_chunks(), facts))
        return *found, sum(at_once)

    return go


def lines_of(make: Any, count: int = 60, **how: Any) -> bytes:
    return b"".join(json.dumps(make(number), **how).encode() + b"\n" for number in range(count))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_alike_rows_are_read_at_once_and_are_the_same(read: Any, name: str, ascii_only: bool, end: bytes) -> None:
    quick, slow, at_once = read(lines_of(FORMS[name], ensure_ascii=ascii_only).replace(b"\n", end))
    assert at_once == 60
    assert quick == slow
    assert slow[0].num_rows == 60
    assert slow[1]["bad"] == 0


@pytest.mark.parametrize("name", ODD)
def test_rows_that_are_more_than_texts_are_read_one_by_one(read: Any, name: str) -> None:
    quick, slow, at_once = read(lines_of(ODD[name]))
    assert at_once == 0
    assert quick == slow


@pytest.mark.parametrize(
    ("asked", "at_once"), [("messages", 60), ("sharegpt", 0), ("text", 0), ("chosen", 0), ("pair", 0)]
)
def test_the_format_that_a_source_names_is_kept(read: Any, asked: str, at_once: int) -> None:
    quick, slow, number = read(lines_of(FORMS["messages"]), asked)
    assert number == at_once
    assert quick == slow


BREAKS = (
    b"", b" ", b"\n", b"\r", b"{}", b"}{", b"},\n{", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\ud83d\\ude00", b"\xff", b"\xed\xa0\x80", b"\x00",
    b"\t", b"null", b"1", b"01", b"-0", b"1e2", b"99999999999999999999", b",", b":", b"[", b"]", b'"role":"user",', b"\xef\xbb\xbf", b"\xc2\xa0", b"true", b'{"messages":[]}\n',
)  # fmt: skip


def test_a_changed_byte_anywhere_changes_both_ways_alike(read: Any) -> None:
    draw = random.Random(7)
    kinds: set[tuple[bool, bool]] = set()
    for number in range(400):
        lines = bytearray(lines_of(FORMS[draw.choice(list(FORMS))], 3, ensure_ascii=draw.random() < 0.5))
        for _ in range(draw.choice((1, 1, 2))):
            start = draw.randrange(len(lines))
            lines[start : start + draw.choice((0, 1, 1, 2, 6))] = draw.choice(BREAKS)
        quick, slow, at_once = read(bytes(lines))
        assert quick == slow, (number, bytes(lines))
        kinds.add((at_once > 0, slow[1]["bad"] > 0))
    assert kinds >= {(True, False), (False, True)}, "some are still read at once, some are bad"


def test_two_rows_on_one_line_are_not_taken_for_two_lines(read: Any) -> None:
    one = json.dumps(FORMS["messages"](1)).encode()
    cut = one.index(b":") + 1
    quick, slow, at_once = read(one + b"\n" + one + b" " + one + b"\n" + one[:cut] + b"\n" + one[cut:] + b"\n")
    assert at_once == 0
    assert quick == slow


@pytest.mark.parametrize("name", ["prompt", "text", "messages with more"])
def test_a_row_without_one_of_the_columns_is_read_by_itself(read: Any, name: str) -> None:
    last = list(FORMS[name](1))[-1]
    for gone in ({**FORMS[name](1), last: None}, {key: value for key, value in FORMS[name](1).items() if key != last}):
        quick, slow, at_once = read(lines_of(FORMS[name], 3) + json.dumps(gone).encode() + b"\n")
        assert at_once == 0
        assert quick == slow


def test_keys_of_many_rows_are_those_of_each() -> None:
    draw = np.random.default_rng(3)
    for _ in range(200):
        counts = draw.integers(1, 6, 5)
        turns = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        roles = draw.integers(0, 4, turns[-1]).astype(np.int8)
        roles[turns[1:] - 1] = 2  # in a row of two turns the second one answers, in every order that can be learned
        contents = [QUESTIONS[place] for place in draw.integers(0, 12, turns[-1])]
        if draw.random() < 0.2:
            turns, roles = np.arange(len(contents) + 1, dtype=np.int32), np.full(len(contents), 4, np.int8)
        each = [(roles[a:b].tolist(), contents[a:b]) for a, b in itertools.pairwise(turns)]
        texts = pa.array(contents, pa.utf8())
        assert content_keys(roles, texts, turns) == [content_key(*row) for row in each]
        assert prompt_keys(roles, texts, turns) == [prompt_key(*row) for row in each]


def test_what_differs_has_another_key() -> None:
    same = [([1, 2], ["a", "bc"]), ([1, 2], ["ab", "c"]), ([1, 1], ["a", "bc"]), ([1], ["abc"]), ([1, 2], ["abc", ""])]
    keys = {content_key(*row) for row in same} | {content_key([1, 2], ["a", "bc"], {"tools": [1]})}
    assert len(keys) == len(same) + 1


def test_positions_and_offsets_go_on_over_parts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines_of(FORMS["messages"], 40))
    folder = tmp_path / "parts"
    folder.mkdir()
    task = PartTask(0, 0, 0, str(path), 0, 0, "auto", {}, PLAIN, str(folder))
    lines = path.read_bytes().splitlines(keepends=True)
    for number, (start, end) in enumerate(parts_of(path, 2000)):
        facts = make_part(replace(task, number=number, start=start, end=end))
        table = parts.open_table(parts.stem_of(folder, number) / "rows.arrow")
        assert facts["lines"] == facts["rows"] == table.num_rows
        for offset, row in zip(table["offset"].to_pylist(), table["turns"].to_pylist(), strict=True):
            line = next(text for text in lines if path.read_bytes()[offset:].startswith(text))
            assert [turn["content"] for turn in row] == [turn["content"] for turn in json.loads(line)["messages"]]
    assert number > 2
