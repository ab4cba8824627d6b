"""Rows of JSON Lines that are all alike and nothing but texts, as columns of a part without a Python object per row.

The same rows, keys and counts as one by one (`text.formats`): what this way does not know, it leaves to that one.
"""

# N rows, M turns

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.stages.prepare.layout import KEY
from tunesmith.stages.prepare.reading.json_columns import read_block
from tunesmith.stages.prepare.row_keys import content_keys, prompt_keys
from tunesmith.text.chats import check_order
from tunesmith.text.example import ASSISTANT, TEXT, USER
from tunesmith.text.formats import JUDGED, READS, is_told_by_columns, plain_columns, recognise
from tunesmith.text.turns import SHAREGPT, STRICT, FormatProblem

_TYPES: dict[type, pa.DataType] = {str: pa.utf8(), bool: pa.bool_(), int: pa.int64()}
_SPEAKERS = {"messages": ("role", "content", STRICT), "sharegpt": ("from", "value", SHAREGPT)}
# First bytes of characters that are white space; most texts begin with none of them.
_BLANK = np.zeros(256, bool)
_BLANK[[*range(0x21), 0xC2, 0xE1, 0xE2, 0xE3]] = True


@dataclass(frozen=True)
class Alike:
    """N good rows of one format. position: of the first; the others follow. columns: names, as they were read.

    offsets: int64 [N]. turns: int32 [N+1] into roles int8 [M] and contents [M]. keys, prompt_keys: binary[16] [N].
    characters: int32 [N]. metas: [N], JSON of the other columns; None without any.
    """

    format: str
    columns: tuple[str, ...]
    position: int
    offsets: np.ndarray
    turns: np.ndarray
    roles: np.ndarray
    contents: pa.StringArray
    keys: pa.Array
    prompt_keys: pa.Array
    characters: np.ndarray
    metas: list[str] | None

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class _Way:
    """How rows like a first one are read. texts: `formats.plain_columns`. others: columns that go to meta."""

    format: str
    schema: pa.Schema
    texts: tuple[str, ...]
    others: tuple[str, ...]


class Reader:
    """Takes blocks of lines for a source that says nothing about its rows but perhaps their format."""

    def __init__(self, asked: str) -> None:
        self.asked = asked

    def __call__(self, lines: bytes, position: int, offset: int) -> Alike | None:
        """The rows of these lines; None where they are not all alike. See `json_lines.Take`."""
        try:
            way = _way_of(orjson.loads(lines[: lines.index(b"\n")]), self.asked)
        except (orjson.JSONDecodeError, FormatProblem):
            return None
        block = read_block(lines, way.schema, position, offset) if way is not None else None
        found = _turns_of(way, block.rows) if way is not None and block is not None else None
        if way is None or block is None or found is None:
            return None
        roles, contents, turns = found
        if contents.offset or not _are_learnable(roles, contents, turns, way.format):
            return None
        lengths = pc.utf8_length(contents).to_numpy()
        return Alike(
            way.format,
            tuple(way.schema.names),
            position,
            block.offsets,
            turns,
            roles,
            contents,
            pa.array(content_keys(roles, contents, turns), KEY),
            pa.array(prompt_keys(roles, contents, turns), KEY),
            np.add.reduceat(lengths, turns[:-1], dtype=np.int32),
            _metas(block.rows, way.others),
        )


def _way_of(row: Any, asked: str) -> _Way | None:
    """How rows like this one are read, where they are nothing but texts beside single values. Raises FormatProblem."""
    if type(row) is not dict or not is_told_by_columns(row):
        return None
    form = recognise(row) if asked == "auto" else asked
    texts = plain_columns(form, row)
    if texts is None or form in JUDGED:
        return None
    others = tuple(name for name in row if name not in READS[form])
    types = {name: _TYPES.get(type(row[name])) for name in (*texts, *others)}
    if form in _SPEAKERS:
        speaker, content, _ = _SPEAKERS[form]
        types[texts[0]] = pa.list_(pa.struct([(speaker, pa.utf8()), (content, pa.utf8())]))
    elif any(types[name] != pa.utf8() for name in texts):
        return None
    if None in types.values() or len(types) != len(row):
        return None
    return _Way(form, pa.schema([(name, types[name]) for name in row]), texts, others)


def _turns_of(way: _Way, rows: pa.RecordBatch) -> tuple[np.ndarray, pa.StringArray, np.ndarray] | None:
    """(roles int8 [M], contents [M], int32 [N+1] turns of each row); None where a role is unknown."""
    columns = [rows.column(rows.schema.names.index(name)) for name in way.texts]
    count = rows.num_rows
    if way.format == "text":
        return np.full(count, TEXT, np.int8), columns[0], np.arange(count + 1, dtype=np.int32)
    if way.format in _SPEAKERS:
        speaker, content, codes = _SPEAKERS[way.format]
        turns = columns[0].flatten()
        named = turns.field(speaker).dictionary_encode()
        known = [codes.get(name, -1) for name in named.dictionary.to_pylist()]
        if -1 in known or not len(turns):
            return None
        roles = np.array(known, np.int8)[named.indices.to_numpy()]
        return roles, turns.field(content), columns[0].offsets.to_numpy()
    question, answer = columns[0], columns[1]
    if len(columns) > 2:
        beside = pa.array(~_blank(columns[2]))
        question = pc.if_else(beside, pc.binary_join_element_wise(question, columns[2], "\n\n"), question)
    # Question and answer of each row side by side.
    places = np.arange(2 * count).reshape(2, count).T.reshape(-1)
    contents = pa.concat_arrays([question, answer]).take(pa.array(places))
    return np.tile(np.array([USER, ASSISTANT], np.int8), count), contents, np.arange(count + 1, dtype=np.int32) * 2


def _are_learnable(roles: np.ndarray, contents: pa.StringArray, turns: np.ndarray, form: str) -> bool:
    """Whether all rows ask and answer in an order that can be learned, and no text of theirs is empty."""
    if np.any(np.diff(turns) == 0):
        return False
    blank = _blank(contents)
    if np.any(blank if form in (*_SPEAKERS, "text") else blank & (roles == ASSISTANT)):
        return False
    if form not in _SPEAKERS:
        return True
    told, ends = roles.tobytes(), turns.tolist()
    try:
        for order in {told[start:end] for start, end in itertools.pairwise(ends)}:
            check_order(list(order))
    except FormatProblem:
        return False
    return True


def _blank(texts: pa.StringArray) -> np.ndarray:
    """bool: texts that are empty or hold nothing but white space."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    found = ends[1:] == ends[:-1]
    filled = np.flatnonzero(~found)
    if len(filled):
        held = np.frombuffer(data, np.uint8)
        doubtful = filled[_BLANK[held[ends[filled]]]]
        found[doubtful] = [text.isspace() for text in texts.take(pa.array(doubtful)).to_pylist()]
    return found


def _metas(rows: pa.RecordBatch, others: tuple[str, ...]) -> list[str] | None:
    if not others:
        return None
    columns = [rows.column(rows.schema.names.index(name)).to_pylist() for name in others]
    return [orjson.dumps(dict(zip(others, values, strict=True))).decode() for values in zip(*columns, strict=True)]
