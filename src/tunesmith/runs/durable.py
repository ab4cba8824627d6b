"""Every byte that must survive a crash goes through here: written aside, flushed, read back, renamed.

A reader sees the old state or the new one, never neither and never a mix. The few primitive operations are methods of
`Disk`, so that a test can fail each of them in turn or play a power cut on a recording of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.errors import FileError, TunesmithError
from tunesmith.units import format_bytes

ASIDE = ".tmp-"
TRASH = ".trash-"
FLUSHED_AT_ONCE = 8
FULL = {errno.ENOSPC, errno.EDQUOT}
TROUBLE = {*FULL, errno.EIO, errno.EROFS, errno.EFBIG}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and daft put it into their own error types
NUMPY_ERROR = re.compile(r"\d+ requested and \d+ written")  # an OSError without a number


class Disk:
    """The primitive operations. Everything else in this file is made of them."""

    def write(self, path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)

    def fill(self, path: Path, write: Callable[[Path], None]) -> None:
        """A file that a library writes by itself."""
        write(path)

    def append(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        if written != len(data):  # a disk that fills up in the middle of a line takes a part of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def flush(self, path: Path) -> None:
        """fsync of a file, or of a folder (the names in it)."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """A file, or a folder with all that is in it."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


disk = Disk()


# ------------------------------------------------------------------------------------------------------------ files


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file by `data`, durably. Raises FileError: no space, no access, or it reads back differently."""
    path = Path(path)
    with explain(path, needed=len(data)):
        make_folders(path.parent)
        aside = path.with_name(f"{ASIDE}{path.name}-{secrets.token_hex(4)}")
        try:
            disk.write(aside, data)
            disk.flush(aside)
            if disk.read(aside) != data:
                raise FileError(
                    "RUN-004",
                    f"what was written to {path} reads back differently",
                    expected="the bytes that were written",
                    fix="check the disk (dmesg, smartctl); nothing was replaced, the old file is still there",
                )
            disk.rename(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(aside)
            raise
        disk.flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """As `write_bytes`: indented JSON in UTF-8, keys in the order given. NaN and infinity are refused (ValueError)."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes its JSON escape


def append_line(path: Path, text: str) -> None:
    """Appends one line by one write call. A last line torn by an earlier crash is cut off first.

    Not flushed to the disk (an event per step would cost a disk turn each): a killed process loses nothing, a power cut
    may lose the last lines, never a line in the middle. `flush_file` is the barrier.
    """
    path = Path(path)
    data = text.encode("utf-8", "backslashreplace") + b"\n"
    with explain(path, needed=len(data)), _locked_for_append(path):
        size = _whole_lines(path)
        try:
            disk.append(path, data)
        except OSError:
            with contextlib.suppress(OSError):
                disk.truncate(path, size)
            raise


def flush_file(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with explain(Path(path)):
        disk.flush(Path(path))


@contextlib.contextmanager
def _locked_for_append(path: Path) -> Iterator[None]:
    """Lets no other process take a line that is just being written for a torn one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _whole_lines(path: Path) -> int:
    """Size of the file up to its last newline, cutting off what follows."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
    disk.truncate(path, whole)
    return whole


def read_plain(path: Path) -> bytes:
    """Content of a plain file. Raises OSError for all else, at once: a pipe is not waited for, a link not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        return file.read()


def hash_file(path: Path) -> str:
    """sha256 of the file's bytes, as 64 hex characters."""
    with explain(Path(path)), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- folders


def make_folders(path: Path) -> None:
    """mkdir -p whose new names survive a power cut."""
    path = Path(path)
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    with explain(path):
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # a neighbour made it first
                disk.make_folder(folder)
            disk.flush(folder.parent)


def publish_folder(tmp: Path, final: Path, *, replace: bool = False) -> None:
    """Makes the finished folder `tmp` true under the name `final`; the rename is the commit point.

    Every file and folder in it is flushed before, the parent after. Both must lie on the same file system.
    replace: for a damaged folder under that name: it is taken away first, so that for a moment there is neither.
    Raises FileExistsError when `final` is there already and `replace` is not set (`tmp` is left as it is);
    FileError for everything that the disk answers.
    """
    tmp, final = Path(tmp), Path(final)
    with explain(final, needed=_size(tmp)):
        _flush_side_by_side([path for folder, _, files in os.walk(tmp) for path in _inside(folder, files)])
        make_folders(final.parent)
        if replace and final.exists():
            remove_folder(final)
        try:
            disk.rename(tmp, final)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise FileExistsError(errno.EEXIST, "already there", str(final)) from error
            raise
        disk.flush(final.parent)


def _inside(folder: str, files: list[str]) -> list[Path]:
    return [*(Path(folder, name) for name in sorted(files)), Path(folder)]


def _flush_side_by_side(paths: Sequence[Path]) -> None:
    """One wait for the disk instead of one after the other: which of them is safe first does not matter."""
    with ThreadPoolExecutor(FLUSHED_AT_ONCE) as pool:
        list(pool.map(disk.flush, paths))


def remove_folder(path: Path) -> None:
    """Removes a folder so that no half of it is ever seen under its name. A folder that is not there is no error."""
    path = Path(path)
    trash = path.with_name(f"{TRASH}{path.name}-{secrets.token_hex(4)}")
    with explain(path):
        try:
            disk.rename(path, trash)
        except FileNotFoundError:
            return
        disk.flush(path.parent)
        disk.remove(trash)


@contextlib.contextmanager
def folder_aside(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` to fill and publish; removed at the end when it was not published.

    It is held by a lock, so that `sweep` can tell what a dead process left behind from what a living one works on.
    """
    final = Path(final)
    make_folders(final.parent)
    with contextlib.ExitStack() as stack:
        while True:
            path = final.with_name(f"{ASIDE}{final.name}-{secrets.token_hex(4)}")
            with explain(path):
                disk.make_folder(path)
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            _try_lock(descriptor)
            if path.exists():  # else a sweep came between the making and the lock
                break
        try:
            yield path
        finally:
            if path.exists():
                with contextlib.suppress(OSError):
                    disk.remove(path)


def sweep(folder: Path) -> list[str]:
    """Removes what dead processes left half-made or half-removed in `folder`; returns the names removed."""
    removed = []
    for path in sorted(Path(folder).glob(".t*")) if Path(folder).is_dir() else []:
        if not path.name.startswith((ASIDE, TRASH)):
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would keep us waiting
        except FileNotFoundError:
            continue
        try:
            if _try_lock(descriptor):
                with contextlib.suppress(OSError):
                    disk.remove(path)
                    removed.append(path.name)
        finally:
            os.close(descriptor)
    return removed


def _try_lock(descriptor: int) -> bool:
    """An exclusive lock without waiting. False when another process holds it, or where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explain(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turns an OSError about `path` into a FileError that names the path, the bytes needed and the bytes free."""
    try:
        yield
    except FileExistsError:
        raise  # an answer, not a fault: the caller decides
    except OSError as error:
        raise _as_file_error(error, path, needed) from error


@contextlib.contextmanager
def explain_trouble(path: Path) -> Iterator[None]:
    """Turns a full or failing disk into a FileError, whoever wrote: a stage, numpy, safetensors. All else passes."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        number = _trouble(error)
        if number is None:
            raise
        # Of a copy the second name is the one that is written.
        names = (getattr(error, "filename2", None), getattr(error, "filename", None))
        written = next((name for name in names if isinstance(name, str)), path)
        raise _as_file_error(OSError(number, os.strerror(number)), Path(written), 0) from error


def _trouble(error: Exception) -> int | None:
    """The error number of a full or failing disk behind an error of any library; None for all else."""
    if isinstance(error, OSError) and error.errno is not None:
        number = error.errno
    elif told := RUST_ERROR.search(str(error)):
        number = int(told[1])
    elif isinstance(error, OSError) and NUMPY_ERROR.search(str(error)):
        number = errno.ENOSPC
    else:
        return None
    return number if number in TROUBLE else None


def _as_file_error(error: OSError, path: Path, needed: int) -> FileError:
    if error.errno in FULL:
        what = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        need = f", {format_bytes(needed)} needed" if needed else ""
        return FileError(
            "RUN-002",
            f"{what}: {path} could not be written{need}, {format_bytes(free_bytes(path))} free",
            expected="room for the file; what was saved before is untouched",
            fix="free some space (tunesmith runs lists old runs), then run the same command again: it goes on",
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    hints = {
        errno.EACCES: "give yourself the right to write there, or choose another folder with --workspace",
        errno.EPERM: "give yourself the right to write there, or choose another folder with --workspace",
        errno.EROFS: "the file system is mounted read-only; choose another folder with --workspace",
        errno.EIO: "the disk reports errors (see dmesg); move the workspace to another disk, then run again",
        errno.ENOENT: "check that the folder still exists",
        errno.EFBIG: "raise the file size limit (ulimit -f), then run the same command again",
    }
    return FileError(
        "RUN-003",
        f"{path}: {reason} ({format_bytes(free_bytes(path))} free)",
        expected="a file or folder that can be read and written",
        fix=hints.get(error.errno or 0, "mend the cause, then run the same command again: it goes on"),
    )


def free_bytes(path: Path) -> int:
    """Free bytes for us on the file system of `path` or its nearest folder that exists."""
    path = Path(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def require_room(path: Path, needed: int) -> None:
    """Refuses before the disk is filled to the brim for everybody. Raises FileError RUN-002; quotas speak up only at the write."""
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with explain(path, needed=needed):
        usage = shutil.disk_usage(folder)
        if usage.total and usage.free < needed:  # some file systems do not tell: all zeros
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "ceph", "glusterfs", "beegfs", "gpfs"}


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> dict[str, Any]:
    """{"type", "is_network"} of the file system that holds `path`; type "unknown" where the system does not tell.

    On a network file system a rename may reach other machines late and an fsync may promise more than it holds: what is
    said here about power cuts is then not promised.
    """
    target = Path(path).absolute()
    while not target.exists() and target != target.parent:
        target = target.parent
    target = target.resolve()
    found, kind = Path("/"), "unknown"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split(" ")
        folder = Path(fields[1].replace("\\040", " "))
        if target.is_relative_to(folder) and folder.is_relative_to(found):  # of nested mounts the innermost, last one
            found, kind = folder, fields[2]
    return {"type": kind, "is_network": kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")}
