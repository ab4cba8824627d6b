"""Rows of data.leaks.against: what must not be trained on, such as a public test set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.recipe import Recipe, Source
from tunesmith.stages.prepare.externals import against
from tunesmith.stages.prepare.reader import Bad, files_of, read_rows
from tunesmith.text.example import Example
from tunesmith.text.formats import PROMPTS, FormatProblem, to_example

QUESTIONS = (*PROMPTS, "instruction", "input", "text", "sentence")


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
