"""Which rows are equal, which are alike, and what hangs together, over all rows at once: sorted columns of hashes.

No text and no Python object per row; one band of a MinHash is in memory at a time, sketches stay in their files until a
pair asks for them. The answers do not depend on how rows were cut into parts.
"""

# N rows, P pairs

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from tunesmith.stages.prepare.sets.signatures import SKETCH, View, distinct
from tunesmith.stages.prepare.sets.words import mixed

NEIGHBOURS = 8  # rows of one band behind a row that it is compared with, besides the first ones of the band
GRAMS = 1 << 22  # of the pairs that are compared at a time

# Tables of signatures of all parts in order, with the columns asked for; may be called again and again.
Parts = Callable[[list[str]], Iterable[pa.Table]]


def first_equals(*columns: np.ndarray) -> np.ndarray:
    """int64 [N]: of each row the first one that is equal in all columns, itself where it is the first."""
    num_rows = len(columns[0])
    if not num_rows:
        return np.zeros(0, np.int64)
    # One sort of one hash: where two different rows share it, which hardly ever is, all columns are sorted.
    folded = columns[0].astype(np.uint64)
    for values in columns[1:]:
        folded = mixed(folded) ^ values.astype(np.uint64)
    order = np.argsort(folded)
    fresh = _changes(folded, order)
    if any(np.any(_changes(values, order) & ~fresh) for values in columns):
        order = np.lexsort(columns)
        fresh = np.logical_or.reduce([_changes(values, order) for values in columns])
    firsts = np.minimum.reduceat(order, np.flatnonzero(fresh))
    found = np.empty(num_rows, np.int64)
    found[order] = firsts[np.cumsum(fresh) - 1]
    return found


def _changes(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """bool [N]: where a value in this order differs from the one before."""
    ordered = values[order]
    fresh = np.ones(len(order), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return fresh


def best_of(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """int64 [N]: of each row the one of its group with the highest score, the first among equal ones.

    groups: int64 [N] as first_equals gives them. scores: float64 [N]; NaN, no score, is below all others.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    most = np.full(len(groups), -np.inf)
    np.maximum.at(most, groups, scores)
    rows = np.flatnonzero(scores == most[groups])
    found = np.full(len(groups), len(groups))
    np.minimum.at(found, groups[rows], rows)
    return found[groups]


def components(num_rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 [N]: of each row the first one that it hangs together with over any number of pairs."""
    label = np.arange(num_rows)
    apart = left != right
    left, right = left[apart], right[apart]
    while True:
        least = np.minimum(label[left], label[right])
        before = label.copy()
        # The labels of both ends take the least one, then every row that of its label.
        np.minimum.at(label, before[left], least)
        np.minimum.at(label, before[right], least)
        np.minimum.at(label, left, least)
        np.minimum.at(label, right, least)
        label = label[label]
        if np.array_equal(label, before):
            return label


# ------------------------------------------------------------------------------------------------------ alike pairs


@dataclass(frozen=True)
class Pairs:
    """Rows left[p] < right[p] whose Jaccard similarity reaches the threshold."""

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray


def alike(parts: Parts, view: View, rows: np.ndarray, apart: np.ndarray | None = None) -> Pairs:
    """Pairs of `rows` that are alike by a view.

    rows: bool [N], those that take part: one of several equal ones will do. apart: int [N], only rows with the same number
    are paired. A pair at the threshold is missed with a chance below 1 - RECALL; where more than NEIGHBOURS rows share all
    their bands, each is compared with the next ones and the first.
    """
    found = np.zeros(0, np.int64)
    for band in range(view.bands[0]):
        values, has = _column(parts, f"{view.name}/band{band:02d}", len(rows))
        if apart is not None:
            values = (values.view(np.uint64) ^ mixed(apart.astype(np.uint64) + np.uint64(1))).view(np.int64)
        found = np.union1d(found, _share(values, np.flatnonzero(has & rows)))
    left, right = np.divmod(found, len(rows)) if len(found) else (found, found)
    similarity = similarities(parts, view, left, right)
    enough = similarity >= view.threshold
    return Pairs(left[enough], right[enough], similarity[enough])


def _column(parts: Parts, name: str, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [N] values, bool [N] where there is one)."""
    values, has, done = np.zeros(num_rows, np.int64), np.zeros(num_rows, bool), 0
    for table in parts([name]):
        for chunk in table.column(name).chunks:
            here = slice(done, done + len(chunk))
            has[here] = chunk.is_valid().to_numpy(zero_copy_only=False)
            values[here] = chunk.fill_null(0).to_numpy()
            done += len(chunk)
    assert done == num_rows, f"{done} signatures of {num_rows} rows"
    return values, has


def _share(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pairs that share a value, as left * N + right, each once and ascending."""
    # Most values stand alone: a plain sort finds the others, and only their rows are put in order.
    ordered = np.sort(values[rows])
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(several):
        return np.zeros(0, np.int64)
    rows = rows[np.isin(values[rows], several)]
    order = rows[np.argsort(values[rows], kind="stable")]
    ordered = values[order]
    fresh = np.insert(ordered[1:] != ordered[:-1], 0, True)
    firsts = order[fresh][np.cumsum(fresh) - 1]
    pairs = [_pair(firsts[~fresh], order[~fresh], len(values))]
    for step in range(1, NEIGHBOURS + 1):
        near = ordered[step:] == ordered[:-step]
        pairs.append(_pair(order[:-step][near], order[step:][near], len(values)))
    return np.unique(np.concatenate(pairs))


def _pair(left: np.ndarray, right: np.ndarray, num_rows: int) -> np.ndarray:
    return np.minimum(left, right) * num_rows + np.maximum(left, right)


def similarities(parts: Parts, view: View, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 [P]: Jaccard similarity of the grams of pairs of rows; estimated where a row has more than its sketch holds.

    Of whole rows (`both`) the answers must be alike as well: two questions about one long passage are no duplicates.
    """
    found = np.ones(len(left))
    if not len(left):
        return found
    for name in view.sketches:
        sketches = Sketches.of(parts, name)
        until = np.cumsum(sketches.counts[left] + sketches.counts[right])
        # By the left row: pairs that are compared together touch few pages of the files.
        cuts = [0, *(np.flatnonzero(np.diff(until // GRAMS)) + 1).tolist(), len(left)]
        for here in (slice(first, last) for first, last in pairwise(cuts)):
            found[here] = np.minimum(found[here], _jaccard(sketches, left[here], right[here]))
    return found


@dataclass(frozen=True)
class Sketches:
    """Sketches of all rows where they lie: per part its first row, offsets and uint32 values. counts: int64 [N] of grams."""

    counts: np.ndarray
    starts: np.ndarray
    offsets: list[np.ndarray]
    values: list[np.ndarray]

    @classmethod
    def of(cls, parts: Parts, name: str) -> Sketches:
        chunks = [chunk for table in parts([name]) for chunk in table.column(name).chunks]
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        values = [chunk.values.to_numpy() for chunk in chunks]
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        counts = np.concatenate([np.zeros(0, np.int64), *(np.diff(cut) for cut in offsets)])
        return cls(counts, starts, offsets, values)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(uint32 values, int64 [len(rows) + 1] where those of each begin) of ascending rows."""
        cuts = np.searchsorted(rows, self.starts)
        values, counts = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
        for part, (first, last) in enumerate(pairwise(cuts)):
            if first < last:
                own = rows[first:last] - self.starts[part]
                begin = self.offsets[part][own].astype(np.int64)
                count = self.offsets[part][own + 1] - begin
                values.append(self.values[part][ranges(begin, count)])
                counts.append(count)
        return np.concatenate(values), np.cumsum(np.concatenate(counts))


def ranges(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """begin[n], begin[n] + 1 .. of each n, count[n] of them, one after the other."""
    return np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count)


def _jaccard(sketches: Sketches, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    values, offsets = sketches.take(rows)
    values, offsets = distinct(values, offsets)
    begins, counts = offsets[:-1], np.diff(offsets)
    keyed, cut = [], np.zeros(len(left), bool)
    for side in (places[: len(left)], places[len(left) :]):
        count = counts[side]
        cut |= count >= SKETCH
        owner = np.repeat(np.arange(len(left), dtype=np.uint64), count)
        keyed.append((owner << np.uint64(32)) | values[ranges(begins[side], count)])
    merged = np.sort(np.concatenate(keyed))
    if not len(merged):  # texts without a word
        return np.ones(len(left))
    fresh = np.insert(merged[1:] != merged[:-1], 0, True)
    union = merged[fresh]
    both = np.diff(np.append(np.flatnonzero(fresh), len(merged))) == 2
    owner = (union >> np.uint64(32)).astype(np.int64)
    sizes = np.bincount(owner, minlength=len(left))
    rank = np.arange(len(union)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Of a sketch that was cut only the least grams of the union are known for both.
    known = ~cut[owner] | (rank < SKETCH)
    shared = np.bincount(owner[both & known], minlength=len(left))
    seen = np.bincount(owner[known], minlength=len(left))
    # Where neither has any, nothing tells them apart.
    return np.where(seen == 0, 1.0, shared / np.maximum(seen, 1))


def columns(parts: Parts, names: list[str]) -> dict[str, np.ndarray]:
    """Columns without nulls of all parts as arrays."""
    tables = list(parts(names))
    return {name: np.concatenate([table.column(name).to_numpy() for table in tables]) for name in names}


def lists(parts: Parts, name: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Part by part of a list column: (the part's first row, int64 offsets of its rows in the values, uint64 values)."""
    done = 0
    for table in parts([name]):
        for chunk in table.column(name).chunks:
            offsets = chunk.offsets.to_numpy().astype(np.int64)
            yield done, offsets - offsets[0], chunk.flatten().to_numpy()
            done += len(chunk)
