"""Files as streams of plain bytes: unpacked within limits, without a byte order mark, and told apart by their first bytes."""

from __future__ import annotations

import bz2
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import DataError
from tunesmith.stages.prepare.reading.files import shown, suffix_of
from tunesmith.stages.prepare.reading.found import MAX_LINE_BYTES, Fault

BLOCK = 1 << 20
# Unpacked text is seldom fifty times as large; a file made to fill the memory is a thousand times.
MAX_RATIO, FREE_BYTES = 250, 256 * 1024**2
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"PARE": "encrypted Parquet",
    b"ARROW1": "Arrow",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (git lfs pull)",
}
PACKED_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}


class Ended(Exception):
    """The stream ends early, with a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def blocks_of(path: Path, file: BinaryIO, facts: Counter[str]) -> Iterator[bytes]:
    """The file's plain bytes in blocks. Raises DataError DAT-004, DAT-005 for what it is not; Ended where it is damaged."""
    raw = _raw_blocks(file)
    packed = path.suffix.lower()
    if packed in PACKED_MAGIC:
        first = next(raw, b"")
        if first:
            if not first.startswith(PACKED_MAGIC[packed]):
                raise _is_other(path, first, packed)
            yield from _told_apart(path, _UNPACK[packed](first, raw), facts)
        return
    yield from _told_apart(path, raw, facts)


def head_of(path: Path, file: BinaryIO, size: int = BLOCK) -> bytes:
    """The first plain bytes of a file, checked."""
    head = b""
    try:
        for block in blocks_of(path, file, Counter()):
            head += block
            if len(head) >= size:
                break
    except Ended:
        pass
    return head[:size]


def _raw_blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _told_apart(path: Path, blocks: Iterator[bytes], facts: Counter[str]) -> Iterator[bytes]:
    first = b""
    damaged: Ended | None = None
    while len(first) < 64:
        try:
            block = next(blocks, b"")
        except Ended as ended:
            damaged = ended
            break
        if not block:
            break
        first += block
    _check_magic(path, first)
    if first.startswith(b"\xef\xbb\xbf"):
        facts["byte_order_mark"] += 1
        first = first[3:]
    if first:
        yield first
    if damaged is not None:
        raise damaged
    yield from blocks


def _check_magic(path: Path, first: bytes) -> None:
    start = first[:64].lstrip().lower() if first[:1] in b" \r\n\t<" else first
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            raise _is_other(path, first, suffix_of(path), kind)
    if first[:2] in (b"\xff\xfe", b"\xfe\xff") or _looks_wide(first[:64]):
        raise DataError(
            "DAT-005",
            f"{shown(path.name)} is UTF-16 or UTF-32",
            where="data.sources",
            expected="UTF-8",
            fix=f"iconv -f UTF-16 -t UTF-8 {shown(path.name)} > utf8-{shown(path.name)}",
        )


def _looks_wide(first: bytes) -> bool:
    """Every other byte is NUL: UTF-16 without a mark."""
    return len(first) >= 8 and (not any(first[::2][:16]) or not any(first[1::2][:16]))


def _is_other(path: Path, first: bytes, expected: str, kind: str = "") -> DataError:
    kind = kind or next((name for magic, name in MAGIC.items() if first.startswith(magic)), f"not {expected} inside")
    return DataError(
        "DAT-004",
        f"{shown(path.name)} is really {kind}",
        where="data.sources",
        expected=f"what its name says ({expected})",
        fix="fetch or unpack the file again, or rename it by its content",
    )


# ------------------------------------------------------------------------------------------------------------ unpacking


def _unpack_members(
    first: bytes, raw: Iterator[bytes], name: str, magic: bytes, start: Any, out_of: Any
) -> Iterator[bytes]:
    """Members one behind the other, as gzip and bzip2 have them. start(): a decompressor; out_of(it, data): its output."""
    taken = given = 0
    worker, data = start(), first
    while True:
        taken += len(data)
        while data or not _needs_input(worker):
            try:
                out = out_of(worker, data)
            except (zlib.error, OSError, ValueError, EOFError) as error:
                raise Ended(_damaged(name, str(error))) from error
            given += len(out)
            _check_ratio(given, taken, name)
            if out:
                yield out
            data = b""
            if worker.eof:
                rest = worker.unused_data or next(raw, b"")
                while rest and not rest.strip(b"\x00"):  # padding of tapes and block devices
                    rest = next(raw, b"")
                if not rest:
                    return
                if not rest.startswith(magic):
                    raise Ended(_trailing(name, rest))
                worker, data = start(), rest
            elif not out:
                break
        data = next(raw, b"")
        if not data:
            raise Ended(_damaged(name, "it ends too early"))


def _needs_input(worker: Any) -> bool:
    return getattr(worker, "needs_input", not getattr(worker, "unconsumed_tail", b""))


def _gunzip(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    def out_of(worker: Any, data: bytes) -> bytes:
        return worker.decompress(worker.unconsumed_tail + data, BLOCK)

    return _unpack_members(first, raw, "gzip", PACKED_MAGIC[".gz"], lambda: zlib.decompressobj(31), out_of)


def _bunzip(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    return _unpack_members(
        first,
        raw,
        "bzip2",
        PACKED_MAGIC[".bz2"],
        bz2.BZ2Decompressor,
        lambda worker, data: worker.decompress(data, BLOCK),
    )


def _unzstd(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    import pyarrow as pa

    source = _Blocks(first, raw)
    stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")
    given = 0
    while True:
        try:
            out = stream.read(BLOCK)
        except (OSError, pa.ArrowException) as error:
            if "frame descriptor" in str(error):
                raise Ended(_trailing("zstd", b"")) from error
            raise Ended(_damaged("zstd", str(error).splitlines()[0])) from error
        if not out:
            break
        given += len(out)
        _check_ratio(given, source.taken, "zstd")
        yield out


class _Blocks:
    """A file for Arrow to read from, made of blocks."""

    def __init__(self, first: bytes, raw: Iterator[bytes]) -> None:
        self.rest, self.raw, self.taken, self.closed = first, raw, 0, False

    def read(self, size: int = -1) -> bytes:
        if not self.rest:
            self.rest = next(self.raw, b"")
        out, self.rest = (self.rest, b"") if size < 0 else (self.rest[:size], self.rest[size:])
        self.taken += len(out)
        return out

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


_UNPACK = {".gz": _gunzip, ".bz2": _bunzip, ".zst": _unzstd}


def _check_ratio(given: int, taken: int, name: str) -> None:
    if given > FREE_BYTES and given > MAX_RATIO * taken:
        what = f"{name} unpacks to more than {MAX_RATIO} times its size ({given / 2**20:,.0f} MiB so far)"
        fix = "unpack it by hand, if that is meant, and name the unpacked file"
        raise Ended(Fault(0, "DAT-028", what, f"at most {MAX_RATIO} times", fix))


def _damaged(name: str, why: str) -> Fault:
    return Fault(0, "DAT-010", f"the {name} stream is damaged: {why}", "a whole file", "fetch it again")


def _trailing(name: str, rest: bytes) -> Fault:
    begin = f", beginning with {rest[:16]!r}" if rest else ""
    return Fault(
        0,
        "DAT-027",
        f"something that is no {name} follows the {name} stream{begin}",
        "the end of the file",
        "fetch it again",
    )


# ---------------------------------------------------------------------------------------------------------------- lines


class Line(bytes):
    """A line that was longer than can be kept; `size` is how long it was."""

    size = 0


def lines_of(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their end. Of one longer than MAX_LINE_BYTES only the beginning is kept, as a Line."""
    carry, skipped = b"", 0
    for block in blocks:
        *whole, rest = block.split(b"\n")
        if whole:
            first = whole[0]
            if skipped:
                yield _overlong(carry, skipped + len(first))
                whole = whole[1:]
                carry, skipped = b"", 0
            else:
                whole[0] = carry + first
                carry = b""
            yield from whole
        if skipped:
            skipped += len(rest)
        else:
            carry += rest
            if len(carry) > MAX_LINE_BYTES:
                carry, skipped = carry[: MAX_LINE_BYTES + 1], len(carry)
    if skipped:
        yield _overlong(carry, skipped)
    elif carry:
        yield carry


def _overlong(beginning: bytes, size: int) -> Line:
    line = Line(beginning)
    line.size = size
    return line
