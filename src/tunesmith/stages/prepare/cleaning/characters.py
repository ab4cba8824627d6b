"""Counts of characters by kind, over the bytes of UTF-8: control characters, letters, all."""

from __future__ import annotations

import numpy as np

from tunesmith.stages.prepare.cleaning.texts import Texts

# By byte. A continuation byte (0x80-0xBF) belongs to the character before it.
STARTS = np.array([not 0x80 <= byte < 0xC0 for byte in range(256)], np.uint8)
# ASCII letters; of other scripts every character from U+00C0 on counts as a letter, which dashes, quotes and other signs of
# U+2000-U+2BFF and U+3000-U+303F are counted out of by their first bytes E2 and (E3 80).
LETTERS = np.array(
    [chr(byte).isalpha() if byte < 0x80 else byte >= 0xC3 and byte != 0xE2 for byte in range(256)], np.uint8
)
CONTROLS = np.array([(byte < 32 and byte not in (9, 10, 13)) or byte == 127 for byte in range(256)], bool)
REPLACEMENT = (0xEF, 0xBF, 0xBD)  # U+FFFD in UTF-8


def count_controls(texts: Texts) -> np.ndarray:
    """int64 [M]: C0 control characters but tab and line ends, DEL, and U+FFFD."""
    data_N = texts.bytes_N
    # Few bytes lie in the range at all, and most of these are line ends: only they are looked up.
    low = np.flatnonzero((data_N < 32) | (data_N == 127))
    places = low[CONTROLS[data_N[low]]]
    if len(data_N) > 2:
        first, second, third = REPLACEMENT
        # Most texts have no U+FFFD: its second byte is looked at only where its first one is.
        begins = np.flatnonzero(data_N[:-2] == first)
        begins = begins[(data_N[begins + 1] == second) & (data_N[begins + 2] == third)]
        places = np.concatenate([places, begins])
    texts_K = np.searchsorted(texts.offsets_M, places, side="right") - 1
    inside = (texts_K >= 0) & (texts_K < len(texts.contents))
    return np.bincount(texts_K[inside], minlength=len(texts.contents))


def count_by(table: np.ndarray, texts: Texts) -> np.ndarray:
    """int64 [M]: how many bytes of each text the table marks. table: STARTS (then characters are counted) or LETTERS."""
    return sum_segments(table[texts.bytes_N], texts.offsets_M)


def sum_segments(values_N: np.ndarray, offsets_M: np.ndarray) -> np.ndarray:
    """int64 [M]: sums between neighbouring offsets; an empty text gives 0."""
    if len(offsets_M) < 2:
        return np.zeros(0, np.int64)
    padded_N = np.append(values_N, np.zeros(1, values_N.dtype))  # so that the last offset is a place
    sums = np.add.reduceat(padded_N, offsets_M, dtype=np.int64)[:-1]
    return np.where(offsets_M[1:] > offsets_M[:-1], sums, 0)
