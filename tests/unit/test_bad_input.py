"""Every kind of bad input has its answer, and damage at random never escapes: slices of two benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("bad_rows", "fuzz"):
        sys.modules.pop(name, None)


def test_each_kind_of_bad_input_has_a_code_a_place_and_a_next_move(tmp_path: Path, scripts: None) -> None:
    import bad_rows

    told = [*bad_rows.by_reader(tmp_path), *bad_rows.special(tmp_path)]
    wrong = [f"{entry['kind']} {entry['input']}: {entry['code']} {entry['place']}" for entry in told if not entry["ok"]]
    assert not wrong
    assert len({entry["kind"] for entry in told}) == len(told) > 70
    for entry in told:
        if entry["code"][:4] in ("DAT-", "TXT-"):
            assert entry["place"], entry
            assert entry["expected"], entry
            assert entry["fix"], entry


def test_damaged_files_are_answered_and_never_escape(scripts: None) -> None:
    import fuzz

    figures = fuzz.run(start=500_000, cases=400, workers=1)
    assert figures["failures"] == []
    assert figures["cases"] == 400
    assert len(figures["codes"]) > 15
