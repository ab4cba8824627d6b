"""Files become true by renaming: every operation is failed in turn, and power is cut after each of them."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable, Iterator
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


# ------------------------------------------------------------------------------------------------- the power is cut


class Recorder(Disk):
    """Does everything, and keeps what a disk may hold if power is cut after each operation.

    Adversarial model: content that was not flushed may be there whole, empty, in half or as zeros; names that were not
    flushed with their folder may be missing (per folder, a prefix of what was done there). `omit` leaves out the flush
    of "file", "folder" or "parent", to show that the test would see it.
    """

    def __init__(self, root: Path, omit: str = "") -> None:
        self.root, self.omit = root, omit
        self.contents: dict[int, tuple[bytes, bool]] = {}  # inode -> (bytes, flushed)
        self.names: dict[int, list[tuple[str, str, int]]] = {}  # folder inode -> what was done to its names
        self.flushed_names: dict[int, int] = {}  # how many of these are safe
        self.states: list[dict[str, bytes]] = []
        self._adopt(root)
        self.flushed_names = {folder: 0 for folder in self.names}
        self.snapshot()

    def _adopt(self, folder: Path) -> None:
        """What was written before without `durable`, none of it flushed."""
        self.names[folder.stat().st_ino] = []
        for path in sorted(folder.iterdir()):
            self.names[folder.stat().st_ino].append(("link", path.name, path.stat().st_ino))
            if path.is_dir():
                self._adopt(path)
            else:
                self.contents[path.stat().st_ino] = (path.read_bytes(), False)

    def _name(self, path: Path, what: str, other: str = "") -> None:
        inode = 0 if what == "drop" else (path.parent / (other or path.name)).stat().st_ino
        self.names[path.parent.stat().st_ino].append((what, path.name, inode))

    def write(self, path: Path, data: bytes) -> None:
        super().write(path, data)
        self.contents[path.stat().st_ino] = (data, False)
        self._name(path, "link")
        self.snapshot()

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self.names[path.stat().st_ino], self.flushed_names[path.stat().st_ino] = [], 0
        self._name(path, "link")
        self.snapshot()

    def rename(self, source: Path, target: Path) -> None:
        inode = source.stat().st_ino
        super().rename(source, target)
        assert source.parent == target.parent
        self.names[source.parent.stat().st_ino].append((f"move {source.name}", target.name, inode))
        self.snapshot()

    def flush(self, path: Path) -> None:
        kind = "file" if path.is_file() else "parent" if path == self.root else "folder"
        if kind == self.omit:
            return
        inode = path.stat().st_ino
        if kind == "file":
            self.contents[inode] = (self.contents[inode][0], True)
        else:
            self.flushed_names[inode] = len(self.names[inode])
        self.snapshot()

    def snapshot(self) -> None:
        """Adds each state the disk may be in now."""
        folders = sorted(self.names)
        lengths = [range(self.flushed_names[folder], len(self.names[folder]) + 1) for folder in folders]
        for chosen in itertools.product(*lengths):
            tables = {folder: self._table(folder, length) for folder, length in zip(folders, chosen, strict=True)}
            files = dict(self._walk(tables, self.root.stat().st_ino, ""))
            for contents in itertools.product(*(self._possible(inode) for inode in files.values())):
                state = dict(zip(files, contents, strict=True))
                if state not in self.states:
                    self.states.append(state)

    def _table(self, folder: int, length: int) -> dict[str, int]:
        table: dict[str, int] = {}
        for what, name, inode in self.names[folder][:length]:
            if what.startswith("move "):
                table.pop(what.removeprefix("move "), None)
            table[name] = inode
        return table

    def _walk(self, tables: dict[int, dict[str, int]], folder: int, prefix: str) -> Iterator[tuple[str, int]]:
        for name, inode in tables[folder].items():
            if inode in tables:
                yield from self._walk(tables, inode, f"{prefix}{name}/")
            else:
                yield prefix + name, inode

    def _possible(self, inode: int) -> list[bytes]:
        data, flushed = self.contents[inode]
        return [data] if flushed else [data, b"", data[: len(data) // 2], bytes(len(data))]


FILES = {"final/a": b"first", "final/b": b"second", "final/inner/c": b"third"}


def states_of_publishing(root: Path, omit: str = "") -> tuple[list[dict[str, bytes]], list[dict[str, bytes]]]:
    """All states while a folder of three files is published, and those possible after it was."""
    for name, data in FILES.items():
        path = root / name.replace("final", ".tmp-final")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    recorder = Recorder(root, omit)
    before, durable.disk = durable.disk, recorder
    try:
        durable.publish_folder(root / ".tmp-final", root / "final")
    finally:
        durable.disk = before
    during, recorder.states = recorder.states, []
    recorder.snapshot()
    return during, recorder.states


def seen(state: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in state.items() if name.startswith("final/")}


def test_power_cut_anywhere_in_publishing_shows_the_whole_folder_or_none(tmp_path: Path) -> None:
    during, after = states_of_publishing(tmp_path)
    assert len(during) > 80, "the simulation must see many states"
    assert {} in map(seen, during)
    assert all(seen(state) in ({}, FILES) for state in during)
    assert [seen(state) for state in after] == [FILES], "once published it stays"


@pytest.mark.parametrize("omit", ["file", "folder", "parent"])
def test_without_any_one_kind_of_flush_a_power_cut_would_lose_data(tmp_path: Path, omit: str) -> None:
    during, after = states_of_publishing(tmp_path, omit)
    broken = any(seen(state) not in ({}, FILES) for state in during)
    assert broken or any(seen(state) != FILES for state in after)


@pytest.mark.parametrize("omit", ["", "file"])
def test_power_cut_anywhere_in_a_write_shows_the_old_file_or_the_new_one(tmp_path: Path, omit: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old bytes")
    recorder = Recorder(tmp_path)
    recorder.flush(path)
    recorder.flush(tmp_path)
    recorder.omit, recorder.states = omit, []
    before, durable.disk = durable.disk, recorder
    try:
        durable.write_bytes(path, b"new")
    finally:
        durable.disk = before
    contents = {state.get("file") for state in recorder.states}
    assert {b"old bytes", b"new"} <= contents
    assert (contents == {b"old bytes", b"new"}) == (omit == "")
