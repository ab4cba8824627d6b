"""sha256 of files, each read once: a run asks for the base's hash in every stage, and its weights may be 100 GB.

A hash is remembered for a file's (device, inode, size, mtime, ctime). An edit changes one of them: the ctime even where
somebody puts the mtime back, since only the kernel writes it. What was written less than SETTLED_S before it was hashed
is not remembered, because clocks of file systems are coarse and an edit within one tick would leave no mark. Large files
are also remembered on the disk, in the user's cache folder, for the next process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

LARGE_BYTES = 32 * 1024**2  # read in about 20 ms; below that a file of our own saves nothing
SETTLED_S = 2.0  # FAT keeps whole even seconds, the coarsest in use

Mark = list[int]
_known: dict[Path, tuple[Mark, str]] = {}


def file_sha256(path: Path) -> str:
    """64 hex characters. Links are followed. Raises OSError when the file cannot be read."""
    path = Path(path).resolve()
    mark = _mark(path)
    known = _known.get(path)
    if known is None and mark[2] >= LARGE_BYTES:
        known = _read_note(path)
    if known is not None and known[0] == mark:
        _known[path] = known
        return known[1]
    digest = _digest(path)
    newest_s = max(mark[3], mark[4]) / 1e9
    if _mark(path) == mark and time.time() - newest_s > SETTLED_S:
        _known[path] = (mark, digest)
        if mark[2] >= LARGE_BYTES:
            _write_note(path, mark, digest)
    else:
        _known.pop(path, None)
    return digest


def _mark(path: Path) -> Mark:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(path: Path) -> Path:
    """Where the disk remembers this file; one small file each, so that processes never wait for each other."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tunesmith" / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _read_note(path: Path) -> tuple[Mark, str] | None:
    try:
        told = json.loads(_note(path).read_bytes())
        return (told["mark"], told["sha256"]) if told["path"] == str(path) else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # absent, torn, or there is no home
        return None


def _write_note(path: Path, mark: Mark, digest: str) -> None:
    """Renamed into place. A cache that cannot be written costs time only."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = note.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps({"path": str(path), "mark": mark, "sha256": digest}))
        aside.replace(note)
