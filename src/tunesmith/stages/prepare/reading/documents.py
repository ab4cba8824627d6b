"""JSON documents: an array of rows, or an object with the list of rows somewhere inside; a broken row costs no other."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tunesmith.errors import DataError, QuestionError
from tunesmith.stages.prepare.reading.files import shown
from tunesmith.stages.prepare.reading.found import MAX_LINE_BYTES, Bad, Fault, Parsed, too_long
from tunesmith.stages.prepare.reading.json_rows import checked, needs_a_look, parse
from tunesmith.stages.prepare.reading.streams import Ended, blocks_of
from tunesmith.text.formats import recognise
from tunesmith.text.turns import FormatProblem

WHOLE_BYTES = 64 * 1024**2  # larger documents are gone through element by element
UNPACKED_BYTES = 2 * 1024**3
STRINGS_AND_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
SEARCHED_LEVELS = 4

Buffer = bytes | mmap.mmap


def read_document(path: Path, file: BinaryIO, at: str | None, facts: Counter[str]) -> Iterator[Parsed | Bad]:
    """Rows by index from 0. at: path to the list, keys with dots between. Raises QuestionError DAT-009, DataError DAT-004."""
    data, ended = _bytes_of(path, file, facts)
    found = _whole(data) if len(data) <= WHOLE_BYTES and ended is None else None
    if found is not None:
        rows = _rows_in(found[0], at, path)
        yield from (Parsed(index, -1, row) for index, row in enumerate(rows))
        return
    count = 0
    for index, (start, end) in enumerate(_elements(data, _list_start(data, at, path))):
        count = index + 1
        if end - start > MAX_LINE_BYTES:
            yield too_long(end - start).at(index, start, data[start : start + 2048])
            continue
        yield _placed(parse(data[start:end], index, start, is_last=end >= len(data)), data)
    if ended is not None:
        yield ended.fault.at(count, len(data), b"")
    elif not count:
        try:
            checked(data[: MAX_LINE_BYTES + 1])
        except Fault as fault:
            yield _placed(fault.at(0, 0, data[:2048]), data)


def is_array(head: bytes) -> bool:
    """Of a file that is called JSON Lines: whether it is one array, and not a list a line."""
    start = head.lstrip()
    if not start.startswith(b"["):
        return False
    first, _, rest = start.partition(b"\n")
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return True
    return not rest.strip()


def is_lines(head: bytes) -> bool:
    """Of a file that is called JSON: whether each line is an object of its own."""
    first, _, rest = head.lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.lstrip().startswith(b"{"):
        return False
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return True


def _bytes_of(path: Path, file: BinaryIO, facts: Counter[str]) -> tuple[Buffer, Ended | None]:
    """The document; a large file is mapped, not read."""
    size = file.seek(0, 2)
    file.seek(0)
    if size > WHOLE_BYTES and path.suffix.lower() not in (".gz", ".bz2", ".zst"):
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), None
    pieces, total = [], 0
    try:
        for block in blocks_of(path, file, facts):
            pieces.append(block)
            total += len(block)
            if total > UNPACKED_BYTES:
                raise DataError(
                    "DAT-040",
                    f"{shown(path.name)} unpacks to more than {UNPACKED_BYTES / 2**30:.0f} GiB in one document",
                    where="data.sources",
                    expected="JSON Lines, which are read in pieces",
                    fix=f"unpack it, then: jq -c '.[]' {shown(path.stem)} > rows.jsonl",
                )
    except Ended as ended:
        return b"".join(pieces), ended
    return b"".join(pieces), None


def _whole(data: Buffer) -> tuple[Any] | None:
    """The parsed document, where nothing is wrong with any of it."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return None if needs_a_look(bytes(data), [value]) else (value,)


def _rows_in(value: Any, at: str | None, path: Path) -> list[Any]:
    if at is not None:
        return _at(value, at, path)
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or _is_row(value):
        return [value]
    lists = dict(_lists(value, "", 0))
    if len(lists) > 1:
        raise _which_list(path, lists)
    return next(iter(lists.values()), [value])


def _is_row(value: dict[str, Any]) -> bool:
    try:
        recognise(value)
    except FormatProblem:
        return False
    return True


def _lists(value: dict[str, Any], path: str, level: int) -> Iterator[tuple[str, list[Any]]]:
    """Lists of objects within objects, by their path."""
    for key, child in value.items():
        here = f"{path}.{key}" if path else key
        if isinstance(child, list) and child and isinstance(child[0], dict):
            yield here, child
        elif isinstance(child, dict) and level < SEARCHED_LEVELS:
            yield from _lists(child, here, level + 1)


def _at(value: Any, at: str, path: Path) -> list[Any]:
    known: list[str] = []
    for step in at.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            known = list(value) if isinstance(value, dict) else []
            value = None
            break
    if isinstance(value, list):
        return value
    raise DataError(
        "DAT-036",
        f"{shown(path.name)} has no list at {at}",
        where="data.sources.at",
        expected=f"one of: {', '.join(known)}"[:300] if known else "the path to a list",
        fix="write the keys that lead to the list of rows, with dots between",
    )


def _which_list(path: Path, lists: dict[str, list[Any]]) -> QuestionError:
    told = [f"{name} ({len(rows):,} rows)" for name, rows in lists.items()]
    return QuestionError(
        "DAT-009",
        f"{shown(path.name)} holds {len(lists)} lists of objects: {', '.join(told)[:400]}",
        where="data.sources.at",
        expected="the path to the list whose elements are the rows",
        fix=f"data.sources: [{{path: ..., at: {next(iter(lists))}}}]",
    )


# ---------------------------------------------------------------------------------------------------- element by element


def _list_start(data: Buffer, at: str | None, path: Path) -> int:
    """Where the bracket of the list stands in a document that cannot be parsed whole."""
    start = re.compile(rb"\s*\[").match(data)
    if start and at is None:
        return start.end() - 1
    candidates = {name: place for name, place in _places(data)}
    if at is not None:
        if at not in candidates:
            raise DataError(
                "DAT-036",
                f"{shown(path.name)} has no list at {at}",
                where="data.sources.at",
                expected=f"one of: {', '.join(candidates)}"[:300],
                fix="write the keys that lead to the list of rows, with dots between",
            )
        return candidates[at]
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    return -1


def _places(data: Buffer) -> Iterator[tuple[str, int]]:
    """(path, place) of lists of objects within objects of a broken or large document, found by strings and brackets alone."""
    path: list[str] = []  # key of each open object; "" for the outermost
    key, inside = "", 0  # inside: brackets open within a list that was told
    for token in STRINGS_AND_BRACKETS.finditer(data):
        first = data[token.start()]
        if inside:
            inside += first in b"[{"
            inside -= first in b"]}"
        elif first == 0x22:
            key = token[0][1:-1].decode("utf-8", "replace")
        elif first == 0x7B:
            path.append(key)
        elif first == 0x7D:
            path = path[:-1]
        elif first == 0x5B:
            if data[token.end() : token.end() + 64].lstrip()[:1] == b"{":
                yield ".".join([*path[1:], key]), token.start()
            inside = 1


def _elements(data: Buffer, start: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the elements of the array whose bracket stands at `start`, found by strings and brackets alone.

    start: -1: the document is one element.
    """
    if start < 0:
        return
    depth, begin = 0, -1
    for token in STRINGS_AND_BRACKETS.finditer(data, start):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth == 2:
                begin = token.start()
        elif first in b"]}":
            depth -= 1
            if depth == 1 and begin >= 0:
                yield begin, token.end()
                begin = -1
            elif depth <= 0:
                return
        elif depth == 1:
            yield token.start(), token.end()  # a text where a row should stand
    if begin >= 0:
        yield begin, len(data)


def _placed(row: Parsed | Bad, data: Buffer) -> Parsed | Bad:
    """A problem within a document names its line too: the index is hard to count by eye."""
    if isinstance(row, Parsed):
        return row
    line = data[: row.offset].count(b"\n") + 1 if isinstance(data, bytes) else 0
    return row._replace(what=f"{row.what} (element {row.position}, from line {line})") if line else row
