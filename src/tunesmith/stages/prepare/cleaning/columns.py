"""The rows' other columns: their scores, and the table that SQL expressions of the recipe are asked of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.stages.prepare.cleaning.texts import Texts
from tunesmith.text.example import ASSISTANT, TEXT

Kind = Literal["number", "text", "truth"]
TYPES = {"number": pa.float64(), "text": pa.utf8(), "truth": pa.bool_()}
OWN = ("row", "prompt", "answer", "text", "characters", "turns", "source", "format")


def number_of(value: object) -> float | None:
    """A finite number, or text that reads as one; a truth value is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def scores_of(part: pa.Table, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """(float64 [R], NaN where there is no number; place -> what stands there instead of one)."""
    out_R = np.full(part.num_rows, np.nan)
    odd: dict[int, str] = {}
    meta = part.column("meta").combine_chunks()
    # The name as JSON writes it is looked for first, so that rows without the column are never parsed.
    named = orjson.dumps(column).decode()
    hit = pc.match_substring(meta, named).fill_null(False).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(hit).tolist():
        value = orjson.loads(meta[place].as_py()).get(column)
        number = number_of(value)
        if number is not None:
            out_R[place] = number
        elif value is not None:
            odd[place] = str(value)[:80]
    return out_R, odd


def kinds_of(part: pa.Table) -> dict[str, Kind]:
    """Other column -> what it holds: number where a value is one, else text, else truth. Merge parts with `merge_kinds`."""
    found: dict[str, set[type]] = {}
    for meta in part.column("meta").drop_null().to_pylist():
        for name, value in orjson.loads(meta).items():
            if value is not None:
                found.setdefault(name, set()).add(type(value))
    return {name: _kind(types) for name, types in found.items()}


def _kind(types: set[type]) -> Kind:
    if types & {int, float}:
        return "number"
    return "text" if str in types else "truth"


def merge_kinds(parts: Iterable[Mapping[str, Kind]]) -> dict[str, Kind]:
    """What each column holds over all parts, so that an expression means the same in every part."""
    rank = ("truth", "text", "number")
    out: dict[str, Kind] = {}
    for kinds in parts:
        for name, kind in kinds.items():
            out[name] = max(out.get(name, "truth"), kind, key=rank.index)
    return dict(sorted(out.items()))


def table_of(
    part: pa.Table, texts: Texts, sources: Sequence[str], kinds: Mapping[str, Kind], expressions: Sequence[str]
) -> pa.Table:
    """row and every column that the expressions may mean: prompt, answer, text, characters, turns, source, format, others."""
    asked = " ".join(expressions)

    def is_named(name: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", asked, re.IGNORECASE) is not None

    columns: dict[str, Any] = {"row": part.column("row")}
    made = {
        "prompt": lambda: prompts_of(texts),
        "answer": lambda: answers_of(texts),
        "text": lambda: joined(texts, np.arange(len(texts.contents)) < texts.num_turns),
        "characters": lambda: part.column("characters"),
        "turns": lambda: pa.array(np.bincount(texts.rows_M[: texts.num_turns], minlength=part.num_rows)),
        "source": lambda: pa.array(sources, pa.utf8()).take(part.column("source").combine_chunks().cast(pa.int64())),
        "format": lambda: part.column("format"),
    }
    columns |= {name: make() for name, make in made.items() if is_named(name)}
    others = [name for name in kinds if name not in OWN and is_named(name)]
    if others:
        rows = [orjson.loads(meta) if meta else {} for meta in part.column("meta").to_pylist()]
        for name in others:
            columns[name] = _column([row.get(name) for row in rows], kinds[name])
    return pa.table(columns)


def _column(values: list[Any], kind: Kind) -> pa.Array:
    if kind == "number":
        return pa.array([number_of(value) for value in values], TYPES[kind])
    if kind == "truth":
        return pa.array([value if isinstance(value, bool) else None for value in values], TYPES[kind])
    return pa.array([None if value is None else str(value) for value in values], TYPES[kind])


# ------------------------------------------------------------------------------------------------- prompt and answer


def _last_answers(texts: Texts) -> np.ndarray:
    """int64 [R]: place of the text that is the answer: the last assistant turn, else the first answer wanted; -1 without one."""
    last_R = np.full(texts.num_rows, -1)
    turns = np.arange(len(texts.contents)) < texts.num_turns
    wanted = np.flatnonzero(~turns & texts.learned_M)[::-1]
    last_R[texts.rows_M[wanted]] = wanted  # of several assignments to one row the last one holds
    own = np.flatnonzero(turns & (texts.roles_M == ASSISTANT))
    last_R[texts.rows_M[own]] = own
    return last_R


def answers_of(texts: Texts) -> pa.Array:
    """utf8 [R]: the last assistant turn, or the chosen answer; null where there is none."""
    last_R = _last_answers(texts)
    return texts.contents.take(pa.array(last_R, mask=last_R < 0))


def prompts_of(texts: Texts) -> pa.Array:
    """utf8 [R]: the turns before the answer, a line each; null where there is none."""
    last_R = _last_answers(texts)
    end_R = np.where((last_R < 0) | (last_R >= texts.num_turns), texts.num_turns, last_R)
    places = np.arange(len(texts.contents))
    before_M = (places < end_R[texts.rows_M]) & (places < texts.num_turns) & (texts.roles_M != TEXT)
    text = joined(texts, before_M)
    return pc.if_else(pa.array(texts.any_row(before_M)), text, pa.scalar(None, pa.utf8()))


def joined(texts: Texts, chosen_M: np.ndarray) -> pa.Array:
    """utf8 [R]: the chosen turns of each row, a line each."""
    chosen_M = chosen_M & (np.arange(len(chosen_M)) < texts.num_turns)  # turns stand in the order of rows
    counts_R = np.bincount(texts.rows_M[chosen_M], minlength=texts.num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts_R)]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, texts.contents.filter(pa.array(chosen_M))), "\n")
