"""The frame of the harnesses: what was done is not done again, a slice is a slice, failures are counted and named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def check(budget: Any, stop_at: int | None = None) -> dict[str, Any]:
    """Ten cases of which the eighth does not hold; the time is up at `stop_at`."""
    for case in budget.cases(range(10)):
        if case == stop_at:
            budget.seconds = -1.0
        budget.judge(str(case), "broke" if case == 7 else None)
    return budget.result("ten cases hold", size=10)


def test_a_harness_that_was_cut_off_goes_on_and_does_no_case_twice() -> None:
    from reliability.frame import Budget

    first = check(Budget(), stop_at=4)
    assert (first["tried"], first["held"], first["finished"]) == (5, 5, False)
    second = check(Budget(earlier=first))
    assert (second["tried"], second["held"], second["finished"]) == (10, 9, True)
    assert second["failures"] == [{"case": "7", "seen": "broke"}]
    assert (second["promise"], second["size"]) == ("ten cases hold", 10)
    assert check(Budget(earlier=second))["tried"] == 10


def test_a_slice_is_one_case_in_so_many() -> None:
    from reliability.frame import Budget

    assert check(Budget(every=4))["tried"] == 3


def test_the_table_shows_what_is_stored_with_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reliability import table

    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PROMISES", ("kills",))
    monkeypatch.setattr(table, "PAGES", (page,))
    monkeypatch.setattr(table, "ROOT", tmp_path)
    stored = {"promise": "Kill it", "tried": 1200, "held": 1200, "beside": {"HF Trainer": {"tried": 60, "held": 35}}}
    table.write_tables({"kills": stored})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    row = "| Kill it | <!-- results/reliability.json promises/kills/held -->1,200 | <!-- results/reliability.json promises/kills/tried -->1,200 | 35 of 60 |"
    assert row in text.splitlines()
