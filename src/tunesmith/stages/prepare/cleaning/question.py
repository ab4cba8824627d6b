"""The question when a filter that nobody wrote would drop much (DAT-030)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe

EXAMPLES = 5
DEFAULTS = ("length", "quality")  # the filters that are on without being written


def ask(spec: Recipe, filters: Mapping[str, Mapping[str, Any]], place_of: Callable[[int], str]) -> None:
    """Raises the first question that the user does not answer with yes; a prompt only on a terminal.

    filters: `filters` of the merged facts of all parts. place_of: row -> FILE:LINE.
    """
    for question in questions(spec, filters, place_of):
        if not confirmed(question.headline):
            raise question


def questions(
    spec: Recipe, filters: Mapping[str, Mapping[str, Any]], place_of: Callable[[int], str]
) -> Iterator[QuestionError]:
    """DAT-030 with counts and the key that accepts it, for each filter at its default that would take too large a share."""
    for name in DEFAULTS:
        told = filters.get(name)
        if told is None or not told["seen"] or told["dropped"] / told["seen"] <= spec.data.filters.accept_drop_share:
            continue
        if spec.origin(f"data.filters.{name}") == "default":
            examples = [f"{place_of(row)} ({_shown(value)})" for row, value in told["first"][:EXAMPLES]]
            yield _question(spec, name, told["dropped"], told["seen"], ", ".join(examples)[:160])


def _question(spec: Recipe, name: str, dropped: int, seen: int, examples: str) -> QuestionError:
    key = f"data.filters.{name}"
    filter = getattr(spec.data.filters, name)
    settings = ", ".join(f"{field}: {value}" for field, value in filter.model_dump(exclude_none=True).items())
    return QuestionError(
        "DAT-030",
        f"the default {name} filter ({settings}) would drop {dropped:,} of {seen:,} rows ({dropped / seen:.1%}), such as {examples}",
        where=key,
        expected=f"at most {spec.data.filters.accept_drop_share:.0%} without your word",
        fix=f"--set data.filters.accept_drop_share=1 accepts it; --set {key}=null switches it off; or write {key}: {{{settings}}} in the recipe",
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def confirmed(what: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import click

    return click.confirm(f"{what}. Drop them?", default=False, err=True)
