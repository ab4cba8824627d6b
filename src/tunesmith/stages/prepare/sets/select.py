"""Which rows are used, in which split: the split, then duplicates, then conflicts, then leaks; over all rows at once.

Works on columns of keys, hashes and signatures; every tie goes by the row's number, so the outcome is the same for any
order of evaluation, any parts and any number of workers. Row-local rules come before, `mixture.mix` after it.
"""

# N rows: the good ones of the run in order; behind them, where given, those of data.leaks.against

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import SPLITS
from tunesmith.stages.prepare.layout import VERDICTS
from tunesmith.stages.prepare.sets import leaks as leaking
from tunesmith.stages.prepare.sets import splits as splitting
from tunesmith.stages.prepare.sets.duplicates import Twins, conflicts, exact_twins, near_twins
from tunesmith.stages.prepare.sets.groups import Parts, columns
from tunesmith.stages.prepare.sets.signatures import Views, halves
from tunesmith.stages.prepare.sets.splits import TEST, TRAIN, VALIDATION, WATCHED
from tunesmith.stages.prepare.sets.verdicts import verdicts
from tunesmith.stages.prepare.sets.words import column


@dataclass(frozen=True)
class Watched:
    """Rows that must not be trained on, see `against`. facts: key, prompt_key, place utf8. parts: their signatures."""

    facts: pa.Table
    parts: Parts


@dataclass(frozen=True)
class Selection:
    """splits: int8 of every good row, an index into SPLITS. verdicts: VERDICTS, one line per row that goes, by row.

    told: for the report: conflicts, clusters, leaks by way and direction.
    """

    splits: np.ndarray
    verdicts: pa.Table
    told: dict[str, Any]


def select(facts: pa.Table, spec: Recipe, parts: Parts, watched: Watched | None = None) -> Selection:
    """Decide on every good row.

    facts: row int64 (ascending), source, key, prompt_key, score float64 (null: none), gone bool (by a row-local rule).
    parts: signatures of these rows in this order; see `groups.Parts`.
    """
    return _Rows(facts, spec, parts, watched).select()


def question(spec: Recipe, chosen: Selection) -> QuestionError | None:
    """DAT-064 where a near-duplicate check that nobody wrote would take more than a few of the training rows."""
    key = "data.leaks.near"
    taken = sum(count for way, count in chosen.told.get("leaks", {}).items() if way.startswith("near: train"))
    share = taken / max(int((chosen.splits == TRAIN).sum()), 1)
    accepted = spec.data.filters.accept_drop_share
    if not taken or spec.is_written(key) or share <= accepted:
        return None
    detail, row, twin = (chosen.verdicts.column(name) for name in ("detail", "row", "kept_twin"))
    place = pc.index(pc.starts_with(detail, "near: train").fill_null(False), True).as_py()
    such = f"row {row[place]} (held out: {'row ' + str(twin[place]) if twin[place].is_valid else detail[place]})"
    return QuestionError(
        "DAT-064",
        f"{taken:,} training rows ({share:.1%}) ask nearly the same as a held-out row, such as {such}, and would be dropped",
        where=key,
        expected=f"at most {accepted:.0%} without your word",
        fix=f"--set {key}={spec.data.leaks.near} accepts it; --set {key}=null leaves rows in that are not equal; "
        "rows of one long passage or instruction are alike by it",
    )


class _Rows:
    """The columns that the rules share; `left` shrinks from rule to rule."""

    def __init__(self, facts: pa.Table, spec: Recipe, parts: Parts, watched: Watched | None) -> None:
        self.spec, self.views, self.watched = spec, Views.of(spec), watched
        self.count = facts.num_rows
        more = watched.facts.num_rows if watched is not None else 0
        self.parts = parts if watched is None else _both(parts, watched.parts)
        self.row = column(facts, "row").to_numpy()
        self.keys, self.prompts = (self._hashes(facts, name) for name in ("key", "prompt_key"))
        self.scores = np.append(column(facts, "score").to_numpy(zero_copy_only=False), np.full(more, np.nan))
        names = ["draw", "prompt_words", "answer", *(["stratum"] if spec.data.split.stratify is not None else [])]
        if self.views.overlap is not None:
            names.append("overlap_prompt")
        self.signs = columns(self.parts, names)
        assert len(self.signs["draw"]) == self.count + more, "every good row has its signature"
        self.left = np.append(~column(facts, "gone").to_numpy(zero_copy_only=False), np.ones(more, bool))
        named = np.array([{"auto": -1, **dict(zip(SPLITS, range(3), strict=True))}[s.split] for s in spec.data.sources])
        self.fixed = np.append(named[column(facts, "source").to_numpy()], np.full(more, WATCHED)).astype(np.int8)
        self.verdicts: list[pa.Table] = [VERDICTS.empty_table()]
        self.told: dict[str, Any] = {}

    def _hashes(self, facts: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
        own = halves(column(facts, name))
        if self.watched is None:
            return own
        theirs = halves(column(self.watched.facts, name))
        return np.append(own[0], theirs[0]), np.append(own[1], theirs[1])

    def select(self) -> Selection:
        kin = None
        if self.spec.data.leaks.type == "drop":
            kin = leaking.kinship(self.keys, self.prompts, self.signs["prompt_words"], self.parts, self.views.leaks)
        self._split(kin)
        self._deduplicate()
        if kin is not None:
            self._take_leaks(kin)
        found = pa.concat_tables(self.verdicts).sort_by("row")
        return Selection(self.splits[: self.count], found, self.told)

    def _split(self, kin: leaking.Kinship | None) -> None:
        clusters = kin.clusters if kin is not None else leaking.first_equals(*self.prompts)
        shares = self.spec.data.split
        self.splits = splitting.draw(
            self.fixed, clusters, self.signs["draw"], self.prompts, shares, self.signs.get("stratum")
        )
        sizes = np.bincount(clusters[: self.count], minlength=1)
        self.told["clusters"] = {"of_several": int((sizes > 1).sum()), "largest": int(sizes.max())}

    def _deduplicate(self) -> None:
        asked = self.spec.data.deduplicate
        if asked.type == "none":
            return
        own = self.left & (self.splits != WATCHED)
        self._take_twins("duplicate", exact_twins(own, self.keys, self.splits, self.scores))
        if self.views.duplicates is not None:
            # No two rows of a split that are left have the same content.
            contents = np.arange(1, len(self.left) + 1, dtype=np.uint64)
            same = {"prompt": self.signs["prompt_words"], "answer": self.signs["answer"], "both": contents}
            own = self.left & (self.splits != WATCHED)
            view = self.views.duplicates
            found = near_twins(own, self.parts, view, same[view.text], self.splits, self.scores)
            self._take_twins("near_duplicate", found, view.threshold)
        self._take_conflicts(asked.conflicts)

    def _take_twins(self, rule: str, twins: Twins, threshold: float | None = None) -> None:
        value = twins.similarity if threshold is not None else None
        # A twin with another answer is one of two that contradict each other.
        answers = self.signs["answer"]
        other = int((answers[twins.gone] != answers[twins.kept]).sum())
        self.told[f"{rule}s"] = {"rows": len(twins.gone), "with_another_answer": other}
        self._take(twins.gone, rule, value=value, threshold=threshold, kept_twin=self.row[twins.kept])

    def _take_conflicts(self, policy: str) -> None:
        own = self.left & (self.splits != WATCHED)
        found = conflicts(own, self.prompts, self.signs["answer"], self.splits, self.scores)
        self.told["conflicts"] = found.to_json(self.row)
        if policy == "report":
            return
        rows, best = found.rows, found.best
        if policy == "keep_best":
            rows, best = rows[rows != best], best[rows != best]
        kept = self.row[best] if policy == "keep_best" else None
        detail = ["another answer to the same prompt"] * len(rows)
        self._take(rows, "conflict", detail=detail, kept_twin=kept)

    def _take_leaks(self, kin: leaking.Kinship) -> None:
        self.told["leaks"] = {}
        for inner, outer in ((VALIDATION, (TEST,)), (TRAIN, (VALIDATION, TEST, WATCHED))):
            ours, theirs = self.left & (self.splits == inner), self.left & np.isin(self.splits, outer)
            shared = None
            watched = self.spec.data.leaks
            if self.views.overlap is not None:
                shared = leaking.overlaps(self.parts, ours, theirs, self.signs["overlap_prompt"], watched.overlap)
            found = leaking.leaks(kin, ours, theirs, shared)
            self._take(
                found.rows,
                "leak",
                value=found.similarity,
                detail=self._directions(inner, found),
                threshold=np.array([np.nan, np.nan, np.nan, watched.near or np.nan, watched.overlap or np.nan])[
                    found.ways
                ],
                kept_twin=np.append(self.row, np.full(len(self.left) - self.count, -1))[found.twins],
            )

    def _directions(self, inner: int, found: leaking.Leaks) -> pa.Array:
        """`near: train gives test away`; of rows to watch their place too."""
        names = [*SPLITS, "data.leaks.against"]
        phrases = [f"{way}: {SPLITS[inner]} gives {name} away" for way in leaking.WAYS for name in names]
        kinds = found.ways * len(names) + self.splits[found.twins]
        for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            self.told["leaks"][phrases[kind]] = int(count)
        details = pa.array(phrases).take(pa.array(kinds))
        if self.watched is None:
            return details
        places = self.watched.facts.column("place").combine_chunks()
        twins = found.twins - self.count
        suffixes = pc.binary_join_element_wise(" (", places.take(pa.array(twins, mask=twins < 0)), ")", "")
        return pc.binary_join_element_wise(details, suffixes.fill_null(""), "")

    def _take(self, rows: np.ndarray, rule: str, **more: Any) -> None:
        self.left[rows] = False
        self.verdicts.append(verdicts(self.row[rows], rule, **more))


def _both(first: Parts, second: Parts) -> Parts:
    def tables(names: list[str]) -> Iterable[pa.Table]:
        return chain(first(names), second(names))

    return tables
