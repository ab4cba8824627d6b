"""Rows as the columns that set-wide rules work on, from a few words each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.stages.prepare.layout import KEY, TURN
from tunesmith.stages.prepare.sets.select import Selection, Watched, select
from tunesmith.stages.prepare.sets.signatures import boilerplate, signatures

ROLES = {"system": 0, "user": 1, "assistant": 2, "tool": 3, "text": 4}
SPLIT = "{sources: [{path: a, split: train}, {path: b, split: validation}, {path: c, split: test}, {path: d}]}"
TRAIN, VALIDATION, TEST, AUTO = range(4)


def chat(prompt: str, answer: str, source: int = TRAIN, **more: Any) -> dict[str, Any]:
    return {"turns": [("user", prompt), ("assistant", answer)], "source": source, **more}


def part(rows: Iterable[Mapping[str, Any]], first: int = 0) -> pa.Table:
    """A part of good rows. rows: turns [(role, content)], and where wanted source, score, meta, extra."""
    lines = []
    for number, row in enumerate(rows, first):
        asked = row["turns"] if row["turns"][0][0] == "text" else row["turns"][:-1]
        lines.append(
            {
                "row": number,
                "source": row.get("source", 0),
                "format": "messages",
                "key": _key(row["turns"]),
                "prompt_key": _key([" ".join(content.lower().split()) for _, content in asked]),
                "turns": [{"role": ROLES[role], "content": content} for role, content in row["turns"]],
                "extra": row.get("extra"),
                "meta": json.dumps(row["meta"]) if "meta" in row else None,
            }
        )
    schema = [
        ("row", pa.int64()),
        ("source", pa.int16()),
        ("format", pa.utf8()),
        ("key", KEY),
        ("prompt_key", KEY),
        ("turns", pa.list_(TURN)),
        ("extra", pa.binary()),
        ("meta", pa.utf8()),
    ]
    return pa.Table.from_pylist(lines, pa.schema(schema))


def _key(content: Any) -> bytes:
    return blake2b(json.dumps(content).encode(), digest_size=16).digest()


def recipe(data: str = SPLIT, overrides: Sequence[str] = ()) -> Recipe:
    return parse_recipe(f"data: {data}\n", overrides, folder=Path("/data"))


def facts_of(table: pa.Table, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    score = pa.array([row.get("score") for row in rows], pa.float64())
    gone = pa.array([row.get("gone", False) for row in rows])
    return (
        table.select(["row", "source", "key", "prompt_key"]).append_column("score", score).append_column("gone", gone)
    )


def sign(tables: Sequence[pa.Table], spec: Recipe) -> list[pa.Table]:
    common = boilerplate(tables, spec, sum(table.num_rows for table in tables))
    return [signatures(table, spec, common) for table in tables]


def reading(tables: Sequence[pa.Table]) -> Any:
    def parts(names: list[str]) -> Iterator[pa.Table]:
        return (table.select(names) for table in tables)

    return parts


def choose(
    rows: Sequence[Mapping[str, Any]],
    spec: Recipe,
    *,
    size: int = 10**9,
    watched: Sequence[Mapping[str, Any]] = (),
) -> Selection:
    """What is decided on rows that come in parts of `size`."""
    tables = [part(rows[first : first + size], first) for first in range(0, len(rows), size)]
    facts = facts_of(pa.concat_tables(tables), rows)
    seen = None
    if watched:
        table = part([{**row, "source": -1} for row in watched])
        places = pa.array([f"bench.jsonl:{number}" for number in range(1, len(watched) + 1)])
        seen = Watched(
            table.select(["key", "prompt_key"]).append_column("place", places), reading([signatures(table, spec)])
        )
    return select(facts, spec, reading(sign(tables, spec)), seen)


def verdicts(found: Selection) -> dict[int, dict[str, Any]]:
    """Row -> its verdict."""
    return {line.pop("row"): line for line in found.verdicts.to_pylist()}


def text(seed: int, words: int, changed: Mapping[int, str] | None = None) -> str:
    """A text of words that no other seed has; some of them changed."""
    return " ".join((changed or {}).get(place, f"w{seed}x{place}") for place in range(words))


def jaccard(left: str, right: str, length: int) -> float:
    """Of runs of words, by the definition."""

    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[at : at + length]) for at in range(max(len(words) - length + 1, 1))}

    a, b = runs(left.split()), runs(right.split())
    return len(a & b) / len(a | b)


def random_text(rng: np.random.Generator, words: int, vocabulary: int = 5000) -> list[str]:
    return [f"v{number}" for number in rng.integers(0, vocabulary, words)]
