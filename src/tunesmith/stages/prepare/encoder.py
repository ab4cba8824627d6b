"""Chats in columns to token ids in flat arrays: templates compiled to segments, contents encoded in one call.

Equal, id by id and span by span, to the slow way: `Tokenizer.encode_example` and `encode_segments`, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.text.example import ROLES, Example, Message
from tunesmith.text.fast import best_encoder
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Tokenizer

# N rows, M turns, S segments, T tokens, K spans
TEXT = len(ROLES)  # the role of plain text
JOINED_DIFFERS, CONTROL_IN_TEXT, NOTHING_LEARNED = 1, 2, 4


@dataclass(frozen=True)
class Turns:
    """Rows in columns.

    offsets: int64 [N+1] into the turns; a row without turns gets no ids. roles: uint8 [M], places in ROLES, or TEXT.
    contents: utf8 [M]. extras: what few rows have besides (learn, weight, tools ...), as `Example.from_columns` takes it.
    """

    offsets: np.ndarray
    roles: np.ndarray
    contents: pa.Array
    extras: Sequence[dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """Token ids of rows and what of them is learned.

    ids: int32 [T]. offsets: int64 [N+1]. spans: int32 [K, 2], start:end within the row. span_offsets: int64 [N+1].
    weights: float32 [K]. refused: row -> the template's words; such a row has no ids.
    flags: uint8 [N], bits: 1 the ids of the segments joined differ from the ids of the whole text, 2 a control token
    stands inside somebody's text (it was encoded as text, and bit 1 says nothing), 4 nothing is learned.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    weights: np.ndarray
    refused: dict[int, str]
    flags: np.ndarray


@dataclass(frozen=True)
class _Laid:
    """The segments of all rows in order. source: int64 [S], place in the list of texts."""

    offsets: np.ndarray  # int64 [N+1] into the segments
    source: np.ndarray
    learned: np.ndarray  # bool [S]
    weight: np.ndarray  # float32 [S]


class Encoder:
    """A tokenizer with its template and a choice of what is learned.

    proof: whether the fast tokenizer encodes the contents, and why (not).
    """

    def __init__(self, tokenizer: Tokenizer, learn: str, sample: Sequence[str] = ()) -> None:
        self.tokenizer, self.learn = tokenizer, learn
        self._content, self.proof = best_encoder(tokenizer._content, sample)

    def encode(self, turns: Turns) -> EncodedBatch:
        count = len(turns.offsets) - 1
        refused: dict[int, str] = {}
        segments: list[list[Segment]] = []
        for row in range(count):
            try:
                segments.append(self._segments_of(turns, row))
            except TemplateError as error:
                refused[row] = str(error)
                segments.append([])
        encoded = self.tokenizer.encode_segments(segments)
        spans = [span for _, row in encoded for span in row]
        lengths, span_counts = [len(ids) for ids, _ in encoded], [len(row) for _, row in encoded]
        flags = np.zeros(count, np.uint8)
        return EncodedBatch(
            np.concatenate([ids for ids, _ in encoded]) if encoded else np.zeros(0, np.int32),
            np.cumsum([0, *lengths], dtype=np.int64),
            np.array([span[:2] for span in spans], np.int32).reshape(-1, 2),
            np.cumsum([0, *span_counts], dtype=np.int64),
            np.array([span[2] for span in spans], np.float32),
            refused,
            flags,
        )

    def _segments_of(self, turns: Turns, row: int) -> list[Segment]:
        first, end = int(turns.offsets[row]), int(turns.offsets[row + 1])
        if first == end:
            return []
        contents = turns.contents.slice(first, end - first).to_pylist()
        example = example_of(turns.roles[first:end].tolist(), contents, turns.extras[row] if turns.extras else None)
        return self.tokenizer.encode_example(example, self.learn)


def example_of(roles: list[int], contents: list[str], extra: dict[str, Any] | None) -> Example:
    if roles == [TEXT]:
        return Example(text=contents[0])
    turns = (extra or {}).get("turns", {})
    return Example(
        tuple(
            Message(ROLES[role], content, **turns.get(str(place), {}))
            for place, (role, content) in enumerate(zip(roles, contents, strict=True))
        )
    )
