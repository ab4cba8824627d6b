"""What reading a file gives: parsed rows and coded problems, each with its place; and the limits of reading."""

from __future__ import annotations

from typing import Any, NamedTuple

MAX_LINE_BYTES = 8 * 1024**2
MAX_DEPTH = 64
RAW_BYTES = 2048  # of a bad row, kept to be shown and mended
NOT_UTF8 = "is not UTF-8"  # stands in what is said of such lines, cells and texts
READS_AS_LATIN = "in Latin-1 it would read"


class Parsed(NamedTuple):
    """position: line (from 1), or index (from 0) in a JSON array or table. offset: of its first byte, -1 unknown."""

    position: int
    offset: int
    value: Any


class Bad(NamedTuple):
    """A position that could not be read; raw: its first bytes as text. column: from 1, in characters; 0 unknown."""

    position: int
    offset: int
    column: int
    code: str
    what: str
    expected: str
    fix: str
    raw: str


class Fault(Exception):
    """What is wrong with some bytes, before it is known where they stand in the file."""

    def __init__(self, column: int, code: str, what: str, expected: str, fix: str) -> None:
        super().__init__(what)
        self.column, self.code, self.what, self.expected, self.fix = column, code, what, expected, fix

    def at(self, position: int, offset: int, raw: bytes) -> Bad:
        text = raw[:RAW_BYTES].decode("utf-8", "replace")
        return Bad(position, offset, self.column, self.code, self.what, self.expected, self.fix, text)


def too_long(size: int) -> Fault:
    return Fault(0, "DAT-011", f"{size:,} bytes in one row", f"at most {MAX_LINE_BYTES:,}", "split the row")


def nul_byte(column: int) -> Fault:
    return Fault(column, "DAT-014", "a NUL byte", "text", "remove it: tr -d '\\000'")


def not_utf8(raw: bytes, error: UnicodeDecodeError, code: str = "DAT-013") -> Fault:
    """With a guess at what the bytes are. Only this row is talked about: converting a whole file would garble its good rows."""
    byte, around = raw[error.start], raw[max(0, error.start - 12) : error.start + 13]
    if byte == 0xED and raw[error.start + 1 : error.start + 2] >= b"\xa0":
        guess = " (half a character written as if it were whole: CESU-8)"
    elif byte in (0xC0, 0xC1):
        guess = " (an overlong form)"
    elif byte >= 0x80:
        guess = f" ({READS_AS_LATIN} {around.decode('cp1252', 'replace')!r})"
    else:
        guess = ""
    return Fault(
        len(raw[: error.start].decode("utf-8", "replace")) + 1,
        code,
        f"byte {error.start + 1} of the row, 0x{byte:02x}, {NOT_UTF8}{guess}",
        "UTF-8",
        "write this row again as UTF-8 (not the whole file: its other rows would be garbled), or data.on_bad_row: quarantine",
    )
