"""What is dropped before training, by rule, value and threshold; and the question when a default would drop much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import LengthFilter, QualityFilter
from tunesmith.stages.prepare.cleaning.columns import number_of
from tunesmith.stages.prepare.cleaning.question import EXAMPLES, confirmed, questions
from tunesmith.stages.prepare.rows import Row


@dataclass(frozen=True)
class Drop:
    """Why a row goes: the rule, the value it had, the threshold it missed, the twin kept instead of it."""

    rule: str
    value: float | str | None = None
    threshold: float | str | None = None
    kept_twin: int | None = None


@dataclass(frozen=True)
class Filtered:
    """What one filter takes. name: of its key below data.filters. drops: row -> why it goes. rows: those it saw."""

    name: str
    drops: dict[int, Drop]
    rows: list[Row]

    @property
    def share(self) -> float:
        return len(self.drops) / len(self.rows) if self.rows else 0.0


def filter_rows(rows: Iterable[Row], spec: Recipe) -> dict[int, Drop]:
    """Row -> why it goes. Sources that are said to be held out are not filtered: the user chose their rows.

    Raises QuestionError DAT-030 when a default nobody wrote would throw away much.
    """
    drops: dict[int, Drop] = {}
    for found in apply_filters(rows, spec):
        asked = question(spec, found)
        if asked is not None and not confirmed(asked.headline):
            raise asked
        drops |= found.drops
    return drops


def apply_filters(rows: Iterable[Row], spec: Recipe) -> Iterator[Filtered]:
    """What each filter takes of what the one before left."""
    filters = spec.data.filters
    left = [row for row in rows if row.is_good and row.split in ("auto", "train")]
    for name, filter, judge in (("length", filters.length, _by_length), ("quality", filters.quality, _by_quality)):
        if filter is not None:
            found = Filtered(name, {row.row: drop for row in left if (drop := judge(row, filter))}, left)
            yield found
            left = [row for row in left if row.row not in found.drops]


def score_of(row: Row, filter: QualityFilter | None) -> float:
    """The row's score as a number; minus infinity where it has none, so that a scored twin is kept."""
    value = row.meta.get(filter.column) if filter else None
    number = number_of(value)
    return number if number is not None else -math.inf


def _by_length(row: Row, length: LengthFilter) -> Drop | None:
    count = row.characters
    if count < length.min_characters:
        return Drop("too_short", count, length.min_characters)
    return Drop("too_long_text", count, length.max_characters) if count > length.max_characters else None


def _by_quality(row: Row, quality: QualityFilter) -> Drop | None:
    if quality.column not in row.meta or row.meta[quality.column] is None:
        return None
    number = number_of(row.meta[quality.column])
    if number is None:
        return Drop("quality", str(row.meta[quality.column])[:80], quality.above)
    if quality.above is not None and not number > quality.above:
        return Drop("quality", number, quality.above)
    return Drop("quality", number, quality.below) if quality.below is not None and not number < quality.below else None


def question(spec: Recipe, found: Filtered) -> QuestionError | None:
    """DAT-030 with counts and the key that accepts it, where a filter nobody wrote would take more than a few rows."""
    taken = [row for row in found.rows if row.row in found.drops]
    places = {row.row: row.place for row in taken}
    first = [[row.row, found.drops[row.row].value] for row in taken[:EXAMPLES]]
    told = {found.name: {"seen": len(found.rows), "dropped": len(taken), "first": first}}
    return next(questions(spec, told, places.__getitem__), None)
