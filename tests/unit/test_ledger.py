"""What became of a row: found by its line, by its id, with its twin; else a clear answer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.runs import ledger
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """As prepare writes it: sources by their names, files without their folders."""
    rows = [
        ("desk", "train.jsonl", 1),
        ("desk", "train.jsonl", 3),
        ("more", "train.jsonl", 1),
        ("array", "array.json", 7),
    ]
    entries = [
        {"row": number, "source": source, "file": file, "position": position, "status": "used", "kept_twin": None}
        for number, (source, file, position) in enumerate(rows)
    ]
    entries[1].update(status="dropped", kept_twin=0)
    for entry in entries:
        entry["rule"] = "duplicate" if entry["status"] == "dropped" else None
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "ledger.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "expected"),
    [("data/train.jsonl:3", 1), ("train.jsonl:3", 1), ("more:1", 2), ("array.json:7", 3), (2, 2), ("3", 3)],
)
def test_a_row_is_found_by_line_by_index_and_by_id(dataset: Path, row: str | int, expected: int) -> None:
    assert ledger.find(dataset, row)["row"] == expected


def test_a_duplicate_comes_with_the_twin_that_was_kept(dataset: Path) -> None:
    found = ledger.find(dataset, "train.jsonl:3")
    assert found["rule"] == "duplicate"
    assert found["twin"]["position"] == 1


def test_a_name_that_fits_two_files_lists_both(dataset: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)RUN-011 train\.jsonl:1 names 2 rows.*0 \(of desk\), 2 \(of more\)"):
        ledger.find(dataset, "train.jsonl:1")


def test_a_row_that_is_not_there_shows_what_is(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)RUN-012 no row train\.jsonl:99.*3 rows of train\.jsonl"):
        ledger.find(dataset, "train.jsonl:99")
    with pytest.raises(DataError, match="RUN-012 no row 99"):
        ledger.find(dataset, 99)
    with pytest.raises(UsageError, match=r"RUN-014 'train\.jsonl:x' is no row"):
        ledger.find(dataset, "train.jsonl:x")


def test_a_blank_line_is_told_from_a_line_that_is_not_there(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)blank lines are no rows.*train\.jsonl:1 and train\.jsonl:3"):
        ledger.find(dataset, "train.jsonl:2")
    with pytest.raises(DataError, match=r"(?s)3 rows of train\.jsonl \(1 to 3\).*as your editor does"):
        ledger.find(dataset, "train.jsonl:4")


def test_places_of_rows(dataset: Path, tmp_path: Path) -> None:
    assert ledger.places(dataset, [3, 0, 99]) == {0: "train.jsonl:1", 3: "array.json:7"}
    assert ledger.places(dataset, []) == {}
    assert ledger.places(tmp_path / "nothing", [1]) == {}, "a Dataset without a ledger"


def test_the_latest_run_that_used_the_file_answers(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs without data, of other files and before it are passed over; one that has the file and not the line says so."""
    other = tmp_path / "other"
    other.mkdir()
    entry = {"row": 0, "source": "else", "file": "else.jsonl", "position": 1, "status": "used", "kept_twin": None}
    pq.write_table(pa.Table.from_pylist([entry]), other / "ledger.parquet")
    made = {"first": other, "second": dataset, "third": other, "refused": None}
    runs = [Run(tmp_path / name, tmp_path, 1) for name in made]
    for run in runs:
        path = made[run.id]
        outputs = {"dataset": Artifact("Dataset", "d", path, {})} if path is not None else None
        monkeypatch.setattr(run, "outputs", lambda stage, outputs=outputs: outputs)
    assert ledger.find_in_runs(runs, "train.jsonl:3")["run"] == "second"
    assert ledger.find_in_runs(runs, "else.jsonl:1")["run"] == "third"
    assert ledger.find_in_runs(runs, 0)["run"] == "third", "numbers are those of the latest"
    with pytest.raises(DataError, match=r"(?s)RUN-012 .*3 rows of train\.jsonl"):
        ledger.find_in_runs(runs, "train.jsonl:99")
    with pytest.raises(DataError, match=r"(?s)RUN-012 .*1 rows of else\.jsonl"):
        ledger.find_in_runs(runs, "nowhere.jsonl:1")
    with pytest.raises(DataError, match="RUN-013 run refused has no prepared data"):
        ledger.find_in_runs(runs[3:], "train.jsonl:1")
