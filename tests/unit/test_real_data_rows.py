"""The rows of the real-data benchmark: unseen ones are unseen, and broken bytes are answered by the reader, not repaired."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tunesmith
from tunesmith.runs.dataset import Dataset

ROOT = Path(__file__).parents[2]
BROKEN = b"Pop Punk Perfection \xed\xa0\xbc\xed\xbd\x95"  # as in SNIPS: a surrogate pair written as if it were UTF-8


@pytest.fixture
def make_rows(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "real_data"), *sys.path])
    import make_rows

    return make_rows


def test_unseen_rows_are_distinct_and_broken_bytes_are_not_repaired(
    test_data: Path, tmp_path: Path, make_rows: object
) -> None:
    make_rows.write_sets(test_data / "data" / "intent", tmp_path)
    for name in make_rows.SETS:
        train = (tmp_path / f"{name}_train.jsonl").read_bytes().splitlines()
        unseen = (tmp_path / f"{name}_test.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [json.loads(line)["prompt"] for line in unseen]
        known = {line.split(b'", "completion"')[0] for line in train}
        assert len(set(asked)) == make_rows.NUM_TEST_ROWS
        assert not known & {json.dumps({"prompt": prompt}, ensure_ascii=False)[:-2].encode() for prompt in asked}
        broken = [line for line in train if not is_utf8(line)]
        assert [BROKEN in line for line in broken] == ([True] if name == "snips" else [])


def test_broken_bytes_and_half_characters_are_set_apart_and_cost_no_other_row(
    tiny_model_dir: Path, tmp_path: Path, make_rows: object
) -> None:
    rows = [(f"play the {number} songs of the north", "PlayMusic") for number in range(120)]
    rows[7] = (BROKEN.decode("utf-8", "surrogateescape"), "PlayMusic")
    lines = [make_rows.line(row) for row in rows]
    lines[30] = rb'{"prompt": "add this \ud83c to my list =>", "completion": " AddToPlaylist"}' + b"\n"
    (tmp_path / "snips.jsonl").write_bytes(b"".join(lines))
    settings = {
        "model": {"base": str(tiny_model_dir), "template": "plain"},
        "data": {
            "sources": [{"path": "snips.jsonl", "split": "train"}],
            "on_bad_row": "quarantine",
            "max_bad_share": 0.05,
            "filters": {"length": {"min_characters": 1}, "quality": None},
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))  # JSON is YAML
    outcome = tunesmith.prepare(tmp_path / "recipe.yaml", workspace=tmp_path / "work")
    dataset = Dataset(outcome.run.outputs("prepare")["dataset"].path)
    ledger = list(dataset.ledger())
    apart = {entry["position"]: entry["rule"] for entry in ledger if entry["status"] == "quarantined"}
    assert apart == {8: "DAT-013", 31: "DAT-019"}
    assert sum(entry["status"] == "used" for entry in ledger) == 118
    assert dataset.statistics["quarantined"] == 2


def is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
