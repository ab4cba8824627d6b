"""A disk on which the power may be cut: what is done to it is recorded, and every state that it may be left in is listed.

The model is the weakest disk that POSIX allows. What was not flushed may be lost, each thing by itself and in any order:

- of a file, up to what was last flushed: it may end at any block of 512 bytes, and any of its blocks may be zeros;
- of a folder, any of the changes of its names since it was last flushed. A rename happens whole or not at all;
- flushing a file says nothing about its name, flushing a folder nothing about its files.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.runs import durable

BLOCK = 512
State = dict[str, bytes | None]  # path from the root -> content; None: a folder
How = Literal["left out", "by copying"]


@dataclass
class File:
    """safe: content at the last flush, None before the first. data: content now."""

    data: bytes
    safe: bytes | None = None


@dataclass
class Folder:
    """safe: names at the last flush. changes: what was done to names since, as (name taken away, name set, node)."""

    safe: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, str, int]] = field(default_factory=list)

    def names(self) -> dict[str, int]:
        return _changed(self.safe, self.changes)


@dataclass(frozen=True)
class Site:
    """A place in the code that flushes or renames."""

    operation: str
    function: str
    line: int
    caller: str = ""

    def __str__(self) -> str:
        return f"{self.operation} in {self.function}, line {self.line}{' for ' + self.caller if self.caller else ''}"


class RecordingDisk(durable.Disk):
    """Does everything, and remembers after each operation what is safe and what is not.

    broken: a site whose operation is left out, or, for a rename, done by copying file by file. moments: after each
    operation all nodes as they are then; the first is before anything was done. sites: the places that came by.
    """

    def __init__(self, root: Path, broken: Site | None = None, how: How = "left out") -> None:
        self.root, self.broken, self.how = root, broken, how
        self.nodes: dict[int, File | Folder] = {}
        self.sites: set[Site] = set()
        self.moments: list[dict[int, File | Folder]] = []
        self._adopt(root, safe=True)
        self._remember()

    # ------------------------------------------------------------------------------------------------- the operations

    def write(self, path: Path, data: bytes) -> None:
        self._notice()
        super().write(path, data)
        self._written(path)

    def append(self, path: Path, data: bytes) -> None:
        self._notice()
        super().append(path, data)
        self._written(path)

    def truncate(self, path: Path, size: int) -> None:
        self._notice()
        super().truncate(path, size)
        self._written(path)

    def make_folder(self, path: Path) -> None:
        self._notice()
        super().make_folder(path)
        self._adopt(path)
        self._remember()

    def flush(self, path: Path) -> None:
        self._notice()
        if self._is_broken("flush", path):
            return
        super().flush(path)
        node = self.nodes[self._find(path)]
        if isinstance(node, File):
            node.safe = node.data
        else:
            node.safe, node.changes = node.names(), []
        self._remember()

    def rename(self, source: Path, target: Path) -> None:
        self._notice()
        assert source.parent == target.parent, "across folders a rename is not one change"
        if self._is_broken("rename", source):
            if self.how == "by copying":
                self._copy(source, target)
                self.remove(source)
            return
        super().rename(source, target)
        self._folder(source.parent).changes.append(
            (source.name, target.name, self._folder(source.parent).names()[source.name])
        )
        self._remember()

    def remove(self, path: Path) -> None:
        self._notice()
        if path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                self.remove(inner)
            path.rmdir()
        else:
            path.unlink()
        self._folder(path.parent).changes.append((path.name, "", 0))
        self._remember()

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_file():
            self.write(target, source.read_bytes())
            return
        self.make_folder(target)
        for inner in sorted(source.iterdir()):
            self._copy(inner, target / inner.name)

    def _is_broken(self, operation: str, path: Path) -> bool:
        site = _site(operation, path)
        self.sites.add(site)
        return site == self.broken

    # ------------------------------------------------------------------------------------------------------ the record

    def _find(self, path: Path) -> int:
        node = 1
        for name in path.relative_to(self.root).parts:
            node = self._at(node).names()[name]
        return node

    def _at(self, number: int) -> Folder:
        node = self.nodes[number]
        assert isinstance(node, Folder)
        return node

    def _folder(self, path: Path) -> Folder:
        return self._at(self._find(path))

    def _adopt(self, path: Path, *, safe: bool = False) -> int:
        """Nodes for what lies there."""
        number = len(self.nodes) + 1
        if path.is_dir():
            self.nodes[number] = folder = Folder()
            if path != self.root:
                self._named(path, number)
            for inner in sorted(path.iterdir()):
                self._adopt(inner, safe=safe)
            if safe:
                folder.safe, folder.changes = folder.names(), []
        else:
            data = path.read_bytes()
            self.nodes[number] = File(data, data if safe else None)
            self._named(path, number)
        return number

    def _named(self, path: Path, number: int) -> None:
        self._folder(path.parent).changes.append(("", path.name, number))

    def _written(self, path: Path) -> None:
        names = self._folder(path.parent).names()
        if path.name in names:
            node = self.nodes[names[path.name]]
            assert isinstance(node, File)
            node.data = path.read_bytes()
        else:
            self._adopt(path)
        self._remember()

    def _notice(self) -> None:
        """What was written past this disk, by a library."""
        for path in sorted(self.root.rglob("*")):
            try:
                node = self.nodes[self._find(path)]
            except KeyError:
                self._adopt(path)
                self._remember()
                continue
            if isinstance(node, File) and path.stat().st_size != len(node.data):
                self._written(path)

    def _remember(self) -> None:
        self.moments.append(
            {
                number: File(node.data, node.safe) if isinstance(node, File) else Folder(node.safe, [*node.changes])
                for number, node in self.nodes.items()
            }
        )

    def check_complete(self) -> None:
        """The record knows what lies on the real disk, byte for byte."""
        self._notice()
        (now,) = itertools.islice(states({n: _settled(node) for n, node in self.nodes.items()}), 1)
        there = {
            str(path.relative_to(self.root)): None if path.is_dir() else path.read_bytes()
            for path in self.root.rglob("*")
        }
        assert now == there, (
            f"the record differs in {[name for name in {*now, *there} if now.get(name) != there.get(name)]}"
        )


def _settled(node: File | Folder) -> File | Folder:
    return File(node.data, node.data) if isinstance(node, File) else Folder(node.names(), [])


def _site(operation: str, path: Path) -> Site:
    """The line of durable.py that is at work. For a function that only passes a flush on, also who asked for it.

    What is flushed side by side is flushed by the store to begin with and again by publishing: these are one site, as either
    alone is enough.
    """
    if threading.current_thread() is not threading.main_thread():
        return Site(operation, "a thread, of a folder" if path.is_dir() else "a thread, of a file", 0)
    frame = sys._getframe(2)
    while frame.f_code.co_filename != durable.__file__:
        assert frame.f_back is not None
        frame = frame.f_back
    function, line, caller = frame.f_code.co_name, frame.f_lineno, ""
    if function == "flush_file":
        while frame.f_code.co_name in ("flush_file", "flush_events") and frame.f_back is not None:
            frame = frame.f_back
        caller = f"{frame.f_code.co_name}, of a {'folder' if path.is_dir() else 'file'}"
    return Site(operation, function, line, caller)


# ------------------------------------------------------------------------------------------------------- after the cut


def states(nodes: dict[int, File | Folder]) -> Iterator[State]:
    """Every state that the disk may be left in."""
    for entries in _folder_states(nodes, 1):
        yield dict(entries)


def _folder_states(nodes: dict[int, File | Folder], number: int) -> Iterator[tuple[tuple[str, bytes | None], ...]]:
    folder = nodes[number]
    assert isinstance(folder, Folder)
    seen = set()
    for size in range(len(folder.changes), -1, -1):
        for kept in itertools.combinations(folder.changes, size):
            names = _changed(folder.safe, kept)
            key = frozenset(names.items())
            if key in seen:
                continue
            seen.add(key)
            yield from _entry_states(nodes, sorted(names.items()))


def _entry_states(
    nodes: dict[int, File | Folder], names: list[tuple[str, int]]
) -> Iterator[tuple[tuple[str, bytes | None], ...]]:
    if not names:
        yield ()
        return
    (name, number), *others = names
    node = nodes[number]
    if isinstance(node, File):
        mine = [((name, data),) for data in contents(node)]
    else:
        mine = [
            ((name, None), *((f"{name}/{inner}", data) for inner, data in entries))
            for entries in _folder_states(nodes, number)
        ]
    for one in mine:
        for rest in _entry_states(nodes, others):
            yield (*one, *rest)


def contents(file: File) -> list[bytes]:
    """What a file may hold: what was flushed, and beyond that any number of blocks, each of them written or zeros."""
    safe, data = file.safe, file.data
    if safe == data:
        return [data]
    start = 0  # up to here nothing changed since the flush
    if safe is not None:
        start = next((i for i, (a, b) in enumerate(zip(safe, data, strict=False)) if a != b), min(len(safe), len(data)))
    cuts = sorted({start, *range((start // BLOCK + 1) * BLOCK, len(data), BLOCK), len(data)})
    blocks = [data[a:b] for a, b in itertools.pairwise(cuts)]
    found = {}
    for many in range(len(blocks), -1, -1):
        for written in itertools.product((True, False), repeat=many):
            tail = b"".join(b if is_there else bytes(len(b)) for b, is_there in zip(blocks, written, strict=False))
            found[data[:start] + tail] = None
    if safe is not None:
        found[safe] = None
    return list(found)


def _changed(names: dict[str, int], changes: object) -> dict[str, int]:
    table = dict(names)
    for gone, added, node in changes:  # type: ignore[attr-defined]
        table.pop(gone, None)
        if added:
            table[added] = node
    return table


class Replica:
    """A folder that is brought from one state to the next by changing what differs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.there: State = {}

    def become(self, state: State) -> None:
        for name in sorted(self.there.keys() - state.keys(), reverse=True):  # what is inside a folder first
            path = self.root / name
            path.rmdir() if self.there[name] is None else path.unlink()
        for name, data in sorted(state.items(), key=lambda item: item[0]):
            path = self.root / name
            if data is None:
                if name not in self.there:
                    path.mkdir()
            elif name not in self.there or self.there[name] != data:
                path.write_bytes(data)
        self.there = state
