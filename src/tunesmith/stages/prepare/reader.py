"""From bytes to parsed rows or coded problems, one position at a time: a bad row never costs another.

JSON Lines, JSON, CSV, TSV and text, plain or gzipped, are read here; Parquet goes through `frames`.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tunesmith.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
MAX_LINE_BYTES = 8 * 1024**2
MAX_DEPTH = 64
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"<!DO": "an HTML page",
    b"<htm": "an HTML page",
}


@dataclass(frozen=True)
class Parsed:
    """position: line (from 1), or index (from 0) in a JSON array or table. offset: of its first byte, -1 unknown."""

    position: int
    offset: int
    value: Any


@dataclass(frozen=True)
class Bad:
    """A position that could not be read; raw: its first bytes as text. column: from 1, 0 unknown."""

    position: int
    offset: int
    column: int
    code: str
    what: str
    expected: str
    fix: str
    raw: str


def files_of(path: str) -> list[Path]:
    """The files of a source: itself, a folder's, or a glob's, sorted. Raises DataError DAT-001 when there is none."""
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [file for file in sorted(root.rglob("*")) if file.is_file() and _suffix(file) in SUFFIXES]
    else:
        found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if Path(name).is_file()]
    if not found:
        kind = "holds no file that can be read" if root.is_dir() else "does not exist"
        raise DataError(
            "DAT-001",
            f"{path} {kind}",
            where="data.sources",
            expected=f"a file, folder or glob of {' '.join(SUFFIXES)} (also .gz)",
            fix="check the path; a relative one starts at the recipe's folder",
        )
    return found


class Part(NamedTuple):
    """A stretch of a file that is read alone. end: -1 where the file is read whole."""

    start: int
    end: int


PART_BYTES = 32 * 1024**2


def parts_of(path: Path, part_bytes: int = PART_BYTES) -> list[Part]:
    """JSON Lines in stretches that end with a line; every other kind in one."""
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return [Part(0, -1)]
    size = path.stat().st_size
    parts, start = [], 0
    with path.open("rb") as file:
        while size - start > part_bytes:
            file.seek(start + part_bytes - 1)
            file.readline()
            parts.append(Part(start, file.tell()))
            start = file.tell()
    return [*parts, Part(start, size)] if start < size or not parts else parts


def read_part(path: Path, start: int, end: int) -> Iterator[Parsed | Bad]:
    """The positions of one part, counted from the part's beginning (lines from 1); offsets are those of the file."""
    if end < 0 or (start == 0 and end == path.stat().st_size):
        yield from read_rows(path)
        return
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    for row in _lines(data):
        yield replace(row, offset=row.offset + start)


def read_rows(path: Path) -> Iterator[Parsed | Bad]:
    """Every position of a file in order. Raises DataError DAT-002 for files that cannot be opened or are of no kind."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        # Here and not above: hashing sources needs no daft.
        from tunesmith.stages.prepare.frames import read_parquet

        for index, row in enumerate(read_parquet(path)):
            yield Parsed(index, -1, row)
        return
    data, problem = _bytes(path)
    if suffix in (".jsonl", ".ndjson"):
        yield from _lines(data)
    elif suffix == ".json":
        yield from _json(data)
    elif suffix in (".csv", ".tsv"):
        yield from _table(data, suffix)
    elif suffix == ".txt":
        yield from _texts(data)
    else:
        raise DataError(
            "DAT-002",
            f"{path.name} is of no known kind",
            where="data.sources",
            expected=" ".join(SUFFIXES),
            fix="rename the file by its content, or convert it to .jsonl",
        )
    if problem is not None:
        yield problem


def _suffix(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return Path(name).suffix.lower()


def _bytes(path: Path) -> tuple[bytes, Bad | None]:
    """The file's bytes without a byte order mark; a damaged gzip gives what could be read and a problem at its end."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            "DAT-003",
            f"{path} cannot be read: {error.strerror}",
            where="data.sources",
            expected="a readable file",
            fix="check its rights",
        ) from error
    problem = None
    if path.suffix == ".gz":
        data, problem = _gunzip(data)
    for magic, kind in MAGIC.items():
        if data.startswith(magic):
            raise DataError(
                "DAT-004",
                f"{path.name} is really {kind}",
                where="data.sources",
                expected=f"what its name says ({_suffix(path)})",
                fix="fetch or unpack the file again, or rename it by its content",
            )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            "DAT-005",
            f"{path.name} is UTF-16",
            where="data.sources",
            expected="UTF-8",
            fix=f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}",
        )
    return data.removeprefix(b"\xef\xbb\xbf"), problem


def _gunzip(data: bytes) -> tuple[bytes, Bad | None]:
    out = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(1 << 20):
                out.write(chunk)
    except (EOFError, OSError, zlib.error) as error:
        found = out.getvalue()
        position = found.count(b"\n") + 1
        return found, Bad(
            position,
            len(found),
            0,
            "DAT-010",
            f"the gzip stream is damaged: {error}",
            "a whole file",
            "fetch it again",
            "",
        )
    return out.getvalue(), None


# ---------------------------------------------------------------------------------------------------------- JSON Lines


def _lines(data: bytes) -> Iterator[Parsed | Bad]:
    offset = 0
    lines = data.split(b"\n")
    last = len(lines)
    for position, line in enumerate(lines, 1):
        if line.strip():
            yield _parse(line.rstrip(b"\r"), position, offset, is_last=position == last)
        offset += len(line) + 1


def _parse(line: bytes, position: int, offset: int, *, is_last: bool = False) -> Parsed | Bad:
    if len(line) > MAX_LINE_BYTES:
        return _bad(
            line,
            position,
            offset,
            0,
            "DAT-011",
            f"{len(line):,} bytes in one row",
            f"at most {MAX_LINE_BYTES:,}",
            "split the row",
        )
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _diagnose(line, position, offset, is_last)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return _bad(
            line, position, offset, 0, "DAT-012", "nested too deeply", f"at most {MAX_DEPTH} levels", "flatten the row"
        )
    return Parsed(position, offset, value)


def _diagnose(line: bytes, position: int, offset: int, is_last: bool) -> Parsed | Bad:
    """The slow path: say what is wrong with a line that the fast parser refused."""

    def bad(column: int, code: str, what: str, expected: str, fix: str) -> Bad:
        return _bad(line, position, offset, column, code, what, expected, fix)

    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        guess = " (looks like Latin-1)" if line[error.start] >= 0xA0 else ""
        what = f"byte 0x{line[error.start]:02x} is not UTF-8{guess}"
        return bad(error.start + 1, "DAT-013", what, "UTF-8", "iconv -f LATIN1 -t UTF-8, or leave the row out")
    if "\x00" in text:
        return bad(text.index("\x00") + 1, "DAT-014", "a NUL byte", "text", "remove it: tr -d '\\000'")
    surrogate = re.search(
        r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", text
    )
    try:
        value = json.loads(text)
    except RecursionError:
        return bad(0, "DAT-012", "nested too deeply", f"at most {MAX_DEPTH} levels", "flatten the row")
    except ValueError as error:
        column = getattr(error, "colno", 0)
        reason = getattr(error, "msg", str(error))
        if reason == "Extra data":
            return bad(
                column,
                "DAT-015",
                "something follows the row's end",
                "one object a line",
                "put each object on its own line",
            )
        if is_last and not text.rstrip().endswith(("}", "]")):
            return bad(
                column,
                "DAT-016",
                "the last line is cut off",
                "a whole row",
                "is the file still being written? fetch it again",
            )
        if re.match(r"\s*\{\s*'", text):
            return bad(
                column,
                "DAT-017",
                "quotes of Python, not of JSON",
                'double quotes: {"a": 1}',
                "write rows with json.dumps",
            )
        return bad(column, "DAT-018", f"not JSON: {reason}", "one JSON object a line", "mend or remove the row")
    if surrogate:
        what = "half a character (a lone surrogate)"
        return bad(
            surrogate.start() + 1,
            "DAT-019",
            what,
            "whole Unicode characters",
            "write the row again from the intact text",
        )
    if re.search(r"\b(NaN|-?Infinity)\b", text):
        return bad(0, "DAT-020", "NaN or Infinity, which JSON does not have", "a number or null", "write null")
    return Parsed(position, offset, value)


def _bad(line: bytes, position: int, offset: int, column: int, code: str, what: str, expected: str, fix: str) -> Bad:
    return Bad(position, offset, column, code, what, expected, fix, line[:2048].decode("utf-8", "replace"))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


# ---------------------------------------------------------------------------------------------------------------- JSON


def _json(data: bytes) -> Iterator[Parsed | Bad]:
    """A list of rows, or an object with one list of rows. A broken element is passed over at its closing bracket."""
    try:
        rows = _list_of(orjson.loads(data))
    except orjson.JSONDecodeError:
        for index, (start, end) in enumerate(_elements(data)):
            yield _parse(data[start:end], index, start)
        return
    for index, row in enumerate(rows):
        yield Parsed(index, -1, row)


def _list_of(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    lists = [child for child in value.values() if isinstance(child, list)] if isinstance(value, dict) else []
    return lists[0] if len(lists) == 1 and "messages" not in value and "conversations" not in value else [value]


def _elements(data: bytes) -> Iterator[tuple[int, int]]:
    """Byte ranges of the elements of the outermost array, found by brackets and quotes alone."""
    depth, start, in_string, escaped = 0, -1, False, False
    for place, byte in enumerate(data):
        if in_string:
            escaped = byte == 0x5C and not escaped
            if byte == 0x22 and data[place - 1 : place] != b"\\":
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth == 2:
                start = place
        elif byte in b"]}":
            depth -= 1
            if depth == 1 and start >= 0:
                yield start, place + 1
                start = -1
    if start >= 0:
        yield start, len(data)


# -------------------------------------------------------------------------------------------------- tables and text


def _table(data: bytes, suffix: str) -> Iterator[Parsed | Bad]:
    """CSV or TSV with a header line; every cell is text. The delimiter is the one of , ; tab that the header holds most."""
    text = data.decode("utf-8", "surrogateescape")
    header_line = text.split("\n", 1)[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = next(reader, [])
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Bad(
                line, -1, 0, "DAT-021", f"not a row of the table: {error}", "balanced quotes", "mend the quotes", ""
            )
            continue
        if cells is None:
            return
        if not cells:
            continue
        raw = delimiter.join(cells).encode("utf-8", "surrogateescape")
        if any("\udc80" <= char <= "\udcff" for cell in cells for char in cell):
            yield _bad(
                raw,
                line,
                -1,
                0,
                "DAT-022",
                "bytes that are not UTF-8",
                "UTF-8",
                "iconv -f LATIN1 -t UTF-8, or leave the row out",
            )
        elif len(cells) != len(header):
            what = f"{len(cells)} cells, the header has {len(header)}"
            yield _bad(
                raw, line, -1, 0, "DAT-023", what, f"columns {', '.join(header)}", "quote cells that hold the delimiter"
            )
        else:
            yield Parsed(line, -1, dict(zip(header, cells, strict=True)))


def _texts(data: bytes) -> Iterator[Parsed | Bad]:
    """One text a line; blank lines are passed over."""
    offset = 0
    for position, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield Parsed(position, offset, {"text": line.rstrip(b"\r").decode("utf-8")})
            except UnicodeDecodeError as error:
                what = f"byte 0x{line[error.start]:02x} is not UTF-8"
                yield _bad(
                    line, position, offset, error.start + 1, "DAT-024", what, "UTF-8", "iconv -f LATIN1 -t UTF-8"
                )
        offset += len(line) + 1
