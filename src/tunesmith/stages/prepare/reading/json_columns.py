"""JSON Lines whose rows are all alike, parsed into columns at once by Arrow: the same rows as one by one, or none at all.

Arrow's parser refuses what is no JSON, a repeated key, an unexpected column and a value of another type, so that such a
block is read row by row, where each fault gets its code and its place. What it passes over is looked for here: rows that
do not stand on one line each, columns that are missing, text that is not UTF-8.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json

from tunesmith.stages.prepare.reading.found import MAX_LINE_BYTES

_BRACES, _LINE_END, _RETURN = (0x7B, 0x7D), 0x0A, 0x0D


class Block(NamedTuple):
    """Rows of neighbouring lines. position: of the first, from 1. offsets: int64 [N], first byte of each row in its file."""

    position: int
    offsets: np.ndarray
    rows: pa.RecordBatch


def read_block(block: bytes, schema: pa.Schema, position: int, offset: int) -> Block | None:
    """The rows of whole lines; None where one of them is not exactly of this schema, without nulls.

    position: of the first line. offset: of the block in its file.
    """
    starts = _lines(block)
    if starts is None:
        return None
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except (pa.ArrowException, UnicodeDecodeError):  # the latter: of its message, which quotes the row
        return None
    if table.num_rows != len(starts):
        return None
    rows = table.combine_chunks().to_batches()[0]
    try:
        rows.validate(full=True)  # Arrow's parser takes any bytes for text
    except pa.ArrowInvalid:
        return None
    if any(map(_has_nulls, rows.columns)):
        return None
    return Block(position, starts + offset, rows)


def _lines(block: bytes) -> np.ndarray | None:
    """int64 [N], where each line begins; None unless each is a `{...}` of its own.

    As many objects as lines are then one object on each line: where an object went on in the next line, its break would
    stand between `}` and `{`, and JSON wants a comma there.
    """
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == _LINE_END)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (
        not len(ends)
        or ends[-1] != len(text) - 1
        or np.any(ends - starts < 2)
        or np.max(ends - starts) > MAX_LINE_BYTES
    ):
        return None
    lasts = ends - 1 - (text[ends - 1] == _RETURN)
    if np.any(text[starts] != _BRACES[0]) or np.any(text[lasts] != _BRACES[1]):
        return None
    return starts


def _has_nulls(column: pa.Array) -> bool:
    if column.null_count:
        return True
    if pa.types.is_list(column.type):
        return _has_nulls(column.flatten())
    return pa.types.is_struct(column.type) and any(map(_has_nulls, column.flatten()))
