"""Rows of data.leaks.against: what must not be trained on, such as a public test set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.recipe import Recipe, Source
from tunesmith.stages.prepare.externals import against
from tunesmith.stages.prepare.layout import PART
from tunesmith.stages.prepare.reading.reader import Bad, files_of, read_rows
from tunesmith.stages.prepare.sets.select import Watched
from tunesmith.stages.prepare.sets.signatures import signatures
from tunesmith.text.example import Example
from tunesmith.text.formats import PROMPTS, FormatProblem, to_example
from tunesmith.text.keys import content_key, prompt_key

CHUNK = 20_000
QUESTIONS = (*PROMPTS, "instruction", "input", "text", "sentence")


def watched_parts(spec: Recipe, boilerplate: dict[str, np.ndarray]) -> Watched | None:
    """The rows of these files as set-wide rules compare them; None where there are none."""
    parts: list[pa.Table] = []
    places: list[str] = []
    lines: list[dict[str, Any]] = []
    for place, example in watched_examples(spec):
        if example is None:
            continue
        places.append(place)
        lines.append(_line(example))
        if len(lines) == CHUNK:
            parts.append(pa.Table.from_pylist(lines, PART))
            lines = []
    if not places:
        return None
    parts.append(pa.Table.from_pylist(lines, PART))
    signed = [signatures(part, spec, boilerplate) for part in parts]

    def read(names: list[str]) -> Iterator[pa.Table]:
        return (table.select(names) for table in signed)

    facts = pa.concat_tables([part.select(["key", "prompt_key"]) for part in parts])
    return Watched(facts.append_column("place", pa.array(places)), read)


def _line(example: Example) -> dict[str, Any]:
    """As a row of a part, of no source."""
    roles, contents, extra, _ = example.to_columns()
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    keys = {"key": content_key(roles, contents, extra), "prompt_key": prompt_key(roles, contents, extra)}
    return {"row": -1, "source": -1, "format": "watched", "turns": turns, **keys}


def watched_examples(spec: Recipe) -> Iterator[tuple[str, Example | None]]:
    """(file:position, example) of every row of these files; None where a row cannot be read or has no text.

    A row of no known format counts by its question, else by its longest text: test sets have columns of their own.
    """
    for named in against(spec):
        source = Source(path=named)
        for path in files_of(source.path):
            for found in read_rows(path):
                yield f"{path.name}:{found.position}", None if isinstance(found, Bad) else _example(found.value)


def _example(row: Any) -> Example | None:
    try:
        return to_example(row)[0]
    except FormatProblem:
        texts = {name: text for name, text in row.items() if isinstance(text, str)} if isinstance(row, dict) else {}
        asked = next((texts[name] for name in QUESTIONS if name in texts), max(texts.values(), key=len, default=""))
        return Example(text=asked) if asked else None
