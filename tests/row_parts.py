"""Parts of Rows for tests of preparation: from a few words, or from a file as the reader finds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tunesmith.stages.prepare.layout import PART
from tunesmith.stages.prepare.reading.reader import Parsed, read_rows
from tunesmith.text.example import ROLES, TEXT
from tunesmith.text.formats import FormatProblem, to_example


def keys_of(roles: list[int], contents: list[str], extra: dict[str, Any] | None) -> tuple[bytes, bytes]:
    """(key, prompt_key), as good as any others for what these tests ask."""

    def digest(content: Any) -> bytes:
        return hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    return digest([roles, contents, extra]), digest(contents[:-1])


def row(
    *turns: str | tuple[str, str],
    meta: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    source: int = 0,
    problem: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Turns of user and assistant in turn, or (role, content) pairs; role "text" for plain text."""
    named = [
        (("user", "assistant")[place % 2], turn) if isinstance(turn, str) else turn for place, turn in enumerate(turns)
    ]
    roles = [TEXT if role == "text" else ROLES.index(role) for role, _ in named]
    contents = [content for _, content in named]
    key, prompt_key = keys_of(roles, contents, extra)
    return {
        "row": 0,
        "source": source,
        "file": 0,
        "position": 1,
        "offset": -1,
        "format": None if problem else "messages",
        "problem": json.dumps(problem) if problem else None,
        "key": key,
        "prompt_key": prompt_key,
        "characters": sum(map(len, contents)),
        "turns": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)],
        "extra": json.dumps(extra).encode() if extra else None,
        "meta": json.dumps(meta) if meta else None,
    }


def part_of(rows: Sequence[dict[str, Any]], first: int = 0) -> pa.Table:
    """layout.PART; rows are numbered from `first` on."""
    numbered = [{**plain, "row": first + place, "position": first + place + 1} for place, plain in enumerate(rows)]
    return pa.Table.from_pylist(numbered, PART)


def part_of_files(paths: Iterable[Path], fields: dict[str, str] | None = None) -> pa.Table:
    """The good rows of files."""
    rows = []
    for path in paths:
        for found in read_rows(path):
            if not isinstance(found, Parsed):
                continue
            try:
                example, _ = to_example(found.value, "auto", fields or {})
            except FormatProblem:
                continue
            roles, contents, extra, meta = example.to_columns()
            turns = [
                ("text" if role == TEXT else ROLES[role], text) for role, text in zip(roles, contents, strict=True)
            ]
            rows.append(row(*turns, meta=meta, extra=extra))
    return part_of(rows)
