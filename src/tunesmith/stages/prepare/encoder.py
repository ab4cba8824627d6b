"""TEMPORARY until the encoder's branch lands."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import numpy as np
import pyarrow as pa
from tunesmith.text.example import Example
from tunesmith.text.templates import TemplateError


@dataclass(frozen=True)
class Turns:
    offsets: np.ndarray
    roles: np.ndarray
    contents: pa.Array
    extras: list | None = None


@dataclass(frozen=True)
class EncodedBatch:
    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    weights: np.ndarray
    refused: dict
    flags: np.ndarray


class Encoder:
    def __init__(self, tokenizer, learn):
        self.tokenizer, self.learn = tokenizer, learn

    def encode(self, turns):
        n = len(turns.offsets) - 1
        contents = turns.contents.to_pylist()
        rows, refused, segs = [], {}, []
        for i in range(n):
            a, b = turns.offsets[i], turns.offsets[i + 1]
            if a == b:
                continue
            ex = Example.from_columns(turns.roles[a:b].tolist(), contents[a:b], turns.extras[i] if turns.extras else None, None)
            try:
                segs.append(self.tokenizer.encode_example(ex, self.learn))
                rows.append(i)
            except TemplateError as e:
                refused[i] = str(e)
        ids = [np.zeros(0, np.int32)] * n
        spans = [[]] * n
        for i, (x, s) in zip(rows, self.tokenizer.encode_segments(segs)):
            ids[i], spans[i] = x, s
        flat = [q for s in spans for q in s]
        return EncodedBatch(
            np.concatenate(ids).astype(np.int32) if n else np.zeros(0, np.int32), np.cumsum([0, *map(len, ids)], dtype=np.int64),
            np.array([q[:2] for q in flat], np.int32).reshape(-1, 2), np.cumsum([0, *map(len, spans)], dtype=np.int64),
            np.array([q[2] for q in flat], np.float32), refused, np.zeros(n, np.uint8))
