"""The texts of a part end to end: contents of turns and what the extras hold, in one buffer with offsets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.text.example import ASSISTANT, SYSTEM, TEXT

# Shape suffixes: R rows of the part, M texts, N bytes.

STRUCTURE = {"role", "name", "id", "type", "tool_call_id", "format"}  # words of the form, written by no person
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Texts:
    """contents: utf8 [M] without nulls, the turns of all rows and behind them the strings inside extras.

    rows_M: int64, which row of the part. roles_M: int8. learned_M: the model would learn this: turns of the assistant, plain
    texts, the chosen or accepted answer of a preference row. num_turns: the first so many texts are turns. places: of each
    further text where it stands inside its row's extra.
    """

    contents: pa.Array
    rows_M: np.ndarray
    roles_M: np.ndarray
    learned_M: np.ndarray
    num_rows: int
    num_turns: int
    places: list[Path]

    @cached_property
    def offsets_M(self) -> np.ndarray:
        """int32 [M + 1], into `bytes_N`."""
        buffer = self.contents.buffers()[1]
        if not len(self.contents) or buffer is None:
            return np.zeros(1, np.int32)
        offsets = np.frombuffer(buffer, np.int32)
        return offsets[self.contents.offset : self.contents.offset + len(self.contents) + 1]

    @cached_property
    def bytes_N(self) -> np.ndarray:
        buffer = self.contents.buffers()[2]
        return np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)

    def of(self, chosen_M: np.ndarray) -> Texts:
        """Some of the texts; chosen_M: bool."""
        return Texts(
            self.contents.filter(pa.array(chosen_M)),
            self.rows_M[chosen_M],
            self.roles_M[chosen_M],
            self.learned_M[chosen_M],
            self.num_rows,
            int(chosen_M[: self.num_turns].sum()),
            [place for place, kept in zip(self.places, chosen_M[self.num_turns :], strict=True) if kept],
        )

    @cached_property
    def learned(self) -> Texts:
        return self.of(self.learned_M)

    def any_row(self, found_M: np.ndarray) -> np.ndarray:
        """bool [R]: rows with at least one such text."""
        out_R = np.zeros(self.num_rows, bool)
        out_R[self.rows_M[found_M]] = True
        return out_R

    def sum_rows(self, values_M: np.ndarray) -> np.ndarray:
        """float64 [R]."""
        return np.bincount(self.rows_M, values_M, self.num_rows)


def texts_of(part: pa.Table) -> Texts:
    """The texts of a part of Rows; bad rows have none."""
    turns = part.column("turns").combine_chunks()
    flat = turns.flatten()
    contents = pc.struct_field(flat, [1]).cast(pa.utf8())
    contents = contents.fill_null("") if contents.null_count else contents
    rows_M = pc.list_parent_indices(turns).to_numpy(zero_copy_only=False).astype(np.int64)
    roles_M = pc.struct_field(flat, [0]).to_numpy(zero_copy_only=False).astype(np.int8)
    learned_M = (roles_M == ASSISTANT) | (roles_M == TEXT)
    num_turns = len(contents)
    found = list(_extras(part))
    if found:
        more_rows, places, roles, learned, texts = map(list, zip(*found, strict=True))
        contents = pa.concat_arrays([contents, pa.array(texts, pa.utf8())])
        rows_M = np.concatenate([rows_M, np.array(more_rows, np.int64)])
        roles_M = np.concatenate([roles_M, np.array(roles, np.int8)])
        learned_M = np.concatenate([learned_M, np.array(learned, bool)])
    else:
        places = []
        contents = pa.concat_arrays([contents])
    return Texts(contents, rows_M, roles_M, learned_M, part.num_rows, num_turns, places)


def _extras(part: pa.Table) -> Iterator[tuple[int, Path, int, bool, str]]:
    """(row of the part, place in its extra, role, learned, text) of each string that a person or a model wrote."""
    column = part.column("extra")
    if column.null_count == part.num_rows:
        return
    for row in np.flatnonzero(column.is_valid().to_numpy()):
        extra = json.loads(column[int(row)].as_py())
        for path, text in strings(extra):
            yield int(row), path, SYSTEM if path[0] == "tools" else ASSISTANT, _is_learned(extra, path), text


def _is_learned(extra: dict[str, Any], path: Path) -> bool:
    """Thoughts before an answer, and of a preference row the answer that training leads to; not what calls hold."""
    if "tool_calls" in path:
        return False
    if path[0] == "answers":
        answer = extra["answers"][path[1]]
        return answer.get("role") == "chosen" or answer.get("label") is True
    return path[0] == "turns" and path[-1] == "reasoning"


def strings(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text inside a JSON value, with its place; names and ids of the form are no texts."""
    if isinstance(value, str):
        if value and path and (path[-1] not in STRUCTURE or "arguments" in path):
            yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, (*path, name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from strings(inner, (*path, place))


def put(value: Any, path: Path, text: str) -> None:
    """Replaces the text at a place inside a JSON value."""
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = text
