"""One of several equal or alike rows stays: the best scored, else the first; and prompts with more than one answer."""

# N rows; int64 arrays of rows are places among these N

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.stages.prepare.sets.groups import Parts, alike, best_of, components, first_equals, similarities
from tunesmith.stages.prepare.sets.signatures import View

SHOWN = 5


@dataclass(frozen=True)
class Twins:
    """Rows that go, the row that stays for each, how alike the two are."""

    gone: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray


def exact_twins(left: np.ndarray, keys: tuple[np.ndarray, np.ndarray], splits: np.ndarray, scores: np.ndarray) -> Twins:
    """Equal content in the same split: a held-out row never goes for a training row. left: bool [N], rows to look at."""
    rows = np.flatnonzero(left)
    groups = first_equals(*(key[rows] for key in keys), splits[rows])
    kept = best_of(groups, scores[rows])
    gone = np.flatnonzero(kept != np.arange(len(rows)))
    return Twins(rows[gone], rows[kept[gone]], np.ones(len(gone)))


def near_twins(
    left: np.ndarray, parts: Parts, view: View, same: np.ndarray, splits: np.ndarray, scores: np.ndarray
) -> Twins:
    """Alike rows of the same split, and what hangs together over them.

    same: uint64 [N], equal where the compared texts are, 0 without a text. A row may be less alike to the one that stays
    than the threshold: then others of its group lie between them, and the similarity says so.
    """
    rows = np.flatnonzero(left & (same != 0))
    firsts = np.arange(len(left))
    firsts[rows] = rows[first_equals(same[rows], splits[rows])]
    one_of_equals = np.zeros(len(left), bool)
    one_of_equals[rows] = firsts[rows] == rows
    pairs = alike(parts, view, one_of_equals, apart=splits)
    groups = components(len(left), np.append(pairs.left, rows), np.append(pairs.right, firsts[rows]))
    kept = rows[best_of(np.searchsorted(rows, groups[rows]), scores[rows])]
    gone = kept != rows
    low, high = np.minimum(rows[gone], kept[gone]), np.maximum(rows[gone], kept[gone])
    return Twins(rows[gone], kept[gone], similarities(parts, view, low, high))


@dataclass(frozen=True)
class Conflicts:
    """Rows whose prompt has another answer elsewhere in their split, and of each the row of that prompt that is best."""

    rows: np.ndarray
    best: np.ndarray

    def to_json(self, row: np.ndarray) -> dict[str, Any]:
        """Counts, and the first prompts each with its rows. row: int64 [N], numbers of the rows."""
        heads = np.unique(self.best)
        shown = [row[self.rows[self.best == head]][:SHOWN].tolist() for head in heads[:SHOWN]]
        return {"prompts": len(heads), "rows": len(self.rows), "samples": shown}


def conflicts(
    left: np.ndarray,
    prompts: tuple[np.ndarray, np.ndarray],
    answers: np.ndarray,
    splits: np.ndarray,
    scores: np.ndarray,
) -> Conflicts:
    """Same prompt, different answers. answers: uint64 [N], 0 where there is none."""
    rows = np.flatnonzero(left & (answers != 0))
    groups = first_equals(*(prompt[rows] for prompt in prompts), splits[rows])
    differs = answers[rows] != answers[rows[groups]]
    contradicted = np.zeros(len(rows), bool)
    contradicted[groups[differs]] = True
    inside = contradicted[groups]
    best = best_of(groups, scores[rows])
    return Conflicts(rows[inside], rows[best[inside]])
