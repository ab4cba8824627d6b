"""Rows as objects -> the columns that the set-wide rules work on, and their verdicts back as drops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import SPLITS
from tunesmith.stages.prepare.against import watched_examples
from tunesmith.stages.prepare.filters import Drop, filter_rows, score_of
from tunesmith.stages.prepare.groups import Parts
from tunesmith.stages.prepare.layout import KEY, TURN
from tunesmith.stages.prepare.mixture import mix
from tunesmith.stages.prepare.rows import Row
from tunesmith.stages.prepare.select import Watched, question, select
from tunesmith.stages.prepare.signatures import boilerplate, signatures
from tunesmith.stages.prepare.words import TEXT
from tunesmith.text.example import ROLES, Example

CHUNK = 20_000
COLUMNS = pa.schema(
    [
        ("row", pa.int64()), ("source", pa.int16()), ("key", KEY), ("prompt_key", KEY), ("turns", pa.list_(TURN)),
        ("extra", pa.binary()), ("meta", pa.utf8()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """splits: row -> train, validation, test, of every good row. drops: row -> why it is not used. copies: row -> how often.

    asked: what the user must answer before rows go.
    """

    splits: dict[int, str]
    drops: dict[int, Drop]
    copies: dict[int, int]
    told: dict[str, Any]
    asked: QuestionError | None = None


def select_rows(
    rows: Sequence[Row], spec: Recipe, filtered: dict[int, Drop] | None = None, shelf: Shelf | None = None
) -> Chosen:
    """As `select` and `mix` decide. filtered: what the filters take, where that was found out before.

    shelf: the columns of all good rows, where these no longer hold their examples.
    """
    drops = dict(filter_rows(rows, spec) if filtered is None else filtered)
    good = [row for row in rows if row.is_good]
    if not good:
        return Chosen({}, drops, {}, {})
    if shelf is None:
        shelf = Shelf()
        for row in good:
            shelf.add(row)
    parts = shelf.parts()
    common = boilerplate(parts, spec, len(good))
    signed = [signatures(part, spec, common) for part in parts]
    facts = pa.table(
        {
            **{name: pa.concat_tables(parts).column(name) for name in ("row", "source", "key", "prompt_key")},
            "score": pa.array([score_of(row, spec.data.filters.quality) for row in good], pa.float64()),
            "gone": pa.array([row.row in drops for row in good]),
        }
    )
    chosen = select(facts, spec, _parts(signed), _watched(spec, common))
    found = chosen.verdicts
    used = ~np.isin(facts.column("row").to_numpy(), np.array([*drops, *found.column("row").to_pylist()], np.int64))
    mixed = mix(facts, chosen.splits, used, spec)
    for line in pa.concat_tables([found, mixed.verdicts]).to_pylist():
        number = line.pop("row")
        drops[number] = Drop(**line)
    numbers = facts.column("row").to_pylist()
    splits = {number: SPLITS[split] for number, split in zip(numbers, chosen.splits.tolist(), strict=True)}
    copies = dict(zip(numbers, mixed.copies.tolist(), strict=True))
    return Chosen(splits, drops, copies, {**chosen.told, "mixture": mixed.shares}, question(spec, chosen))


class Shelf:
    """The columns that signatures need, of good rows as they come."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self._parts: list[pa.Table] = []

    def add(self, row: Row) -> None:
        """row: a good one with its example."""
        assert row.example is not None
        place = {"row": row.row, "source": row.source_number, "meta": json.dumps(row.meta) if row.meta else None}
        self._add({**place, **_columns(row.example, row.key, row.prompt_key)})

    def watch(self, example: Example) -> None:
        """A row that is only looked at."""
        place = {"row": -1, "source": -1, "meta": None}
        self._add({**place, **_columns(example, example.content_hash(), example.prompt_hash())})

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if len(self._lines) == CHUNK:
            self._close()

    def _close(self) -> None:
        self._parts.append(pa.Table.from_pylist(self._lines, COLUMNS))
        self._lines = []

    def parts(self) -> list[pa.Table]:
        if self._lines or not self._parts:
            self._close()
        return self._parts


def _columns(example: Example, key: str, prompt_key: str) -> dict[str, Any]:
    if example.text is not None:
        turns = [{"role": TEXT, "content": example.text}]
    else:
        turns = [{"role": ROLES.index(turn.role), "content": turn.content} for turn in example.messages]
    safe = [{**turn, "content": turn["content"].encode("utf-8", "replace").decode()} for turn in turns]
    return {"key": bytes.fromhex(key), "prompt_key": bytes.fromhex(prompt_key), "turns": safe, "extra": None}


def _watched(spec: Recipe, common: dict[str, np.ndarray]) -> Watched | None:
    shelf, places = Shelf(), []
    for place, example in watched_examples(spec):
        if example is not None:
            shelf.watch(example)
            places.append(place)
    if not places:
        return None
    parts = shelf.parts()
    facts = pa.concat_tables(parts).select(["key", "prompt_key"]).append_column("place", pa.array(places))
    return Watched(facts, _parts([signatures(part, spec, common) for part in parts]))


def _parts(tables: list[pa.Table]) -> Parts:
    def read(names: list[str]) -> Iterator[pa.Table]:
        return (table.select(names) for table in tables)

    return read
