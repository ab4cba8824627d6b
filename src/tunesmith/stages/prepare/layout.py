"""The columns of a part of Rows, and of verdicts on rows: what the steps of preparation hand each other."""

from __future__ import annotations

import pyarrow as pa

KEY = pa.binary(16)
TURN = pa.struct([("role", pa.int8()), ("content", pa.utf8())])

# One line per source position, in order; see docs of each column in `rows`.
PART = pa.schema(
    [
        ("row", pa.int64()),  # number over all sources
        ("source", pa.int16()),
        ("file", pa.int32()),
        ("position", pa.int64()),  # line from 1, or index from 0 in an array or table
        ("offset", pa.int64()),  # of its first byte; -1 unknown
        ("format", pa.utf8()),  # null where the row is bad
        ("problem", pa.utf8()),  # JSON {code, what, expected, fix, column, offset, raw}; null where the row is good
        ("key", KEY),
        ("prompt_key", KEY),
        ("characters", pa.int32()),  # over all turns
        ("turns", pa.list_(TURN)),
        ("extra", pa.binary()),  # JSON of what few rows have: learn, weight, reasoning, tool calls, tools, answers
        ("meta", pa.utf8()),  # JSON of the row's other columns
    ]
)

# One line per row that goes: why, by which value, missing which threshold, for which twin.
VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("rule", pa.utf8()),
        ("value", pa.float64()),
        ("detail", pa.utf8()),
        ("threshold", pa.float64()),
        ("kept_twin", pa.int64()),
    ]
)
