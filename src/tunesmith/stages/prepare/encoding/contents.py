"""Contents of many turns at once: answers to what a template asks, stripping, edges; no Python function per turn."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.text.fast import Texts
from tunesmith.text.literal import Change, Look, apply

QUESTIONS = {
    "holds": pc.match_substring,
    "begins": pc.starts_with,
    "ends": pc.ends_with,
    "equals": lambda texts, what: pc.equal(texts, what),
    "filled": lambda texts, _: pc.greater(pc.binary_length(texts), 0),
}


class Contents:
    """utf8 [M] with answers that are worked out once."""

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts.cast(pa.large_utf8())
        self._answers: dict[tuple[Change, str, str], np.ndarray] = {}
        self._changed: dict[Change, tuple[np.ndarray, list[str]]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        return edges(self.texts)

    def answer(self, look: Look) -> np.ndarray:
        """bool [M]; the look's place does not matter."""
        key = (look.change, look.kind, look.what)
        if key not in self._answers:
            self._answers[key] = self._answer(look)
        return self._answers[key]

    def _answer(self, look: Look) -> np.ndarray:
        if look.kind == "changes":
            places, _ = self.changed(look.change)
            out = np.zeros(len(self), bool)
            out[places] = True
            return out
        found = QUESTIONS[look.kind](self.after(look.change), look.what)
        return found.to_numpy(zero_copy_only=False)

    def after(self, change: Change) -> pa.Array:
        places, texts = self.changed(change)
        return put(self.texts, places, texts)

    def changed(self, change: Change) -> tuple[np.ndarray, list[str]]:
        """(places of the contents that stripping changes, what they become)."""
        if change not in self._changed:
            self._changed[change] = self._strip(change)
        return self._changed[change]

    def _strip(self, change: Change) -> tuple[np.ndarray, list[str]]:
        if not change:
            return np.zeros(0, np.int64), []
        places = np.flatnonzero(self._edges_may_go(change))
        before = self.texts.take(pa.array(places)).to_pylist()
        found = [
            (place, after) for place, text in zip(places, before, strict=True) if (after := apply(change, text)) != text
        ]
        return np.array([place for place, _ in found], np.int64), [text for _, text in found]

    def _edges_may_go(self, change: Change) -> np.ndarray:
        """bool [M]: contents whose first or last byte may belong to what is stripped."""
        goes = np.zeros(256, bool)
        for _, characters in change:
            if characters is None:
                goes[:33] = goes[127:] = True  # blanks beyond ASCII begin with a byte from 128 on and end with one
            else:
                raw = characters.encode()
                goes[list(raw)] = True
        data, offsets = buffers(self.texts)
        first, last = offsets[:-1], offsets[1:] - 1
        out = np.zeros(len(self), bool)
        filled = np.flatnonzero(last >= first)
        out[filled] = goes[data[first[filled]]] | goes[data[last[filled]]]
        return out


def put(texts: pa.Array, places: np.ndarray, values: list[str]) -> pa.Array:
    """texts with other values at places (ascending)."""
    if not len(places):
        return texts
    mask = np.zeros(len(texts), bool)
    mask[places] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(values, texts.type))


def holding(texts: pa.Array, stem: str) -> np.ndarray:
    """Places, ascending, of the texts that hold a stem of a few letters, and maybe of some that end within it: int64.

    One look through all their bytes, where a search text by text costs ten times as much.
    """
    data, offsets = buffers(texts)
    data = data[offsets[0] : offsets[-1]]
    letters = stem.encode()
    at = np.flatnonzero(data == letters[0])
    for step, letter in enumerate(letters[1:], 1):
        at = at[at < len(data) - step]
        at = at[data[at + step] == letter]
    return np.unique(np.searchsorted(offsets, at + offsets[0], "right") - 1)


def buffers(texts: pa.Array) -> Texts:
    """(UTF-8 bytes, offsets) of large_utf8 without a copy."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8), ends


def edges(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(code point of the first character, of the last one) of each text, -1 of an empty one: int32 [M]."""
    data, offsets = buffers(texts)
    first, end = offsets[:-1], offsets[1:]
    filled = np.flatnonzero(end > first)
    out = np.full((2, len(texts)), -1, np.int32)
    out[0, filled] = _decode(data, first[filled])
    start = end[filled] - 1
    for _ in range(3):  # back to the byte that begins the character
        start = start - ((data[start] & 0xC0) == 0x80)
    out[1, filled] = _decode(data, start)
    return out[0], out[1]


def _decode(data: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Code points of the UTF-8 characters that begin at these bytes."""
    lead = data[start].astype(np.int32)
    length = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
    point = np.where(length == 1, lead, lead & np.array([0, 0x7F, 0x1F, 0x0F, 0x07])[length])
    for number in range(1, 4):
        more = length > number
        point[more] = point[more] << 6 | (data[start[more] + number] & 0x3F)
    return point
