"""Rows that give away what is held out: equal, equal but for punctuation, alike, or holding long runs of its words."""

# N rows, those of data.leaks.against behind those of the run; int64 arrays of rows are places among these N

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tunesmith.stages.prepare.sets.groups import Pairs, Parts, alike, components, first_equals, lists, ranges
from tunesmith.stages.prepare.sets.signatures import BOILERPLATE_ROWS, BOILERPLATE_SHARE, View

HEAD_BITS = 22
HEAD = np.uint64(64 - HEAD_BITS)
NONE = np.iinfo(np.int64).max
WAYS = ("content", "prompt", "words", "near", "overlap")


@dataclass(frozen=True)
class Kinship:
    """What asks alike, over all N rows. Each int64 [N] names the first row that is equal to a row.

    content: the same turns. prompt: asks the same but for case and blanks. words: and but for punctuation.
    pairs: alike prompts, one row for all with the same words.
    """

    content: np.ndarray
    prompt: np.ndarray
    words: np.ndarray
    pairs: Pairs

    @property
    def clusters(self) -> np.ndarray:
        """int64 [N]: of each row the first that it hangs together with: what may not straddle a split."""
        ends = [_pairs(self.prompt), _pairs(self.words), (self.pairs.left, self.pairs.right)]
        left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
        return components(len(self.prompt), left, right)


def _pairs(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are not the first of their kind, and that first one."""
    rows = np.flatnonzero(first != np.arange(len(first)))
    return rows, first[rows]


def kinship(
    keys: tuple[np.ndarray, np.ndarray], prompts: tuple[np.ndarray, np.ndarray], words: np.ndarray, parts: Parts,
    view: View | None,
) -> Kinship:  # fmt: skip
    """words: uint64 [N] of what is asked, 0 without words. view: how near prompts are looked for; None: not at all."""
    num_rows = len(words)
    equal = np.arange(num_rows)
    worded = np.flatnonzero(words)
    equal[worded] = worded[first_equals(words[worded])]
    one_of_equals = (words != 0) & (equal == np.arange(num_rows))
    nothing = np.zeros(0, np.int64)
    pairs = alike(parts, view, one_of_equals) if view else Pairs(nothing, nothing, np.zeros(0))
    return Kinship(first_equals(*keys), first_equals(*prompts), equal, pairs)


@dataclass(frozen=True)
class Leaks:
    """Rows that give a held-out row away; which one (the first where several are equally alike), the way, how alike."""

    rows: np.ndarray
    twins: np.ndarray
    ways: np.ndarray
    similarity: np.ndarray


def leaks(kin: Kinship, inner: np.ndarray, outer: np.ndarray, overlaps: Leaks | None = None) -> Leaks:
    """Rows of `inner` that give one of `outer` away (bool [N] each), each by the surest of WAYS."""
    num_rows = len(inner)
    twins, ways, similarity = np.full(num_rows, NONE), np.full(num_rows, -1), np.ones(num_rows)
    asked = np.flatnonzero(inner)
    held = np.flatnonzero(outer)
    for way, equal in enumerate((kin.content, kin.prompt, kin.words)):
        first = np.full(num_rows, NONE)
        np.minimum.at(first, equal[held], held)
        found = first[equal[asked]]
        fresh = (found != NONE) & (ways[asked] < 0)
        twins[asked[fresh]], ways[asked[fresh]] = found[fresh], way
    # `first` is now that of the words: pairs join one row of each of these groups.
    best, share = _nearest(kin.pairs, first, num_rows)
    found = best[kin.words[asked]]
    fresh = (found != NONE) & (ways[asked] < 0)
    rows = asked[fresh]
    twins[rows], ways[rows], similarity[rows] = found[fresh], WAYS.index("near"), share[kin.words[rows]]
    if overlaps is not None:
        fresh = ways[overlaps.rows] < 0
        rows = overlaps.rows[fresh]
        twins[rows], ways[rows], similarity[rows] = (
            overlaps.twins[fresh],
            WAYS.index("overlap"),
            overlaps.similarity[fresh],
        )
    rows = np.flatnonzero(ways >= 0)
    return Leaks(rows, twins[rows], ways[rows], similarity[rows])


def _nearest(pairs: Pairs, first: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the most alike partner group's first held-out row, and the similarity; NONE where there is none."""
    here, there = np.append(pairs.left, pairs.right), np.append(pairs.right, pairs.left)
    similarity = np.append(pairs.similarity, pairs.similarity)
    has = first[there] != NONE
    here, twin, similarity = here[has], first[there[has]], similarity[has]
    order = np.lexsort((twin, -similarity, here))
    fresh = np.insert(here[order][1:] != here[order][:-1], 0, True)[: len(order)]
    chosen = order[fresh]
    found, share = np.full(num_rows, NONE), np.zeros(num_rows)
    found[here[chosen]], share[here[chosen]] = twin[chosen], similarity[chosen]
    return found, share


# ---------------------------------------------------------------------------------------------------------- overlap


def overlaps(parts: Parts, inner: np.ndarray, outer: np.ndarray, asked: np.ndarray, share: float) -> Leaks:
    """Rows of `inner` that hold at least `share` of the runs of words of what a row of `outer` asks.

    asked: int64 [N], how many of a row's runs (the first ones) lie in what it asks; a prompt shorter than a run has none and
    cannot be found this way. Runs that stand in many held-out prompts are an instruction, and count for nothing.
    """
    gram, owner, totals = _held(parts, outer, asked)
    if not len(gram):
        return Leaks(*(np.zeros(0, np.int64),) * 3, np.zeros(0))
    starts = np.flatnonzero(np.insert(gram[1:] != gram[:-1], 0, True))
    values, counts = gram[starts], np.diff(np.append(starts, len(gram)))
    # Most runs of most rows are in no held-out row: a table of the hashes' first bits says so in one look.
    may_be = np.zeros(1 << HEAD_BITS, bool)
    may_be[values >> HEAD] = True
    found = [np.zeros((3, 0))]
    for first, offsets, grams in lists(parts, "overlap"):
        # Part by part: of a row all runs are in one.
        here = np.flatnonzero(may_be[grams >> HEAD])
        rows = first + np.searchsorted(offsets, here, side="right") - 1
        here, rows = here[inner[rows]], rows[inner[rows]]
        found.append(_cover(rows, grams[here], (values, starts, counts), owner, totals, share))
    rows, twins, covered = np.concatenate(found, axis=1)
    ways = np.full(len(rows), WAYS.index("overlap"))
    return Leaks(rows.astype(np.int64), twins.astype(np.int64), ways, covered)


def _held(parts: Parts, outer: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint64 grams ascending, int64 held-out row of each, int64 [N] how many each row has), each pair once."""
    grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for first, offsets, values in lists(parts, "overlap"):
        place = np.flatnonzero(outer[first : first + len(offsets) - 1])
        rows = first + place
        count = np.minimum(np.diff(offsets)[place], asked[rows])
        grams.append(values[ranges(offsets[place], count)])
        owners.append(np.repeat(rows, count))
    gram, owner = np.concatenate(grams), np.concatenate(owners)
    order = np.lexsort((owner, gram))
    gram, owner = gram[order], owner[order]
    fresh = np.insert((gram[1:] != gram[:-1]) | (owner[1:] != owner[:-1]), 0, True)[: len(gram)]
    gram, owner = gram[fresh], owner[fresh]
    _, inverse, counts = np.unique(gram, return_inverse=True, return_counts=True)
    own = counts[inverse] <= max(BOILERPLATE_ROWS, BOILERPLATE_SHARE * outer.sum())
    gram, owner = gram[own], owner[own]
    return gram, owner, np.bincount(owner, minlength=len(outer))


def _cover(
    rows: np.ndarray, grams: np.ndarray, index: Iterable[np.ndarray], owner: np.ndarray, totals: np.ndarray, share: float,
) -> np.ndarray:  # fmt: skip
    """float64 [3, n] of the rows of a part that go: row, held-out row, share covered."""
    values, starts, counts = index
    place = np.minimum(np.searchsorted(values, grams), len(values) - 1)
    hit = values[place] == grams
    seen = np.unique(np.stack([rows[hit], place[hit]]), axis=1)
    if not seen.size:
        return np.zeros((3, 0))
    row, place = seen
    count = counts[place]
    held = owner[np.arange(count.sum()) + np.repeat(starts[place] - (np.cumsum(count) - count), count)]
    pairs, hits = np.unique(np.stack([np.repeat(row, count), held]), axis=1, return_counts=True)
    row, held = pairs
    covered = hits / totals[held]
    enough = covered >= share
    row, held, covered = row[enough], held[enough], covered[enough]
    order = np.lexsort((held, -covered, row))
    best = order[np.insert(row[order][1:] != row[order][:-1], 0, True)[: len(order)]]
    return np.stack([row[best], held[best], covered[best]]).astype(np.float64)
