"""From the files of a source to parsed rows or coded problems, one position at a time: a bad row never costs another.

files.py      which files a source names, and that they are files
streams.py    plain bytes of packed and unpacked files, within limits; told apart by their first bytes
json_lines.py, json_rows.py, documents.py, tables.py, texts.py    one kind of content each
frames.py     Parquet, and everything that is not on this machine's disk, through Daft
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tunesmith.errors import DataError
from tunesmith.stages.prepare.reading import documents, json_lines
from tunesmith.stages.prepare.reading.files import (
    ARROW,
    DOCUMENTS,
    LINES,
    PARQUET,
    SUFFIXES,
    TABLES,
    TEXTS,
    files_of,
    open_file,
    refuse_changed,
    shown,
    stamp_of,
    suffix_of,
)
from tunesmith.stages.prepare.reading.found import Bad, Parsed
from tunesmith.stages.prepare.reading.streams import blocks_of, head_of
from tunesmith.stages.prepare.reading.tables import read_table
from tunesmith.stages.prepare.reading.texts import read_texts

__all__ = ["Bad", "How", "Parsed", "Part", "files_of", "parts_of", "read_part", "read_rows"]

PART_BYTES = 32 * 1024**2


@dataclass(frozen=True)
class How:
    """What a source says about reading its files. at: path to the list of rows in a JSON document, keys with dots between.

    columns: those to read, all where empty.
    """

    at: str | None = None
    columns: tuple[str, ...] = ()


PLAIN = How()


class Part(NamedTuple):
    """A stretch of a file that is read alone. end: -1 where the file is read whole."""

    start: int
    end: int


def parts_of(path: Path, part_bytes: int = PART_BYTES) -> list[Part]:
    """JSON Lines in stretches that end with a line; every other kind in one. Raises DataError DAT-003 to DAT-005."""
    if path.suffix.lower() not in LINES:
        return [Part(0, -1)]
    with open_file(path) as file:
        if documents.is_array(head_of(path, file)):
            return [Part(0, -1)]
    return [Part(*stretch) for stretch in json_lines.parts_of(path, part_bytes)]


def read_rows(path: Path, how: How = PLAIN, facts: Counter[str] | None = None) -> Iterator[Parsed | Bad]:
    """Every position of a file in order. Raises DataError DAT-002 to DAT-009 for what concerns the file as a whole."""
    return read_part(path, 0, -1, how, facts)


def read_part(
    path: Path,
    start: int,
    end: int,
    how: How = PLAIN,
    facts: Counter[str] | None = None,
    take: json_lines.Take | None = None,
) -> Iterator[Any]:
    """Parsed | Bad, the positions of one part, counted from the part's beginning (lines from 1); offsets are those of the file.

    facts: what is worth telling and no fault: lines, blank_lines, byte_order_mark, separator_comma ...
    take: may make columns of many lines of JSON at once; what it made comes in their place.
    """
    facts = Counter() if facts is None else facts
    rows = _rows(path, start, end, how, facts, None if how.columns else take)
    return rows if not how.columns else _narrowed(rows, how.columns)


def _narrowed(rows: Iterator[Parsed | Bad], columns: tuple[str, ...]) -> Iterator[Parsed | Bad]:
    for row in rows:
        if isinstance(row, Parsed) and isinstance(row.value, dict):
            row = row._replace(value={name: row.value[name] for name in columns if name in row.value})
        yield row


def _rows(
    path: Path, start: int, end: int, how: How, facts: Counter[str], take: json_lines.Take | None
) -> Iterator[Any]:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise DataError(
            "DAT-002",
            f"{shown(path.name)} is of no known kind",
            where="data.sources",
            expected=" ".join(SUFFIXES),
            fix="rename the file by its content, or convert it to .jsonl",
        )
    with open_file(path) as file:
        before = stamp_of(file)
        if suffix in PARQUET or suffix in ARROW:
            yield from (Parsed(index, -1, row) for index, row in enumerate(_binary(path, suffix)))
        elif suffix in TABLES:
            yield from read_table(path, blocks_of(path, file, facts), suffix, facts)
        elif suffix in TEXTS:
            yield from read_texts(blocks_of(path, file, facts), facts)
        elif _is_document(path, suffix, start, end, file, facts):
            yield from documents.read_document(path, file, how.at, facts)
        elif path.suffix.lower() in (*LINES, *DOCUMENTS):
            yield from json_lines.read_stretch(path, file, start, before.size if end < 0 else end, facts, take)
        else:
            yield from json_lines.read_lines(blocks_of(path, file, facts), facts, take=take)
        refuse_changed(path, before)


def _binary(path: Path, suffix: str) -> Iterator[dict[str, Any]]:
    # Here and not above: most sources are text, and these load for a second.
    if suffix in PARQUET:
        from tunesmith.stages.prepare.reading.frames import read_parquet

        return read_parquet(path)
    from tunesmith.stages.prepare.reading.arrow_files import read_arrow

    return read_arrow(path)


def _is_document(path: Path, suffix: str, start: int, end: int, file: BinaryIO, facts: Counter[str]) -> bool:
    """By its content, where that says something else than its name."""
    if start or (end >= 0 and suffix in LINES):
        return False
    head = head_of(path, file)
    file.seek(0)
    by_content = documents.is_array(head) if suffix in LINES else not documents.is_lines(head)
    if by_content != (suffix in DOCUMENTS):
        facts["array_in_lines" if by_content else "lines_in_json"] += 1
    return by_content
