"""What became of a row: one entry of the ledger, found by its place in a source file or by its id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

SHOWN = 8


def find(where: Run | Artifact | Path, row: str | int) -> dict[str, Any]:
    """The ledger's entry of one row; where it gave way to a twin, the twin's entry under "twin".

    where: a Run whose prepare has finished, its Dataset, or the Dataset's folder.
    row:   "train.jsonl:48213" (file and line, or index in a JSON array or table; a source's name does as well), or a row id.
    Raises UsageError RUN-011 when `row` can not be read so or names rows of several files, DataError RUN-012 when
    there is no such row. The ledger is streamed, never held whole.
    """
    ledger = _ledger(where)
    source, number = _parse(str(row))
    if source is None:
        found = [entry for entry in _entries(ledger, number, number + 1)]
    else:
        found = [entry for entry in _entries(ledger, mention=source) if _is_at(entry, source, number)]
    if not found:
        raise DataError(
            "RUN-012",
            f"no row {row} in {ledger}",
            expected="FILE:LINE or a row id of this ledger; " + _overview(ledger),
            fix="count lines from 1, as your editor does",
        )
    if len(found) > 1:
        one_of = ", ".join(f"{entry['row']} (of {entry['source']})" for entry in found[:SHOWN])
        raise UsageError(
            "RUN-011", f"{row} names {len(found)} rows", expected="one row", fix=f"its id, one of: {one_of}"
        )
    (entry,) = found
    if isinstance(entry.get("kept_twin"), int):
        entry["twin"] = next(_entries(ledger, entry["kept_twin"], entry["kept_twin"] + 1), None)
    return entry


def _ledger(where: Run | Artifact | Path) -> Path:
    if isinstance(where, Run):
        outputs = where.outputs("prepare")
        if outputs is None:
            raise DataError(
                "RUN-013",
                f"run {where.id} has no prepared data yet",
                expected="a run whose prepare has finished",
                fix="tunesmith prepare RECIPE, then ask again",
            )
        where = outputs["dataset"]
    return (where.path if isinstance(where, Artifact) else Path(where)) / "ledger.jsonl"


def _parse(row: str) -> tuple[str | None, int]:
    source, colon, number = row.rpartition(":")
    if not number.isdecimal():
        raise UsageError(
            "RUN-014",
            f"{row!r} is no row",
            expected="FILE:LINE, such as train.jsonl:48213, or a row id",
            fix="tunesmith explain train.jsonl:1",
        )
    return (source if colon else None), int(number)


def _entries(ledger: Path, first: int = 0, end: int | None = None, *, mention: str = "") -> Iterator[dict[str, Any]]:
    """Entries of the lines first..end-1 that mention a text; only these lines are parsed."""
    needle = json.dumps(Path(mention).name, ensure_ascii=False)[1:-1].encode() if mention else b""
    with ledger.open("rb") as file:
        for number, line in enumerate(file):
            if end is not None and number >= end:
                return
            if number >= first and needle in line:
                yield json.loads(line)


def _is_at(entry: dict[str, Any], source: str, number: int) -> bool:
    """Named by the file, with or without its folder, or by the source's name in the recipe."""
    return entry["position"] == number and (entry["file"] == Path(source).name or entry["source"] == source)


def _overview(ledger: Path) -> str:
    counts: dict[str, int] = {}
    for entry in _entries(ledger):
        counts[entry["file"]] = counts.get(entry["file"], 0) + 1
    return "it holds " + ", ".join(f"{count:,} rows of {file}" for file, count in list(counts.items())[:SHOWN])
