"""Rows one by one, for what does not work on columns yet: `check`, and the first rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.recipe import Source
from tunesmith.stages.prepare.reader import Bad, Parsed, read_rows
from tunesmith.stages.prepare.rows import Rows
from tunesmith.text.example import Example
from tunesmith.text.formats import FormatProblem, to_example


@dataclass
class Row:
    """One source position: good with an example, or bad with a problem.

    row: its number over all sources, and its line in the ledger. split: as the source says, auto where it does not.
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
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return self.problem is None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.position}"


def read_file(source: Source, path: Path, first: int = 0) -> Iterator[Row]:
    """Every position of one file of a source; `first` is the number of its first row."""
    name = source.name or _stem(path)
    for number, found in enumerate(read_rows(path), first):
        yield _row(number, source, name, path.name, found)


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



def slim_rows(rows: Rows) -> list[Row]:
    out = []
    for number, facts in enumerate(rows.parts):
        table = rows.part(number, ("row", "position", "format", "problem", "key", "prompt_key", "characters", "meta"))
        split = rows.splits[facts["source"]]
        for line in table.to_pylist():
            row = Row(line["row"], rows.source_name(facts), rows.file_name(facts), line["position"], split)
            if line["problem"]:
                row.problem = json.loads(line["problem"])
            else:
                row.format, row.key, row.prompt_key = line["format"], line["key"].hex(), line["prompt_key"].hex()
                row.characters = line["characters"]
                row.meta = json.loads(line["meta"]) if line["meta"] else {}
            out.append(row)
    return out
