"""What is dropped before training, by rule, value and threshold; and the question when a default would drop much."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import LengthFilter, QualityFilter
from tunesmith.stages.prepare.rows import Row


@dataclass(frozen=True)
class Drop:
    """Why a row goes: the rule, the value it had, the threshold it missed, the twin kept instead of it."""

    rule: str
    value: float | str | None = None
    threshold: float | str | None = None
    kept_twin: int | None = None


def filter_rows(rows: Iterable[Row], spec: Recipe) -> dict[int, Drop]:
    """Row -> why it goes. Sources that are said to be held out are not filtered: the user chose their rows."""
    filters = spec.data.filters
    candidates = [row for row in rows if row.example is not None and row.split in ("auto", "train")]
    drops: dict[int, Drop] = {}
    if filters.length is not None:
        found = {row.row: drop for row in candidates if (drop := _by_length(row, filters.length))}
        _ask_about(spec, "length", found, candidates)
        drops |= found
    if filters.quality is not None:
        left = [row for row in candidates if row.row not in drops]
        found = {row.row: drop for row in left if (drop := _by_quality(row, filters.quality))}
        _ask_about(spec, "quality", found, left)
        drops |= found
    return drops


def score_of(row: Row, filter: QualityFilter | None) -> float:
    """The row's score as a number; minus infinity where it has none, so that a scored twin is kept."""
    value = row.meta.get(filter.column) if filter else None
    number = _number(value)
    return number if number is not None else -math.inf


def _by_length(row: Row, length: LengthFilter) -> Drop | None:
    assert row.example is not None
    count = row.example.num_characters
    if count < length.min_characters:
        return Drop("too_short", count, length.min_characters)
    return Drop("too_long_text", count, length.max_characters) if count > length.max_characters else None


def _by_quality(row: Row, quality: QualityFilter) -> Drop | None:
    if quality.column not in row.meta or row.meta[quality.column] is None:
        return None
    number = _number(row.meta[quality.column])
    if number is None:
        return Drop("quality", str(row.meta[quality.column])[:80], quality.above)
    return Drop("quality", number, quality.above) if not number > quality.above else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _ask_about(spec: Recipe, name: str, found: dict[int, Drop], rows: list[Row]) -> None:
    """A default nobody wrote may not throw away much: stop and name counts and the key that accepts it."""
    key = f"data.filters.{name}"
    accepted = spec.data.filters.accept_drop_share
    share = len(found) / len(rows) if rows else 0.0
    if spec.origin(key) != "default" or share <= accepted:
        return
    filter = getattr(spec.data.filters, name)
    settings = ", ".join(f"{field}: {value}" for field, value in filter.model_dump().items())
    examples = ", ".join(f"{row.place} ({found[row.row].value})" for row in rows if row.row in found)[:160]
    what = f"the default {name} filter ({settings}) would drop {len(found):,} of {len(rows):,} rows ({share:.1%}), such as {examples}"
    if _confirmed(what):
        return
    raise QuestionError(
        "DAT-030",
        what,
        where=key,
        expected=f"at most {accepted:.0%} without your word",
        fix=f"--set data.filters.accept_drop_share=1 accepts it; --set {key}=null switches it off; or write {key}: {{{settings}}} in the recipe",
    )


def _confirmed(what: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import click

    return click.confirm(f"{what}. Drop them?", default=False, err=True)
