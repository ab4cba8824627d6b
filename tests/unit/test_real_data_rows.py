"""The rows of the real-data benchmark: unseen ones are unseen, and broken bytes arrive broken at the reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_unseen_rows_are_distinct_and_broken_bytes_are_not_repaired(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "real_data"), *sys.path])
    import make_rows

    make_rows.write_sets(test_data / "data" / "intent", tmp_path)
    for name in make_rows.SETS:
        train = (tmp_path / f"{name}_train.jsonl").read_bytes().splitlines()
        unseen = (tmp_path / f"{name}_test.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [json.loads(line)["prompt"] for line in unseen]
        known = {line.split(b'", "completion"')[0] for line in train}
        assert len(set(asked)) == make_rows.NUM_TEST_ROWS
        assert not known & {json.dumps({"prompt": prompt}, ensure_ascii=False)[:-2].encode() for prompt in asked}
        broken = [line for line in train if not is_utf8(line)]
        assert [b"Pop Punk Perfection" in line for line in broken] == ([True] if name == "snips" else [])


def is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
