"""Plain text: one text a line; blank lines are passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tunesmith.stages.prepare.reading.found import Bad, Parsed, not_utf8, nul_byte, too_long
from tunesmith.stages.prepare.reading.streams import Ended, Line, lines_of


def read_texts(blocks: Iterator[bytes], facts: Counter[str], offset: int = 0) -> Iterator[Parsed | Bad]:
    """{"text": ...} for each line, without its end."""
    position = 0
    lines = lines_of(blocks)
    while True:
        try:
            line = next(lines, None)
        except Ended as ended:
            yield ended.fault.at(position + 1, offset, b"")
            return
        if line is None:
            return
        position += 1
        size = line.size if isinstance(line, Line) else len(line)
        if line and not line.isspace():
            yield _row(line, position, offset)
        else:
            facts["blank_lines"] += 1
        offset += size + 1


def _row(line: bytes, position: int, offset: int) -> Parsed | Bad:
    if isinstance(line, Line):
        return too_long(line.size).at(position, offset, line)
    try:
        text = line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(line, error, "DAT-024").at(position, offset, line)
    if "\x00" in text:
        return nul_byte(text.index("\x00") + 1).at(position, offset, line)
    return Parsed(position, offset, {"text": text})
