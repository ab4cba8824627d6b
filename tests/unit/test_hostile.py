"""A slice of what strangers could hand over (benchmarks/reliability/hostile.py), and that its judge sees a missing defence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERY = 12
SLOW = (
    "rows/gzip bomb in a document",
    "rows/open quote",
    "rows/Arrow that unpacks",
    "bomb/",
    "rows/Parquet of",
    "yaml/100,000",
)


@pytest.fixture(scope="module")
def answers() -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Case -> problem: of a slice as it is, and of the cases whose defence was taken away."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from reliability.hostile import judged, mutations
        from reliability.hostile_corpus import all_cases
    finally:
        del sys.path[:2]
    broken = {name: code for name, code in mutations().items() if not name.startswith(("bomb/", "rows/Parquet"))}
    names = [case.name for case in all_cases() if not case.name.startswith(SLOW)][::EVERY]
    names = [name for name in names if name not in broken]
    assert len(names) > 25
    found = [(told["case"], told["problem"]) for told in judged([*names, *broken], broken)]
    return dict(found[: len(names)]), dict(found[len(names) :])


def test_what_a_stranger_hands_over_runs_nothing(answers: tuple[dict[str, str | None], dict[str, str | None]]) -> None:
    assert {name: problem for name, problem in answers[0].items() if problem} == {}


def test_the_judge_sees_a_defence_that_is_missing(answers: tuple[dict[str, str | None], dict[str, str | None]]) -> None:
    assert [name for name, problem in answers[1].items() if problem is None] == []
