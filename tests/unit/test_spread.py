"""Parts made by several processes: every result once, a mistake arrives whole, a dead worker is said, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tunesmith.errors import DataError, FileError
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.spread import Compute


def spread(function: Callable[[int], object], tasks: Sequence[int], workers: int) -> dict[int, object]:
    with Compute(workers) as compute:
        return dict(compute.spread(function, tasks))


def square(number: int) -> tuple[int, int]:
    print("what a library prints must not land among the answers")
    return number * number, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("DAT-999", "row 3 is off", where="a.jsonl:3", fix="mend it")
    return number


def die(number: int) -> int:
    if os.environ["SPREAD_TEST_PARENT"] != str(os.getpid()):  # a worker: this process works as well
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def rest(number: int) -> tuple[int, int]:
    time.sleep(0.1)
    return number, os.getpid()


def test_each_task_is_answered_once_by_several_processes_and_this_one() -> None:
    found = spread(square, range(7), workers=2)
    assert {number: value for number, (value, _) in found.items()} == {number: number**2 for number in range(7)}
    pids = {pid for _, pid in spread(rest, range(40), workers=2).values()}
    assert len(pids) == 3
    assert os.getpid() in pids


def test_one_worker_is_this_process() -> None:
    assert spread(square, [3], workers=4) == {0: (9, os.getpid())}


def test_a_mistake_arrives_with_its_code_and_place() -> None:
    with pytest.raises(DataError, match=r"DAT-999 a\.jsonl:3: row 3 is off\n  try: mend it"):
        spread(refuse, range(6), workers=2)


def test_a_worker_that_dies_is_said_and_the_next_start_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPREAD_TEST_PARENT", str(os.getpid()))
    with Compute(2) as compute:
        with pytest.raises(FileError, match=r"DAT-070 a worker of the preparation was killed by SIGKILL"):
            dict(compute.spread(die, range(6)))
        # The same command goes on with new workers.
        assert len(dict(compute.spread(square, range(3)))) == 3


def test_workers_are_kept_from_one_function_to_the_next_and_end_with_the_block() -> None:
    with Compute(2) as compute:
        first = {pid for _, pid in dict(compute.spread(rest, range(40))).values()}
        second = {pid for _, pid in dict(compute.spread(rest, range(40))).values()}
    assert first == second
    assert not any(Path(f"/proc/{pid}").exists() for pid in first - {os.getpid()})


def test_a_part_is_kept_only_when_it_is_as_it_was_written(tmp_path: Path) -> None:
    def write(path: Path) -> dict[str, int]:
        (path / "rows.arrow").write_bytes(b"rows")
        return {"rows": 1}

    parts.make(tmp_path, 0, write)
    parts.make(tmp_path, 1, write)
    assert parts.finished(tmp_path, 0)["rows"] == 1
    (tmp_path / "00000" / "rows.arrow").write_bytes(b"row")
    assert parts.finished(tmp_path, 0) is None
    (tmp_path / "00001.json").write_text(json.dumps({"rows": 1})[:-1])
    assert parts.finished(tmp_path, 1) is None
    assert parts.finished(tmp_path, 2) is None


def test_parts_outlive_a_kill_and_a_second_process_makes_its_own(tmp_path: Path) -> None:
    artifact = tmp_path / "rows" / "abc"

    def killed() -> None:
        with parts.folder_for(artifact) as shared, parts.folder_for(artifact) as own:
            (shared / "kept").touch()
            assert own != shared
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with parts.folder_for(artifact) as again:
        assert (again / "kept").exists()
    assert not again.exists()
