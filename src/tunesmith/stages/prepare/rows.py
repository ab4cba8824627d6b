"""The Rows artifact: everything that was read, normalised and keyed, before any decision."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.recipe import Recipe, Source
from tunesmith.stages.prepare.reader import Bad, Parsed, files_of, read_rows
from tunesmith.text.example import Example
from tunesmith.text.formats import FormatProblem, to_example


@dataclass
class Row:
    """One source position: good with an example, or bad with a problem.

    row: its number over all sources, and its line in the ledger. source_number: place of its source in the recipe. split: as the source says, auto where it does not.
    characters: over all turns. All decisions about rows need no example, so `check` keeps rows without theirs.
    """

    row: int
    source: str
    file: str
    position: int
    split: str
    format: str = ""
    example: Example | None = None
    problem: dict[str, Any] | None = None
    key: str = ""
    prompt_key: str = ""
    characters: int = 0
    source_number: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return self.problem is None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.position}"


def read_all(spec: Recipe, on_progress: Callable[[int], None]) -> Iterator[Row]:
    """Every position of every source, in order. on_progress: called with the count every few thousand rows."""
    count = 0
    for place, source in enumerate(spec.data.sources):
        for path in files_of(source.path):
            for row in read_file(source, path, count, place):
                yield row
                count += 1
                if count % 5000 == 0:
                    on_progress(count)


def read_file(source: Source, path: Path, first: int = 0, place: int = 0) -> Iterator[Row]:
    """Every position of one file of a source; `first` is the number of its first row, `place` that of the source."""
    name = source.name or _stem(path)
    for number, found in enumerate(read_rows(path), first):
        row = _row(number, source, name, path.name, found)
        row.source_number = place
        yield row


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _row(number: int, source: Source, name: str, file: str, found: Parsed | Bad) -> Row:
    row = Row(number, name, file, found.position, source.split)
    if isinstance(found, Bad):
        row.problem = {
            "code": found.code,
            "what": found.what,
            "expected": found.expected,
            "fix": found.fix,
            "column": found.column,
            "offset": found.offset,
            "raw": found.raw,
        }
        return row
    try:
        row.example, row.format = to_example(found.value, source.format, source.fields)
    except FormatProblem as problem:
        raw = json.dumps(found.value, ensure_ascii=True, default=str)[:2048]
        row.problem = {
            "code": problem.code,
            "what": problem.what,
            "expected": problem.expected,
            "fix": problem.fix,
            "column": 0,
            "offset": found.offset,
            "raw": raw,
        }
        return row
    row.key, row.prompt_key = row.example.content_hash(), row.example.prompt_hash()
    row.characters = row.example.num_characters
    row.meta = {
        key: value for key, value in row.example.meta.items() if isinstance(value, (int, float, str, bool, type(None)))
    }
    return row


def write_rows(folder: Path, rows: Iterator[Row]) -> dict[str, Any]:
    """rows.jsonl (good and bad in order) and rejects.jsonl (bad ones alone, to mend). Returns counts."""
    formats: Counter[str] = Counter()
    bad = total = 0
    with (
        (folder / "rows.jsonl").open("w", encoding="utf-8") as out,
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects,
    ):
        for row in rows:
            total += 1
            if row.problem:
                bad += 1
                rejects.write(
                    json.dumps({"file": row.file, "position": row.position, **row.problem}, ensure_ascii=False) + "\n"
                )
            else:
                formats[row.format] += 1
            out.write(json.dumps(_to_json(row), ensure_ascii=False) + "\n")
    return {"rows": total, "bad": bad, "formats": dict(formats)}


def read_back(folder: Path) -> Iterator[Row]:
    """The rows of a Rows artifact."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        for line in file:
            plain = json.loads(line)
            example = plain.pop("example")
            yield Row(**plain, example=Example.from_json(example) if example else None)


def _to_json(row: Row) -> dict[str, Any]:
    plain = {key: value for key, value in row.__dict__.items() if key != "example"}
    return {**plain, "example": row.example.to_json() if row.example else None}
