"""Train, validation or test: drawn by groups of rows that ask alike, so that no group straddles a split."""

from __future__ import annotations

import numpy as np

from tunesmith.recipe.tree import Split
from tunesmith.runs.dataset import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))
WATCHED = len(SPLITS)  # rows of data.leaks.against: in no split


def draw(
    fixed: np.ndarray, clusters: np.ndarray, draws: np.ndarray, order: tuple[np.ndarray, np.ndarray], shares: Split,
    strata: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """int8 [N]: the split of each row as an index into SPLITS.

    fixed: int8 [N], the split that a row's source names, -1 where it is drawn. clusters: int64 [N], the first row of each
    row's group. draws: uint64 [N] of prompts. order: two uint64 [N], the prompts' hashes: a group is drawn by its least one,
    so a row that is alone keeps its place whatever is added. strata: int64 [N], kinds that are held out in equal shares:
    then the groups with the lowest draws of each kind are held out, and an added row can move the last of them.
    """
    found = fixed.copy()
    rows = np.flatnonzero(fixed < 0)
    if not len(rows):
        return found
    heads, group = _least_of(clusters[rows], order[0][rows], order[1][rows])
    if strata is None:
        places = draws[rows[heads]].astype(np.float64) / 2**64
    else:
        places = _places_within(strata[rows[heads]], draws[rows[heads]], np.bincount(group))
    drawn = np.where(places < shares.test, TEST, np.where(places < shares.test + shares.validation, VALIDATION, TRAIN))
    found[rows] = drawn[group]
    return found


def _least_of(clusters: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [C] of each group the row with the least hash, int64 [n] the group of each row)."""
    alone = np.bincount(clusters)[clusters] == 1
    several = np.flatnonzero(~alone)
    ranked = several[np.lexsort((second[several], first[several], clusters[several]))]
    fresh = np.ones(len(ranked), bool)
    fresh[1:] = clusters[ranked][1:] != clusters[ranked][:-1]
    heads = np.append(np.flatnonzero(alone), ranked[fresh])
    group = np.empty(len(clusters), np.int64)
    group[alone] = np.arange(alone.sum())
    group[ranked] = alone.sum() + np.cumsum(fresh) - 1
    return heads, group


def _places_within(strata: np.ndarray, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """float64 [C] from 0 to 1: where the middle of each group lies among the rows of its kind, in order of the draws."""
    order = np.lexsort((draws, strata))
    fresh = np.insert(strata[order][1:] != strata[order][:-1], 0, True)
    kind = np.cumsum(fresh) - 1
    until = np.cumsum(sizes[order])
    before = (until - sizes[order])[fresh]
    total = np.bincount(kind, weights=sizes[order])
    found = np.empty(len(strata))
    found[order] = (until - sizes[order] / 2 - before[kind]) / total[kind]
    return found
