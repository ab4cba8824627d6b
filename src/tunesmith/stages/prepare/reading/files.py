"""Which files a source names, and that they are files. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tunesmith.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2")
LINES, DOCUMENTS, TABLES, TEXTS = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".txt",)
PARQUET, ARROW = (".parquet",), (".arrow", ".feather", ".ipc")
SUFFIXES = (*LINES, *DOCUMENTS, *TABLES, *TEXTS, *PARQUET, *ARROW)
SHOWN_SKIPPED = 5


class Stamp(NamedTuple):
    """What tells that a file is the one it was."""

    inode: int
    size: int
    modified_ns: int


def suffix_of(path: Path | str) -> str:
    """What its content is called, behind the suffix of a compression."""
    name = PurePosixPath(str(path)).name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return PurePosixPath(name).suffix


def shown(path: Path | str) -> str:
    """A name that can be printed on one line."""
    name = str(path)
    return name if name.isprintable() else ascii(name)  # half characters, as undecodable names have, are not printable


def files_of(path: str, query: str | None = None) -> list[Path]:
    """The files of a source: itself, a folder's, a glob's, standard input (-), or what was fetched from a URL.

    query: SQL, for the URL of a database. Raises DataError DAT-001, DAT-003, DAT-038, DAT-039, DAT-041, DAT-043.
    """
    if path == "-":
        return [_standard_input()]
    if "://" in path:
        # Here and not above: most sources are files of this machine.
        from tunesmith.stages.prepare.reading.fetch import fetched

        return list(fetched(path, query))
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [file for file in _inside(root) if _is_read(file, root)]
        _refuse_links_out(found, root)
    elif os.path.lexists(root):
        raise _unreadable(root, _why_no_file(root))
    else:
        found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if Path(name).is_file()]
        _refuse_links_out(found, _fixed_part(path))
    if not found:
        raise nothing_at(path, "holds no file that can be read" if root.is_dir() else "does not exist")
    return found


def _inside(root: Path) -> list[Path]:
    return [file for file in sorted(root.rglob("*")) if file.is_file()]


def _is_read(file: Path, root: Path) -> bool:
    """Of a folder's files those of a known kind; not the hidden ones, which caches and editors leave beside them."""
    is_hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not is_hidden and suffix_of(file) in SUFFIXES


def skipped_files(paths: Iterable[str]) -> list[Path]:
    """What the folders among some sources hold besides what is read of them."""
    roots = [Path(path) for path in dict.fromkeys(paths) if path != "-" and "://" not in path and Path(path).is_dir()]
    return [file for root in roots for file in _inside(root) if not _is_read(file, root)]


def told_of_skipped(skipped: Sequence[Path]) -> str:
    """`2 files skipped: notes.docx, .old.jsonl`."""
    names = ", ".join(shown(path.name) for path in skipped[:SHOWN_SKIPPED])
    more = f" and {len(skipped) - SHOWN_SKIPPED:,} more" if len(skipped) > SHOWN_SKIPPED else ""
    return f"{len(skipped):,} file{'s' * (len(skipped) != 1)} skipped (hidden, or of a kind that is not read): {names}{more}"


def _fixed_part(pattern: str) -> Path:
    """The folder in front of a glob's first wildcard."""
    parts = Path(pattern).parts
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first])


def _refuse_links_out(files: list[Path], root: Path) -> None:
    """Who hands over a folder could have it hold links to your own files. Raises DataError DAT-043."""
    home = root.resolve()
    # huggingface_hub keeps a snapshot's files as links to ../../blobs beside it.
    snapshots = next((above for above in (home, *home.parents) if above.name == "snapshots"), None)
    blobs = snapshots.parent / "blobs" if snapshots else None
    for file in files:
        target = Path(os.path.realpath(file))
        if not target.is_relative_to(home) and target.parent != blobs:
            raise DataError(
                "DAT-043",
                f"{shown(file)} is a link out of the folder, to {shown(target)}",
                where="data.sources",
                expected="files that lie where the source says",
                fix=f"name it as a source of its own, if its rows are meant: data.sources: [..., {shown(target)}]",
            )


def nothing_at(path: str, why: str = "holds no file that can be read") -> DataError:
    return DataError(
        "DAT-001",
        f"{shown(path)} {why}",
        where="data.sources",
        expected=f"a file, folder or glob of {' '.join(SUFFIXES)} (also {' '.join(COMPRESSED)}), - or a URL",
        fix="check the path; a relative one starts at the recipe's folder",
    )


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened to be read; never waits for somebody to write. Raises DataError DAT-003."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _unreadable(path, _why_no_file(path))
    return os.fdopen(handle, "rb", buffering=0)


def stamp_of(file: BinaryIO | Path) -> Stamp:
    told = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return Stamp(told.st_ino, told.st_size, told.st_mtime_ns)


def refuse_changed(path: Path, before: Stamp) -> None:
    """Raises DataError DAT-008 where the file is another than at `before`."""
    try:
        after = stamp_of(path)
    except OSError:
        after = None
    if after != before:
        size = f"{before.size:,} bytes then, {after.size:,} now" if after else "it is gone now"
        raise DataError(
            "DAT-008",
            f"{shown(path.name)} changed while it was read ({size})",
            where="data.sources",
            expected="a file that nobody writes to",
            fix="wait until it is written, or read a copy",
        )


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        "DAT-003",
        f"{shown(path)} cannot be read: {why}",
        where="data.sources",
        expected="a readable file",
        fix="check what it is, and its rights",
    )


def _why_no_file(path: Path) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return (error.strerror or str(error)).lower()
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return f"it is {kinds.get(stat.S_IFMT(mode), 'no regular file')}"


@lru_cache(maxsize=1)
def _standard_input() -> Path:
    """Standard input kept in a file, since it is hashed and then read in parts. Raises DataError DAT-003."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise _unreadable(Path("-"), "nothing is piped into standard input")
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-stdin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin.jsonl"
    with path.open("wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out)
    return path
