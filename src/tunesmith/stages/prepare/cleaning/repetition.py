"""How much a text repeats itself: n-grams of words, lines, and runs of one character."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from tunesmith.stages.prepare.cleaning.characters import sum_segments
from tunesmith.stages.prepare.cleaning.texts import Texts

BLANK = np.array([byte in b" \t\n\r\x0b\x0c" for byte in range(256)], bool)
CJK = np.array(
    [0xE3 <= byte <= 0xED or byte == 0xEF or byte >= 0xF0 for byte in range(256)], bool
)  # first bytes from U+3000 on
# A polynomial hash modulo 2^64 whose base has an inverse, so that the hash of any stretch is a difference of prefix sums.
BASE = 0x9E3779B97F4A7C15
STRETCH = 2**18  # bytes
HASH_BITS = (
    40  # beside the number of the text in one integer; equal hashes of unequal n-grams of one text: 1e-8 for 100 words
)


@dataclass(frozen=True)
class Repetition:
    """Each [M]. ngrams: share of n-grams that occurred before in the same text. lines: share of its bytes in lines that did.
    run: the longest run of one ASCII character that is no blank."""

    ngrams: np.ndarray
    lines: np.ndarray
    run: np.ndarray


def repetition_of(texts: Texts, ngram: int) -> Repetition:
    """Measures every text on its own. ngram: words in an n-gram; a CJK character counts as a word."""
    offsets_M = texts.offsets_M.astype(np.int64)
    parts = []
    # What is made of a quarter of a megabyte stays in the processor's cache: twice as fast, and memory does not grow with the part.
    for first, end in _stretches(offsets_M):
        data_N = texts.bytes_N[offsets_M[first] : offsets_M[end]]
        parts.append(_measure(data_N, offsets_M[first : end + 1] - offsets_M[first], ngram))
    return Repetition(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _stretches(offsets_M: np.ndarray) -> list[tuple[int, int]]:
    """Neighbouring texts of about STRETCH bytes together; one stretch at least."""
    firsts = np.searchsorted(offsets_M[:-1], np.arange(offsets_M[0], offsets_M[-1], STRETCH))
    bounds = sorted({0, *firsts.tolist(), len(offsets_M) - 1})
    return list(itertools.pairwise(bounds)) or [(0, 0)]


def _measure(data_N: np.ndarray, offsets_M: np.ndarray, ngram: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_texts = len(offsets_M) - 1
    if not len(data_N):
        return np.zeros(num_texts), np.zeros(num_texts), np.zeros(num_texts, np.int64)
    powers_N, inverse_N = _powers(len(data_N))
    prefix_N = np.zeros(len(data_N) + 1, np.uint64)
    np.cumsum((data_N.astype(np.uint64) + 1) * powers_N[: len(data_N)], out=prefix_N[1:])

    def hashes(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return (prefix_N[ends] - prefix_N[starts]) * inverse_N[starts]

    return (
        _repeated_ngrams(data_N, offsets_M, hashes, ngram),
        _repeated_lines(data_N, offsets_M, hashes),
        _longest_runs(data_N, offsets_M),
    )


_KNOWN_POWERS: list[np.ndarray] = []


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE ** n and BASE ** -n for n below length, uint64."""
    if not _KNOWN_POWERS or len(_KNOWN_POWERS[0]) < length:
        size = max(length, 1 << 20)
        _KNOWN_POWERS[:] = [
            np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, base, np.uint64)]))
            for base in (BASE, pow(BASE, -1, 2**64))
        ]
    return _KNOWN_POWERS[0], _KNOWN_POWERS[1]


def _repeated_ngrams(data_N, offsets_M, hashes, ngram: int) -> np.ndarray:
    blank_N = BLANK[data_N]
    begins_N = np.empty(len(data_N), bool)
    begins_N[0] = True
    begins_N[1:] = blank_N[:-1] | CJK[data_N[1:]]
    # A CJK character is a word of its own, so that what follows it begins one as well.
    cjk_end = np.flatnonzero(CJK[data_N]) + np.where(data_N[CJK[data_N]] >= 0xF0, 4, 3)
    begins_N[cjk_end[cjk_end < len(data_N)]] = True
    begins_N[offsets_M[:-1][offsets_M[:-1] < len(data_N)]] = True
    begins_N &= ~blank_N
    starts_W = np.flatnonzero(begins_N)
    if not len(starts_W):
        return np.zeros(len(offsets_M) - 1)
    # A word ends at the next blank, the next word or the end of its text, whichever comes first.
    ends_N = blank_N.copy()
    ends_N[starts_W] = True
    ends_N[offsets_M[:-1][offsets_M[:-1] < len(data_N)]] = True
    marks = np.append(np.flatnonzero(ends_N), len(data_N))
    ends_W = marks[np.searchsorted(marks, starts_W) + 1]
    texts_W = np.searchsorted(offsets_M, starts_W, side="right") - 1
    words_W = hashes(starts_W, ends_W)
    count = len(words_W) - ngram + 1
    if count <= 0:
        return np.zeros(len(offsets_M) - 1)
    grams_G = np.zeros(count, np.uint64)
    for place in range(ngram):
        grams_G = grams_G * np.uint64(0xD6E8FEB86659FD93) + words_W[place : place + count]
    inside_G = texts_W[:count] == texts_W[ngram - 1 :]
    grams_G, texts_G = grams_G[inside_G], texts_W[:count][inside_G]
    # The high bits of a product depend on all bits of its factors.
    mixed_G = (grams_G * np.uint64(0xFF51AFD7ED558CCD)) >> np.uint64(64 - HASH_BITS)
    keys_G = np.sort(texts_G.astype(np.uint64) << np.uint64(HASH_BITS) | mixed_G)
    again = (keys_G[1:][keys_G[1:] == keys_G[:-1]] >> np.uint64(HASH_BITS)).astype(np.int64)
    num_texts = len(offsets_M) - 1
    total_M = np.bincount(texts_G, minlength=num_texts)
    return np.bincount(again, minlength=num_texts) / np.maximum(total_M, 1)


def _repeated_lines(data_N, offsets_M, hashes) -> np.ndarray:
    num_texts = len(offsets_M) - 1
    breaks = np.flatnonzero(data_N == 10)
    if not len(breaks):
        return np.zeros(num_texts)
    bounds = np.unique(np.concatenate([offsets_M, breaks + 1]))
    starts_L, ends_L = bounds[:-1], bounds[1:]
    ends_L = ends_L - ((data_N[ends_L - 1] == 10) & (ends_L > starts_L))
    written_L = sum_segments((~BLANK[data_N]).view(np.uint8), bounds) > 0
    starts_L, ends_L = starts_L[written_L], ends_L[written_L]
    texts_L = np.searchsorted(offsets_M, starts_L, side="right") - 1
    order = np.lexsort((starts_L, found := hashes(starts_L, ends_L), texts_L))
    same = (texts_L[order][1:] == texts_L[order][:-1]) & (found[order][1:] == found[order][:-1])
    sizes_L = (ends_L - starts_L).astype(np.float64)
    again = order[1:][same]
    repeated_M = np.bincount(texts_L[again], sizes_L[again], num_texts)
    return repeated_M / np.maximum(np.bincount(texts_L, sizes_L, num_texts), 1)


def _longest_runs(data_N, offsets_M) -> np.ndarray:
    changes_N = np.empty(len(data_N), bool)
    changes_N[0] = True
    np.not_equal(data_N[1:], data_N[:-1], out=changes_N[1:])
    changes_N[offsets_M[:-1][offsets_M[:-1] < len(data_N)]] = True
    starts_S = np.flatnonzero(changes_N)
    lengths_S = np.diff(starts_S, append=len(data_N))
    long_S = lengths_S > 2  # all but a few runs are of one character
    starts_S, lengths_S = starts_S[long_S], lengths_S[long_S]
    seen = (data_N[starts_S] < 0x80) & ~BLANK[data_N[starts_S]]
    out_M = np.minimum(np.diff(offsets_M), 1)
    np.maximum.at(out_M, np.searchsorted(offsets_M, starts_S[seen], side="right") - 1, lengths_S[seen])
    return out_M
