"""Characters that look like nothing or like others: counted and shown, never changed. Texts in ASCII are passed over at once."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import pyarrow.compute as pc

from tunesmith.stages.prepare.cleaning.texts import Texts

# What is common in honest text is left out: joiners of Persian and emoji, marks of direction, the ideographic space.
CLASSES = {
    "bidirectional controls": r"[\x{202A}-\x{202E}\x{2066}-\x{2069}]",
    "zero-width characters": r"[\x{00AD}\x{180E}\x{200B}\x{2060}-\x{2064}\x{FEFF}]",
    "odd spaces": r"[\x{00A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}]",
}
NOT_NFC = "text that is not composed (NFC)"
LAST = 0x2FA20  # behind it nothing decomposes
JAMO = ((0x1161, 0x1175), (0x11A8, 0x11C2))  # Hangul vowels and finals compose by rule, not by table


def odd_characters(texts: Texts) -> dict[str, np.ndarray]:
    """Kind -> rows of the part that hold some, ascending."""
    other = np.flatnonzero(~pc.string_is_ascii(texts.contents).to_numpy(zero_copy_only=False))
    if not len(other):
        return {}
    any_kind = "|".join([*CLASSES.values(), _may_be_uncomposed()])  # most texts have none: they are passed over at once
    other = other[_matches(texts.contents.take(other), any_kind)]
    contents, rows = texts.contents.take(other), texts.rows_M[other]
    hits = {kind: _matches(contents, pattern) for kind, pattern in CLASSES.items()}
    suspects = np.flatnonzero(_matches(contents, _may_be_uncomposed()))
    apart = [place for place in suspects.tolist() if not unicodedata.is_normalized("NFC", contents[place].as_py())]
    hits[NOT_NFC] = np.array(apart, np.int64)
    return {kind: found for kind, hit in hits.items() if len(found := np.unique(rows[hit]))}


def _matches(contents: object, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(contents, pattern).to_numpy(zero_copy_only=False)


@cache
def _may_be_uncomposed() -> str:
    """A class of all characters without which a text is in NFC."""
    found = {code for first, last in JAMO for code in range(first, last + 1)}
    for code in range(0x80, LAST):
        char = chr(code)
        if unicodedata.combining(char) or not unicodedata.is_normalized("NFC", char):
            found.add(code)
        pieces = unicodedata.decomposition(char).split()
        if len(pieces) == 2 and not pieces[0].startswith("<"):
            found.add(int(pieces[1], 16))
    codes = np.array(sorted(found))
    starts = np.flatnonzero(np.diff(codes, prepend=-2) > 1)
    ends = np.append(starts[1:], len(codes)) - 1
    ranges = [rf"\x{{{codes[a]:X}}}-\x{{{codes[b]:X}}}" for a, b in zip(starts, ends, strict=True)]
    return f"[{''.join(ranges)}]"
