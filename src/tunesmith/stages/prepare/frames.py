"""Set-wide decisions on keys, hashes and scores as Daft expressions; Parquet. The only door to daft.

Daft keeps no order: positions travel with the keys, and every answer is a set of row ids or sorted by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daft
from daft import col

from tunesmith.errors import DataError


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as dicts, in order. Raises DataError DAT-006 naming the file."""
    try:
        yield from daft.read_parquet(str(path)).iter_rows()
    except (OSError, ValueError, daft.exceptions.DaftCoreException) as error:
        raise DataError(
            "DAT-006",
            f"{path.name} cannot be read as Parquet: {str(error).splitlines()[0][:200]}",
            where="data.sources",
            expected="a whole Parquet file",
            fix="write or fetch the file again",
        ) from error


def twins(rows: list[int], groups: list[str], scores: list[float]) -> dict[int, int]:
    """Rows to drop -> the row kept instead: of equal groups the best scored stays, among equals the first.

    groups: content hash with the split's name, so that a held-out row never goes for a training row.
    """
    if not rows:
        return {}
    frame = daft.from_pydict({"row": rows, "group": groups, "score": scores})
    best = frame.groupby("group").agg(col("score").max().alias("best"))
    kept = (
        frame.join(best, on="group")
        .where(col("score") == col("best"))
        .groupby("group")
        .agg(col("row").min().alias("kept"))
    )
    dropped = frame.join(kept, on="group").where(col("row") != col("kept")).select("row", "kept").to_pydict()
    return dict(sorted(zip(dropped["row"], dropped["kept"], strict=True)))


def leaks(train: dict[str, list], held_out: dict[str, list]) -> dict[int, int]:
    """Training rows whose prompt or whole content is also held out -> the first such held-out row.

    Both: {"row": [...], "prompt": [hash...], "content": [hash...]}.
    """
    if not train["row"] or not held_out["row"]:
        return {}
    ours, theirs = daft.from_pydict(train), daft.from_pydict(held_out)
    found: dict[int, int] = {}
    for name in ("content", "prompt"):
        first = theirs.groupby(name).agg(col("row").min().alias("held_out"))
        pairs = ours.join(first, on=name).select("row", "held_out").to_pydict()
        found = {**dict(zip(pairs["row"], pairs["held_out"], strict=True)), **found}
    return dict(sorted(found.items()))
