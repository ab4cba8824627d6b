"""One row of JSON: parsed fast, and checked for what the fast parser passes over; what it refuses is named with its column."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson

from tunesmith.stages.prepare.reading.found import (
    MAX_DEPTH,
    MAX_LINE_BYTES,
    Bad,
    Fault,
    Parsed,
    not_utf8,
    nul_byte,
    too_long,
)

LONG_NUMBER = re.compile(rb"\d{17}")
SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
UNIT_64 = range(-(2**63), 2**64)


def parse(line: bytes, position: int, offset: int, *, is_last: bool = False) -> Parsed | Bad:
    """A row by itself, checked in full. is_last: nothing follows it, so it may be cut off."""
    try:
        return Parsed(position, offset, checked(line, is_last))
    except Fault as fault:
        return fault.at(position, offset, line)


def checked(line: bytes, is_last: bool = False) -> Any:
    """The value of a row. Raises Fault DAT-011 to DAT-020, DAT-025, DAT-026, DAT-034, DAT-035."""
    if len(line) > MAX_LINE_BYTES:
        raise too_long(len(line))
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return diagnose(line, is_last)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and depth_of(value) > MAX_DEPTH:
        raise _too_deep()
    if line.count(b'"') != orjson.dumps(value).count(b'"') or b"\\u0022" in line or LONG_NUMBER.search(line):
        exactly(line)
    return value


def needs_a_look(block: bytes, values: list[Any]) -> bool:
    """Whether some row of a block may repeat a key, or hold a number that was rounded: then each is `checked`.

    A repeated key leaves quotes in the text that its value no longer has. An escaped quote (backslash u0022) upsets that
    count, so it asks for a look as well.
    """
    try:
        again = orjson.dumps(values)
    except TypeError:  # nested too deeply to be written again
        return True
    text = np.frombuffer(block, np.uint8)
    quotes = np.count_nonzero(text == 0x22)
    if quotes != np.count_nonzero(np.frombuffer(again, np.uint8) == 0x22):
        return True
    return _has_escaped_quote(block, text) or _has_long_number(text)


def _has_escaped_quote(block: bytes, text: np.ndarray) -> bool:
    if len(text) < 6 or b"\\" not in block:
        return False
    hits = (text[:-5] == 0x5C) & (text[1:-4] == 0x75) & (text[4:-1] == 0x32) & (text[5:] == 0x32)
    return bool(hits.any()) and b"\\u0022" in block


def _has_long_number(text: np.ndarray) -> bool:
    """17 digits in a row anywhere: fewer always fit into 64 bits."""
    digits = (text - 0x30) < 10
    for step in (1, 2, 4, 8, 1):
        if len(digits) <= step:
            return False
        digits = digits[:-step] & digits[step:]
    return bool(digits.any())


def exactly(line: bytes) -> None:
    """Raises Fault where a key stands twice in one object, or a number does not fit (orjson rounds it to a float)."""
    try:
        json.loads(line.decode(), object_pairs_hook=_no_twice, parse_int=_in_64_bits)
    except RecursionError as error:
        raise _too_deep() from error
    except _Found as found:
        raise Fault(_column_of(line, found.text), found.code, found.what, found.expected, found.fix) from None


class _Found(Exception):
    def __init__(self, code: str, text: str, what: str, expected: str, fix: str) -> None:
        super().__init__(what)
        self.code, self.text, self.what, self.expected, self.fix = code, text, what, expected, fix


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        what = f"the key {twice[:80]!r} stands twice in one object"
        raise _Found("DAT-025", f'"{twice}"', what, "each key once", "leave one of the two out")
    return made


def _in_64_bits(digits: str) -> int | float:
    # 20 digits are beyond 64 bits at the latest with a sign; int() of thousands of digits is refused by Python itself.
    if len(digits) > 20 or int(digits) not in UNIT_64:
        what = f"the number {digits[:40]}{'...' if len(digits) > 40 else ''} does not fit into 64 bits"
        raise _Found("DAT-026", digits, what, "at most 18446744073709551615", "write it as text, in quotes")
    return int(digits)


def _column_of(line: bytes, text: str) -> int:
    """Of the last place where it stands; for a repeated key that is the second one."""
    return line.decode().rfind(text) + 1


def depth_of(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def _too_deep() -> Fault:
    return Fault(0, "DAT-012", "nested too deeply", f"at most {MAX_DEPTH} levels", "flatten the row")


# ------------------------------------------------------------------------------------------------------------ diagnosis


def diagnose(line: bytes, is_last: bool) -> Any:
    """The slow path: says what is wrong with a row that the fast parser refused."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(line, error) from error
    if "\x00" in text:
        raise nul_byte(text.index("\x00") + 1)
    try:
        value = json.loads(text, parse_int=_in_64_bits, parse_float=_finite)
    except RecursionError as error:
        raise _too_deep() from error
    except _Found as found:
        raise Fault(text.find(found.text) + 1, found.code, found.what, found.expected, found.fix) from None
    except ValueError as error:
        raise _not_json(text, error, is_last) from error
    surrogate = SURROGATE.search(text)
    if surrogate:
        what = f"half a character (a lone surrogate, {surrogate[0][:6]})"
        raise Fault(
            surrogate.start() + 1,
            "DAT-019",
            what,
            "whole Unicode characters",
            "write the row again from the intact text",
        )
    literal = re.search(r"(?<![\w\"])(NaN|-?Infinity)\b", text)
    if literal:
        what = f"{literal[0]}, which JSON does not have"
        raise Fault(literal.start() + 1, "DAT-020", what, "a number or null", "write null")
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise Fault(0, "DAT-018", f"not JSON: {error}", "one JSON object a line", "mend or remove the row") from error
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Found(
            "DAT-026",
            digits,
            f"the number {digits[:40]} is too large",
            "at most 1.8e308",
            "write it as text, in quotes",
        )
    return value


def _not_json(text: str, error: ValueError, is_last: bool) -> Fault:
    column, reason = getattr(error, "pos", -1) + 1, getattr(error, "msg", str(error))
    before = text[: max(column - 1, 0)]
    if reason == "Extra data":
        what = "something follows the row's end"
        return Fault(column, "DAT-015", what, "one object a line", "put each object on its own line")
    if is_last and not text.rstrip().endswith(("}", "]")):
        fix = "is the file still being written? fetch it again"
        return Fault(column, "DAT-016", "the last line is cut off", "a whole row", fix)
    if re.match(r"\s*[\[{]\s*'", text) or re.search(
        r"(:|,|\{)\s*('|True\b|False\b|None\b)", text[max(0, column - 3) : column + 6]
    ):
        return Fault(
            column,
            "DAT-017",
            "words or quotes of Python, not of JSON",
            'double quotes, true, null: {"a": null}',
            "write rows with json.dumps",
        )
    if re.match(r"\s*(//|/\*|#)", text[column - 1 :]) or re.match(r"\s*(//|/\*|#)", text):
        return Fault(
            column, "DAT-034", "a comment, which JSON does not have", "one JSON object a line", "remove the comment"
        )
    if "control character" in reason:
        byte = ord(text[column - 1]) if column <= len(text) else 0
        what = f"a raw control character, 0x{byte:02x}, in a text"
        return Fault(column, "DAT-035", what, f"\\u{byte:04x}", "write rows with json.dumps")
    near = before[-20:].replace("\n", " ")
    return Fault(
        column,
        "DAT-018",
        f"not JSON: {reason}" + (f" (behind {near!r})" if near else ""),
        "one JSON object a line",
        "mend or remove the row",
    )
