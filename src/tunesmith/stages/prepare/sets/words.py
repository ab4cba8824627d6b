"""Hashes of the words of turns, of runs of words, and of whole texts: what rows are compared by, without a Python object per row.

A word is a run of letters and digits in lower case after NFKC; in scripts that set no blanks (Chinese, Japanese, Korean
syllables, Thai, Lao) each character is a word of its own. Punctuation counts for nothing.
"""

# W words of a part, M turns, N rows, G runs of words ("grams") of some rows

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK = 1 << 15  # words whose runs are hashed at a time
CHUNK = 1 << 20  # bytes hashed at a time: the working arrays take eight times as much and stay near the processor
LONGEST = 1 << 22  # bytes of a turn that are looked at
TEXT, ASSISTANT = 4, 2  # roles of a turn, see layout

_ODD = np.uint64(0x9E3779B97F4A7C15)
_ROOT = 0x5851F42D4C957F2D
_INVERSE = pow(_ROOT, -1, 2**64)


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, every bit of the input in every bit of the output (splitmix64's finaliser)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


_BYTES = mixed(np.arange(1, 257, dtype=np.uint64) * _ODD)
_WORDLY = np.zeros(256, bool)
_WORDLY[[*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x80, 0x100)]] = True
_BLANK = np.zeros(256, bool)
_BLANK[[9, 10, 11, 12, 13, 32]] = True


@dataclass(frozen=True)
class Words:
    """hashes: uint64 [W] of all words in order. turns: int64 [M+1], words of turn m are hashes[turns[m]:turns[m+1]].

    contents: uint64 [M] of each turn with its punctuation, in lower case, without blanks around it.
    """

    hashes: np.ndarray
    turns: np.ndarray
    contents: np.ndarray

    @cached_property
    def sums(self) -> np.ndarray:
        """uint64 [W + 1]: up to each word the sum of hashes times powers, whose differences are hashes of stretches."""
        powers, _ = _powers(len(self.hashes) + 1)
        sums = np.zeros(len(self.hashes) + 1, np.uint64)
        np.cumsum(self.hashes * powers[: len(self.hashes)], out=sums[1:])
        return sums


def words_of(contents: pa.StringArray, unit: str = "words") -> Words:
    """The words of M turns, or their characters without blanks (unit `characters`)."""
    hashes, turns, wholes = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)], [np.zeros(0, np.uint64)]
    total = 0
    sizes = pc.binary_length(contents).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(contents):
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + CHUNK, "right")), first + 1)
        found, counts, whole = _hash_chunk(contents.slice(first, last - first), unit)
        hashes.append(found)
        wholes.append(whole)
        turns.append(counts + total)
        total += len(found)
        first = last
    return Words(np.concatenate(hashes), np.concatenate(turns), np.concatenate(wholes))


def _hash_chunk(contents: pa.StringArray, unit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint64 of the words, for each turn how many words it and those before it have, uint64 of each turn)."""
    if len(contents) == 1 and len(contents[0].as_buffer() or b"") > LONGEST:
        whole = bytes(contents[0].as_buffer())[:LONGEST]
        contents = pa.array([whole.decode("utf-8", "ignore")], pa.string())
    if not pc.all(pc.string_is_ascii(contents)).as_py():
        contents = pc.utf8_normalize(contents, "NFKC")
    contents = pc.utf8_trim_whitespace(pc.utf8_lower(contents))
    offsets, data = _buffers(contents)
    starts, ends = _bounds(data, offsets, unit)
    powers, inverses = _powers(len(data) + 1)
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(_BYTES[data] * powers[: len(data)], out=sums[1:])

    def between(begins: np.ndarray, behind: np.ndarray) -> np.ndarray:
        return mixed((sums[behind] - sums[begins]) * inverses[begins] + (behind - begins).astype(np.uint64) * _ODD)

    return between(starts, ends), np.searchsorted(starts, offsets[1:]), between(offsets[:-1], offsets[1:])


def _buffers(contents: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 offsets from 0, uint8 bytes) of an array that may be a slice of a larger one and hold nulls of no length."""
    _, offsets, data = contents.buffers()
    places = np.frombuffer(offsets, np.int32)[contents.offset : contents.offset + len(contents) + 1].astype(np.int64)
    held = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return places - places[0], held[places[0] : places[-1]]


def _bounds(data: np.ndarray, offsets: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 first byte, and byte behind the last, of every word."""
    if not len(data):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    begins = np.zeros(len(data) + 3, bool)
    begins[offsets[:-1]] = True
    if unit == "characters":
        inside = ~_BLANK[data]
        begins[: len(data)] |= (data & 0xC0) != 0x80
    else:
        inside = _WORDLY[data]
        if data.max() >= 0x80:
            _bound_by_script(data, inside, begins)
    begins = begins[: len(data)]
    begins[1:] |= ~inside[:-1]
    begins &= inside
    ends = inside.copy()
    ends[:-1] &= ~inside[1:] | begins[1:]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _bound_by_script(data: np.ndarray, inside: np.ndarray, begins: np.ndarray) -> None:
    """Characters of scripts without blanks begin and end a word; signs beyond ASCII are no words. Changes both masks."""
    second, third = np.roll(data, -1), np.roll(data, -2)
    signs = ((data == 0xE2) & (second <= 0x81)) | ((data == 0xE3) & (second == 0x80) & (third < 0x95))
    places = np.flatnonzero(signs)
    for step in range(3):
        inside[np.minimum(places + step, len(data) - 1)] = False
    thai = (data == 0xE0) & (second >= 0xB8) & (second <= 0xBB)
    places = np.flatnonzero((((data >= 0xE3) & (data <= 0xED)) & ~signs) | thai)
    begins[places] = True
    begins[places + 3] = True
    places = np.flatnonzero((data == 0xF0) & (second >= 0xA0) & (second <= 0xAF))
    begins[places] = True
    begins[np.minimum(places + 4, len(begins) - 1)] = True


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 powers of a base modulo 2**64 and of its inverse: a word's hash does not depend on where it stands."""
    global _known
    if len(_known[0]) < length:
        size = max(length, 2 * CHUNK)
        bases = (np.full(size, base, np.uint64) for base in (_ROOT, _INVERSE))
        grown = []
        for values in bases:
            values[0] = 1
            grown.append(np.cumprod(values, dtype=np.uint64))
        if size > 2 * CHUNK:
            return grown[0], grown[1]  # too large to keep
        _known = (grown[0], grown[1])
    return _known


_known: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))


# ---------------------------------------------------------------------------------------------------- texts of rows


@dataclass(frozen=True)
class Spans:
    """Of N rows the words of one text: hashes[starts[n]:ends[n]]; empty where the row has no such text."""

    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Turns:
    """Of N rows, int64 [N] each: first turn, the one behind those that ask, the answer (-1: none), the one behind the last.

    The answer is the last turn of the assistant, what asks stands before it, as in Example.prompt. Plain text asks with all
    it has, and so do rows with answers beside their turns (preference pairs, ranked answers).
    """

    first: np.ndarray
    asked: np.ndarray
    answer: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, part: pa.Table) -> Turns:
        turns = column(part, "turns")
        offsets = turns.offsets.to_numpy().astype(np.int64)
        offsets = offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)
        roles = turns.flatten().field("role").to_numpy(zero_copy_only=False)
        first, end = offsets[:-1], offsets[1:]
        asks = np.zeros(len(first), bool)
        filled = end > first
        asks[filled] = roles[first[filled]] == TEXT
        extra = column(part, "extra")
        if extra.null_count < len(extra):
            asks |= _with_answers(extra)
        last = np.where(asks, -1, _last_answers(roles, first, end))
        return cls(first, np.where(asks, end, np.where(last >= 0, last, first)), last, end)


def texts(turns: Turns, words: Words) -> dict[str, Spans]:
    """`prompt`, `answer` and `both` (all turns) of each row."""
    answer = np.where(turns.answer >= 0, turns.answer, turns.end)
    behind = np.where(turns.answer >= 0, turns.answer + 1, turns.end)
    return {
        "prompt": Spans(words.turns[turns.first], words.turns[turns.asked]),
        "answer": Spans(words.turns[answer], words.turns[behind]),
        "both": Spans(words.turns[turns.first], words.turns[turns.end]),
    }


def answers(turns: Turns, words: Words) -> np.ndarray:
    """uint64 [N] of each row's answer with its punctuation: 5 and -5 are two; 0 where there is none."""
    found = np.zeros(len(turns.answer), np.uint64)
    has = turns.answer >= 0
    found[has] = np.maximum(words.contents[turns.answer[has]], np.uint64(1))
    return found


def column(part: pa.Table, name: str) -> pa.Array:
    """A column of a part in one piece."""
    found = part.column(name)
    return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()


def _with_answers(extra: pa.BinaryArray) -> np.ndarray:
    """bool [N]: rows with answers beside their turns."""
    found = pc.match_substring(extra, '"answers"').fill_null(False).to_numpy(zero_copy_only=False)
    # The word may be a parameter of a tool as well.
    for row in np.flatnonzero(
        found & ~pc.starts_with(extra, '{"answers"').fill_null(False).to_numpy(zero_copy_only=False)
    ):
        found[row] = "answers" in json.loads(extra[row].as_py())
    return found


def _last_answers(roles: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64 [N]: the turn that is the row's last answer; -1 where there is none."""
    found = np.full(len(first), -1, np.int64)
    places = np.flatnonzero(roles == ASSISTANT)
    if len(places):
        behind = np.searchsorted(places, end) - 1
        last = places[np.maximum(behind, 0)]
        has = (behind >= 0) & (last >= first)
        found[has] = last[has]
    return found


def whole(words: Words, spans: Spans) -> np.ndarray:
    """uint64 [N] of all words of each text in order; 0 where it has none."""
    _, inverses = _powers(len(words.hashes) + 1)
    found = (words.sums[spans.ends] - words.sums[spans.starts]) * inverses[spans.starts]
    found = mixed(found + (spans.ends - spans.starts).astype(np.uint64) * _ODD)
    return np.where(spans.ends > spans.starts, np.maximum(found, np.uint64(1)), np.uint64(0))


def grams(words: Words, spans: Spans, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [G] of all runs of `length` words, int64 [N+1] where those of each text begin).

    A text with fewer words has one run: all of them.
    """
    count = spans.ends - spans.starts
    runs = np.where(count >= length, count - length + 1, (count > 0).astype(np.int64))
    offsets = np.zeros(len(runs) + 1, np.int64)
    np.cumsum(runs, out=offsets[1:])
    if not offsets[-1]:
        return np.zeros(0, np.uint64), offsets
    found = np.empty(offsets[-1], np.uint64)
    # Texts of some thousand words at a time: what is made on the way stays in the processor's cache.
    cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], BLOCK))
    for first, last in pairwise(np.unique([*cuts, len(runs)]).tolist()):
        starts, ends = spans.starts[first:last], spans.ends[first:last]
        begin = starts.min()
        every = _runs(words.hashes[begin : ends.max()], length)
        own = offsets[first:last]
        places = np.arange(own[0], offsets[last]) + np.repeat(starts - begin - own, runs[first:last])
        found[own[0] : offsets[last]] = mixed(every[places])
    short = np.flatnonzero((count > 0) & (count < length))
    found[offsets[short]] = whole(words, Spans(spans.starts[short], spans.ends[short]))
    return found, offsets


def _runs(hashes: np.ndarray, length: int) -> np.ndarray:
    """uint64 [W]: of each word a hash of itself and the next length - 1, as if the last were followed by zeros.

    h[n] R^(length-1) + h[n+1] R^(length-2) + ... + h[n+length-1] modulo 2**64, by doubling.
    """
    num_words = len(hashes)
    power = np.concatenate([hashes, np.zeros(length, np.uint64)])  # runs of `size` words
    size, done, found = 1, 0, np.zeros(num_words, np.uint64)
    while True:
        if length & size:  # behind the runs of `done` words come those of `size`
            found *= np.uint64(pow(_ROOT, size, 2**64))
            found += power[done : done + num_words]
            done += size
        if done == length:
            return found
        longer = power * np.uint64(pow(_ROOT, size, 2**64))
        longer[:-size] += power[size:]
        power, size = longer, 2 * size
