"""Who works on what, among the workers that share a workspace: locks that die with their process, and the time spent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.runs import durable

POLL_S = 0.1
LOST_AFTER_S = 600  # without a sign of life from another machine
SUFFIX = ".lock"


@contextlib.contextmanager
def alone(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Among all processes of the workspace. check: called while waiting; it may raise to leave."""
    durable.make_folders(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _try_lock(descriptor):
            check()
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Owner:
    """A worker's name and its lock, which is held until the process ends, however that happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        durable.make_folders(folder)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._path = folder / f"{self.name}{SUFFIX}"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        _try_lock(self._descriptor)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def is_living(folder: Path, owner: str, alive: float) -> bool:
    """Whether the worker of this name, of this workspace, still runs. alive: its last sign of life.

    A lock tells it at once on one machine; of another machine that shares the folder only its silence does.
    """
    if not owner:
        return False
    try:
        descriptor = os.open(folder / f"{owner}{SUFFIX}", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(descriptor):
            return True
    finally:
        os.close(descriptor)
    if owner.rsplit("-", 2)[0] != socket.gethostname() and not is_silent(alive):
        return True
    (folder / f"{owner}{SUFFIX}").unlink(missing_ok=True)
    return False


def is_silent(alive: float) -> bool:
    """True where the last sign of life, in seconds since 1970, is too long ago."""
    return time.time() - alive > LOST_AFTER_S


def workspace_id(folder: Path) -> str:
    """A name for this workspace's part of the search: whose checkpoints lie here."""
    path = folder / "workspace.id"
    if not path.exists():
        durable.write_text(path, f"{socket.gethostname()}-{secrets.token_hex(6)}")
    return path.read_text()


class Clock:
    """Time that the search has worked in this workspace, over all its starts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(3)}.json"
        self._before = sum(json.loads(path.read_bytes())["seconds"] for path in folder.glob("*.json"))
        self._started = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def save(self) -> None:
        durable.write_json(self._path, {"seconds": round(time.monotonic() - self._started, 1)})
