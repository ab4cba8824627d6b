"""JSON Lines: in blocks, each byte once; a block whose rows are all plain takes the short way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tunesmith.stages.prepare.reading.files import open_file
from tunesmith.stages.prepare.reading.found import MAX_LINE_BYTES, RAW_BYTES, Bad, Parsed, too_long
from tunesmith.stages.prepare.reading.json_rows import needs_a_look, parse
from tunesmith.stages.prepare.reading.streams import BLOCK, Ended, blocks_of

_loads, _new = orjson.loads, tuple.__new__

Take = Callable[[bytes, int, int], Any]
"""(whole lines, position of the first, offset of the first) -> these rows in columns, or None: read them one by one."""


def parts_of(path: Path, part_bytes: int) -> list[tuple[int, int]]:
    """(start, end) of stretches of at least `part_bytes` that end with a line."""
    with open_file(path) as file:
        size = file.seek(0, 2)
        parts, start = [], 0
        while size - start > part_bytes:
            end = _line_end(file, start + part_bytes - 1)
            parts.append((start, end))
            start = end
    return [*parts, (start, size)] if start < size or not parts else parts


def _line_end(file: BinaryIO, place: int) -> int:
    """Behind the first line end at or after a place; the file's end where there is none. Holds one block."""
    file.seek(place)
    while block := file.read(BLOCK):
        found = block.find(b"\n")
        if found >= 0:
            return place + found + 1
        place += len(block)
    return place


def read_stretch(
    path: Path, file: BinaryIO, start: int, end: int, facts: Counter[str], take: Take | None = None
) -> Iterator[Any]:
    """The rows of one stretch; positions from 1 at its first line, offsets those of the file. take: see read_lines."""
    if start == 0:
        blocks = blocks_of(path, _Stretch(file, end), facts)  # type: ignore[arg-type]
        mark = len(b"\xef\xbb\xbf") * _has_mark(file)
        file.seek(0)
        yield from read_lines(blocks, facts, mark, take)
    else:
        file.seek(start)
        stretch = _Stretch(file, end - start)
        yield from read_lines(iter(lambda: stretch.read(BLOCK), b""), facts, start, take)


def _has_mark(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(3) == b"\xef\xbb\xbf"


class _Stretch:
    """The next `left` bytes of a file."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self.file, self.left = file, left

    def read(self, size: int) -> bytes:
        block = self.file.read(min(size, self.left))
        self.left -= len(block)
        return block


def read_lines(
    blocks: Iterator[bytes], facts: Counter[str], offset: int = 0, take: Take | None = None
) -> Iterator[Any]:
    """Parsed | Bad, the rows of a stream of bytes; with `take` also what it makes of many rows at once.

    facts: "lines" and "blank_lines" are counted. offset: of its first byte. A damaged stream gives the rows that could be
    read, and a Bad at its end.
    """
    position, carry = 0, b""
    ended: Ended | None = None
    skipped = 0  # bytes of a line that is too long to be kept
    while ended is None:
        try:
            block = next(blocks, b"")
        except Ended as found:
            ended, block = found, b""
        if not block:
            break
        cut = block.rfind(b"\n") + 1
        if not cut:
            if skipped:
                skipped += len(block)
            else:
                carry += block
                if len(carry) > MAX_LINE_BYTES:
                    carry, skipped = carry[:RAW_BYTES], len(carry)
            continue
        if skipped:
            first = block.index(b"\n") + 1
            position += 1
            skipped += first
            yield too_long(skipped - 1).at(position, offset, carry)
            offset += skipped
            block, cut, carry, skipped = block[first:], cut - first, b"", 0
        whole = carry + block[:cut] if carry else block[:cut]
        carry = block[cut:]
        if whole:
            at_once = take(whole, position + 1, offset) if take is not None else None
            if at_once is not None:
                yield at_once
            else:
                yield from list(_block(whole, position, offset, facts))
            position += whole.count(b"\n")
            offset += len(whole)
    facts["lines"] += position
    if skipped:
        yield too_long(skipped).at(position + 1, offset, carry)
        position += 1
    elif carry:
        facts["lines"] += 1
        if carry.isspace():
            facts["blank_lines"] += 1
        elif ended is None:
            yield parse(carry, position + 1, offset, is_last=True)
            position += 1
    if ended is not None:
        # The row that the damage cuts in two is named with it.
        yield ended.fault.at(position + 1, offset, carry)


def _block(block: bytes, position: int, offset: int, facts: Counter[str]) -> Iterator[Parsed | Bad]:
    """The rows of whole lines."""
    if block.isspace():  # a gigabyte of blank lines fits into a packed megabyte
        facts["blank_lines"] += block.count(b"\n")
        return
    rows: list[tuple[int, int, bytes]] = []
    values = []
    for line in block.split(b"\n")[:-1]:
        position += 1
        if line and not line.isspace():
            rows.append((position, offset, line))
        else:
            facts["blank_lines"] += 1
        offset += len(line) + 1
    try:
        values = [_loads(line) for _, _, line in rows]
    except orjson.JSONDecodeError:
        values = None
    if values is None or len(block) > MAX_LINE_BYTES or needs_a_look(block, values):
        for position, offset, line in rows:
            yield parse(line, position, offset)
        return
    for (position, offset, _), value in zip(rows, values, strict=True):
        yield _new(Parsed, (position, offset, value))
