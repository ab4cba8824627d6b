"""Files become true by renaming: every operation is failed in turn. The power is cut in test_reliability.py."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import FileError
from tunesmith.runs import durable
from tunesmith.runs.durable import Disk

OPERATIONS = ("write", "append", "truncate", "read", "flush", "make_folder", "rename", "remove")


class FailingDisk(Disk):
    """Fails the k-th operation with the error number given."""

    def __init__(self, k: int, number: int) -> None:
        self.left, self.number = k, number

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in OPERATIONS:
            return method

        def call(path: Path, *arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.number, "injected", str(path))
            return method(path, *arguments)

        return call


@pytest.fixture
def set_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    return lambda disk: monkeypatch.setattr(durable, "disk", disk)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_write_that_fails_anywhere_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, set_disk: Callable[[Disk], None], number: int
) -> None:
    path = tmp_path / "state.json"
    failures, told = 0, []
    for k in itertools.count(1):
        set_disk(Disk())
        durable.write_bytes(path, b"old")
        set_disk(FailingDisk(k, number))
        try:
            durable.write_bytes(path, b"new")
        except FileError as error:
            failures += 1
            told.append(str(error))
            assert path.read_bytes() in (b"old", b"new")
        else:
            break
    assert all(str(path) in text for text in told)
    assert failures == 5, "write, flush, read back, rename, flush of the folder"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"], "nothing half-made stays"


def test_a_full_disk_is_explained_with_path_needed_and_free(tmp_path: Path, set_disk: Callable[[Disk], None]) -> None:
    set_disk(FailingDisk(1, errno.ENOSPC))
    with pytest.raises(FileError, match=r"RUN-002 the disk is full: .*big.* 2\.00 KiB needed, .* free") as caught:
        durable.write_bytes(tmp_path / "big", b"x" * 2048)
    assert caught.value.exit_status == 74


def test_what_reads_back_differently_is_refused_and_the_old_file_stays(
    tmp_path: Path, set_disk: Callable[[Disk], None]
) -> None:
    class Lying(Disk):
        def read(self, path: Path) -> bytes:
            return super().read(path)[:-1] + b"?"

    path = tmp_path / "file"
    durable.write_text(path, "old")
    set_disk(Lying())
    with pytest.raises(FileError, match=r"RUN-004 .* reads back differently"):
        durable.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_torn_last_line_is_cut_off_before_the_next_one_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    durable.append_line(path, "one")
    with path.open("ab") as file:
        file.write(b"tor")
    durable.append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    path.write_bytes(b"only a torn one")
    durable.append_line(path, "three")
    assert path.read_text() == "three\n"


def test_a_line_that_fits_in_part_only_leaves_whole_lines(tmp_path: Path, set_disk: Callable[[Disk], None]) -> None:
    class AlmostFull(Disk):
        def append(self, path: Path, data: bytes) -> None:
            super().append(path, data[:3])
            raise OSError(errno.ENOSPC, "injected", str(path))

    path = tmp_path / "events.jsonl"
    durable.append_line(path, "one")
    set_disk(AlmostFull())
    with pytest.raises(FileError, match="RUN-002"):
        durable.append_line(path, "two two two")
    assert path.read_text() == "one\n"


def test_json_takes_lone_surrogates_and_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"text": "half \ud83d of a pair"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"text": "half \ud83d of a pair"}
    with pytest.raises(ValueError, match="Out of range float"):
        durable.write_json(tmp_path / "b.json", {"loss": float("nan")})


def test_publishing_over_a_finished_folder_is_refused_unless_it_replaces(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    durable.publish_folder(tmp_path / "first", tmp_path / "final")
    with pytest.raises(FileExistsError, match="already there"):
        durable.publish_folder(tmp_path / "second", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "first"
    durable.publish_folder(tmp_path / "second", tmp_path / "final", replace=True)
    assert (tmp_path / "final" / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_sweep_takes_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    for name in (".tmp-a-1", ".trash-b-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "kept").mkdir()
    with durable.folder_aside(tmp_path / "c") as living:
        assert durable.sweep(tmp_path) == [".tmp-a-1", ".trash-b-2"]
        assert living.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_network_file_system_is_noticed(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\ntmpfs {tmp_path}/x tmpfs rw 0 0\n")
    assert durable.file_system(tmp_path / "new" / "folder", mounts) == {"type": "nfs4", "is_network": True}
    assert durable.file_system(Path("/"), mounts) == {"type": "ext4", "is_network": False}
    assert durable.file_system(tmp_path, tmp_path / "absent") == {"type": "unknown", "is_network": False}
