"""Keys of many rows at once: equal, row by row, to `text.keys`."""

# N rows, M turns

from __future__ import annotations

import itertools

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from tunesmith.text.example import ASSISTANT, TEXT
from tunesmith.text.keys import plain_text

_TURN = np.dtype([("role", "u1"), ("size", "<i4")])
# Bytes of a text that is not its own JSON, or whose white space may be more than single blanks.
_ODD = np.zeros(256, bool)
_ODD[[*range(0x20), 0x22, 0x5C, *range(0x80, 0x100)]] = True


def content_keys(roles: np.ndarray, contents: pa.StringArray, turns: np.ndarray) -> list[bytes]:
    """`content_key` of each row without extra. roles int8 [M]. turns: int32 [N+1] into them."""
    ends, data = _buffers(contents)
    told = np.empty(len(roles), _TURN)
    told["role"], told["size"] = roles, np.diff(ends)
    heads = told.tobytes()
    bounds, places = ends[turns].tolist(), (turns * _TURN.itemsize).tolist()
    held = data.tobytes()
    return [
        xxh3_128_digest(held[bounds[n] : bounds[n + 1]] + heads[places[n] : places[n + 1]])
        for n in range(len(turns) - 1)
    ]


def prompt_keys(roles: np.ndarray, contents: pa.StringArray, turns: np.ndarray) -> list[bytes]:
    """`prompt_key` of each row without extra."""
    asked = _num_asked(roles, turns)
    starts = np.concatenate([[0], np.cumsum(asked, dtype=np.int32)]).astype(np.int32)
    places = np.arange(starts[-1]) + np.repeat(turns[:-1] - starts[:-1], asked)
    written = _as_json(contents.take(pa.array(places)))
    ends, data = _buffers(pc.binary_join(pa.ListArray.from_arrays(pa.array(starts), written), '","'))
    bounds, held = ends.tolist(), data.tobytes()
    keys = [xxh3_128_digest(b'["' + held[start:end] + b'"]') for start, end in itertools.pairwise(bounds)]
    for row in np.flatnonzero(asked == 0).tolist():
        keys[row] = xxh3_128_digest(b"[]")
    return keys


def _num_asked(roles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """`keys.num_asked` of each row: int32 [N]."""
    last = np.maximum.reduceat(np.where(roles == ASSISTANT, np.arange(len(roles)), -1), turns[:-1])
    whole = roles[turns[:-1]] == TEXT
    return np.where(whole, np.diff(turns), np.maximum(last - turns[:-1], 0)).astype(np.int32)


def _as_json(texts: pa.StringArray) -> pa.StringArray:
    """`plain_text` of each, as JSON has it between its quotes."""
    plain = pc.ascii_trim(pc.ascii_lower(texts), " ")
    ends, data = _buffers(texts)
    odd = np.flatnonzero(_ODD[data])
    blanks = data == 0x20
    twice = np.flatnonzero(blanks[1:] & blanks[:-1])
    hit = np.zeros(len(texts), bool)
    for found in (odd, twice):
        hit[np.searchsorted(ends, found, "right") - 1] = True
    if hit.any():
        chosen = texts.filter(pa.array(hit)).to_pylist()
        written = [orjson.dumps(plain_text(text))[1:-1].decode() for text in chosen]
        plain = pc.replace_with_mask(plain, pa.array(hit), pa.array(written, pa.utf8()))
    return plain


def _buffers(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(int32 ends from 0, bytes) of an array without nulls."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    held = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return ends - ends[0], held[ends[0] : ends[-1]]
