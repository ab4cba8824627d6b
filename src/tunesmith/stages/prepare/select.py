"""Which rows are used, in which split: filters, then the split, then duplicates, then leaks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import Split
from tunesmith.stages.prepare import frames
from tunesmith.stages.prepare.filters import Drop, filter_rows, score_of
from tunesmith.stages.prepare.slim import Row


@dataclass(frozen=True)
class Selection:
    """splits: row -> train, validation, test, of every good row. drops: row -> why it is not used."""

    splits: dict[int, str]
    drops: dict[int, Drop]


def select(rows: list[Row], spec: Recipe, filtered: dict[int, Drop] | None = None) -> Selection:
    """Decide on every good row by explicit rules; the outcome does not depend on the order of evaluation.

    filtered: what the filters take, where that was found out before.
    """
    drops = dict(filter_rows(rows, spec) if filtered is None else filtered)
    good = [row for row in rows if row.is_good]
    splits = {row.row: _split(row, spec.data.split, spec.seed) for row in good}
    left = [row for row in good if row.row not in drops]
    if spec.data.deduplicate == "exact":
        quality = spec.data.filters.quality
        found = frames.twins(
            [row.row for row in left],
            [f"{splits[row.row]}:{row.key}" for row in left],
            [score_of(row, quality) for row in left],
        )
        drops |= {row: Drop("duplicate", kept_twin=kept) for row, kept in found.items()}
        left = [row for row in left if row.row not in found]
    if spec.data.leaks == "drop":
        for inner, outer in (("validation", ("test",)), ("train", ("validation", "test"))):
            found = frames.leaks(_keys(left, splits, (inner,)), _keys(left, splits, outer))
            drops |= {row: Drop("leak", kept_twin=kept) for row, kept in found.items()}
            left = [row for row in left if row.row not in found]
    return Selection(splits, drops)


def _split(row: Row, shares: Split, seed: int) -> str:
    """Drawn from the prompt's hash, not from the position: added rows move no other, equal prompts stay together."""
    if row.split != "auto":
        return row.split
    digest = hashlib.blake2b(f"{seed}:{row.prompt_key}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < shares.test:
        return "test"
    return "validation" if place < shares.test + shares.validation else "train"


def _keys(rows: list[Row], splits: dict[int, str], names: tuple[str, ...]) -> dict[str, list]:
    chosen = [row for row in rows if splits[row.row] in names]
    return {
        "row": [row.row for row in chosen],
        "prompt": [row.prompt_key for row in chosen],
        "content": [row.key for row in chosen],
    }
