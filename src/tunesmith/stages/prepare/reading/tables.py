"""CSV and TSV: the first line names the columns, and every cell is text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import DataError
from tunesmith.stages.prepare.reading.files import shown
from tunesmith.stages.prepare.reading.found import MAX_LINE_BYTES, Bad, Fault, Parsed, not_utf8, nul_byte
from tunesmith.stages.prepare.reading.streams import Ended, lines_of

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


class _Lines:
    """Lines as text for the csv module, with the line number of the row that is being read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.lines = lines_of(blocks)
        self.count = 0
        self.pending: list[str] = []
        self.ended: Ended | None = None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.pending:
            return self.pending.pop()
        try:
            line = next(self.lines)
        except Ended as ended:
            self.ended = ended
            raise StopIteration from None
        self.count += 1
        return line.decode("utf-8", "surrogateescape") + "\n"


def read_table(path: Path, blocks: Iterator[bytes], suffix: str, facts: Counter[str]) -> Iterator[Parsed | Bad]:
    """Rows by the line that they begin on. The delimiter is the one that the header holds most, and is told in `facts`.

    Raises DataError DAT-029 for a header that names no columns or one twice.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(blocks)
    first = next(lines, "")
    if not first.strip():
        return
    delimiter = "\t" if suffix == ".tsv" else max(DELIMITERS, key=first.count)
    facts[f"separator_{DELIMITERS[delimiter]}"] += 1
    lines.pending.append(first)
    lines.count = 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(path, reader, delimiter)
    lines.count = reader.line_num
    while True:
        line = lines.count + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _bad_quotes(str(error)).at(line, -1, b"")
            if lines.ended is None:
                continue
            cells = None
        if cells is None:
            break
        if not cells:
            facts["blank_lines"] += 1
            continue
        yield _row(header, cells, line, delimiter)
    if lines.ended is not None:
        yield lines.ended.fault.at(lines.count + 1, -1, b"")


def _header(path: Path, reader: Iterator[list[str]], delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise _bad_header(path, f"its quotes are not balanced: {error}") from error
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise _bad_header(path, f"names the column {twice!r} twice" if twice else "has columns without a name")
    if any("\udc80" <= char <= "\udcff" for name in names for char in name):
        raise _bad_header(
            path, "is not UTF-8", "convert the whole file: iconv -f latin1 -t utf-8 FILE > NEW (or from what it is)"
        )
    if any("\n" in name or len(name) > 200 for name in names):
        raise _bad_header(path, "looks like a row, not like names")
    return names


def _bad_header(path: Path, why: str, fix: str = "") -> DataError:
    return DataError(
        "DAT-029",
        f"the header of {shown(path.name)} (line 1) {why}",
        where="data.sources",
        expected="a first line with one name for each column",
        fix=fix or "mend the first line, or put one in front: prompt,completion",
    )


def _bad_quotes(why: str) -> Fault:
    return Fault(0, "DAT-021", f"not a row of the table: {why}", "balanced quotes", "mend the quotes")


def _row(header: list[str], cells: list[str], line: int, delimiter: str) -> Parsed | Bad:
    raw = delimiter.join(cells)
    if not raw.isascii():
        escaped = raw.encode("utf-8", "surrogateescape")
        try:
            escaped.decode()
        except UnicodeDecodeError as error:
            return not_utf8(escaped, error, "DAT-022").at(line, -1, escaped)
    if "\x00" in raw:
        return nul_byte(0).at(line, -1, raw.encode())
    if len(cells) != len(header):
        what = f"{len(cells)} cells, the header has {len(header)}"
        fault = Fault(0, "DAT-023", what, f"columns {', '.join(header)}"[:200], "quote cells that hold the delimiter")
        return fault.at(line, -1, raw.encode())
    return Parsed(line, -1, dict(zip(header, cells, strict=True)))
