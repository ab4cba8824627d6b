"""The Tokens artifact: every good row encoded once; no filter or threshold is part of it.

tokens.json                 parts with their counts, and how they were encoded
parts/00000/tokens.arrow    one line per row of the part of Rows with the same number (schema below)
"""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith import hub
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.encoding.encoder import EncodedBatch, Encoder, Turns
from tunesmith.stages.prepare.rows import Rows
from tunesmith.stages.prepare.spread import Compute
from tunesmith.text.tokenizers import load_tokenizer

SCHEMA = 1
PROVEN_ON = 8192  # rows that a sample is drawn from
BATCH_BYTES = 16 * 2**20  # of rows that are encoded at once: all of a part of JSON lines
PART = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),  # start, end, start, end ... of what is learned
        ("weights", pa.list_(pa.float32())),  # one of each span
        ("flags", pa.uint8()),
        ("refused", pa.utf8()),  # the template's words, where it does not take this chat
    ]
)


@dataclass(frozen=True)
class PartTokens:
    """Of the rows of one part, good and bad (those have no ids).

    ids: int32 [T]. offsets: int64 [N+1] into ids. spans: int32 [K, 2], start:end inside the row. span_offsets: int64 [N+1].
    weights: float32 [K]. flags: uint8 [N]. refused: place in the part -> the template's words.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    weights: np.ndarray
    flags: np.ndarray
    refused: dict[int, str]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row: int64 [N]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class EncodeTask:
    """What the tokens of a part are made of. rows: the Rows artifact. rewritten: the Verdicts that hold what redaction changed,
    "" without one. folder: where the part goes."""

    number: int
    rows: str
    rewritten: str
    folder: str
    base: str
    revision: str | None
    template: str
    learn: Any


def encode_part(task: EncodeTask) -> dict[str, Any]:
    """Encodes the rows of one part of Rows into a part of Tokens; returns its counts."""
    rows = Rows(Path(task.rows), Path(task.rewritten) if task.rewritten else None)
    encoder = _own(encoder_of(task.base, task.revision, task.template, task.learn))

    def write(path: Path) -> dict[str, Any]:
        table = rows.part(task.number, ("turns", "extra", "problem"))
        ways = encoder.ways.copy()
        refused = 0
        with pa.OSFile(str(path / "tokens.arrow"), "wb") as out, pa.ipc.new_file(out, PART) as writer:
            for batch in _batches(table):
                done = encoder.encode(turns_of(batch))
                writer.write_batch(_to_arrow(done, batch.num_rows))
                refused += len(done.refused)
        proof = encoder.proof
        return {
            "rows": table.num_rows,
            "encoded": table["problem"].null_count - refused,
            "refused": refused,
            "fast": proof is not None and proof.fast,
            "why": proof.why if proof is not None else "",
            "ways": dict(encoder.ways - ways),
        }

    return parts.make(task.folder, task.number, write)


_threads = threading.local()


def _own(encoder: Encoder) -> Encoder:
    """A thread's own view of an encoder: the compiled shapes are shared, the counts are not."""
    if getattr(_threads, "of", None) is not encoder:
        _threads.of, _threads.own = encoder, copy.copy(encoder)
        _threads.own.ways = Counter()
    return _threads.own


@lru_cache(maxsize=4)
def encoder_of(base: str, revision: str | None, template: str, learn: Any) -> Encoder:
    """The encoder of a model's tokenizer and a template: made once per process, as proofs and compiled shapes are its own."""
    return Encoder(load_tokenizer(hub.resolve(base, revision, weights=False), template), learn)


def prove(encoder: Encoder, rows: Rows, number: int = 0) -> Encoder:
    """The encoder, its tokenizer settled by the first rows of a part, unless it was before."""
    if encoder.proof is None and rows.parts:
        encoder.prove(turns_of(rows.part(number, ("turns", "extra")).slice(0, PROVEN_ON)).contents)
    return encoder


def write_tokens(
    rows: Rows, task: EncodeTask, folder: Path, compute: Compute, on_rows: Callable[[int], None]
) -> dict[str, Any]:
    """Fills `folder` with the Tokens of all rows. Returns counts: encoded (of this start), refused, parts_kept.

    task: of any part; the others are like it. on_rows: called with the rows encoded so far after each part; may raise to stop,
    and finished parts are kept.
    """
    aside = Path(task.folder)
    known = {number: facts for number in range(len(rows.parts)) if (facts := parts.finished(aside, number)) is not None}
    kept, done = len(known), sum(facts["rows"] for facts in known.values())
    left = [replace(task, number=number) for number in range(len(rows.parts)) if number not in known]
    encoded = 0
    if left and compute.cluster is None:  # before threads share it
        prove(encoder_of(task.base, task.revision, task.template, task.learn), rows, left[0].number)
    for place, facts in compute.spread(encode_part, left):
        known[left[place].number] = facts
        encoded += facts["encoded"]
        done += facts["rows"]
        on_rows(done)
    made = [known[number] for number in range(len(rows.parts))]
    counts = [parts.describe(facts) for facts in made]
    hashes = parts.move(aside, folder, made)
    (folder / "tokens.json").write_text(json.dumps({"schema": SCHEMA, "parts": counts}))
    ways: Counter[str] = Counter()
    for part in counts:
        ways.update(part["ways"])
    refused = sum(part["refused"] for part in counts)
    told = {"fast": bool(counts) and all(part["fast"] for part in counts), "why": counts[0]["why"] if counts else ""}
    return {
        "hashes": hashes,
        "encoded": encoded,
        "refused": refused,
        "parts_kept": kept,
        "tokenizer": told,
        "ways": dict(ways),
    }


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    """All rows, about BATCH_BYTES of neighbours at a time."""
    rows = max(1, table.num_rows * BATCH_BYTES // max(table.nbytes, 1))
    return (table.slice(first, rows) for first in range(0, table.num_rows, rows))


def turns_of(table: pa.Table) -> Turns:
    """The columns `turns` and `extra` as the encoder takes them."""
    turns = table["turns"].combine_chunks()
    if isinstance(turns, pa.ChunkedArray):
        turns = turns.chunk(0) if turns.num_chunks else pa.array([], table.schema.field("turns").type)
    flat = turns.flatten()
    lengths = turns.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    extra = table["extra"]
    extras = None
    if extra.null_count < len(extra):
        extras = [json.loads(value) if value else None for value in extra.to_pylist()]
    return Turns(offsets, flat.field("role").to_numpy().astype(np.uint8), flat.field("content"), extras)


def _to_arrow(done: EncodedBatch, count: int) -> pa.RecordBatch:
    def lists(offsets: np.ndarray, values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))

    refused = pa.array(
        [done.refused.get(place) for place in range(count)] if done.refused else [None] * count, pa.utf8()
    )
    return pa.RecordBatch.from_arrays(
        [
            lists(done.offsets, done.ids),
            lists(done.span_offsets * 2, done.spans.reshape(-1)),
            lists(done.span_offsets, done.weights),
            pa.array(done.flags),
            refused,
        ],
        schema=PART,
    )


class Tokens:
    """Reads a Tokens artifact by memory map."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.parts: list[dict[str, Any]] = json.loads((self.folder / "tokens.json").read_bytes())["parts"]

    def part(self, number: int) -> PartTokens:
        table = parts.open_table(parts.stem_of(self.folder / "parts", number) / "tokens.arrow")
        ids, offsets = _flat(table["ids"])
        spans, _ = _flat(table["spans"])
        weights, span_offsets = _flat(table["weights"])
        refused: dict[int, str] = {}
        if self.parts[number]["refused"]:
            refused = {at: words for at, words in enumerate(table["refused"].to_pylist()) if words is not None}
        return PartTokens(ids, offsets, spans.reshape(-1, 2), span_offsets, weights, table["flags"].to_numpy(), refused)


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets int64 [N+1]) of a column of lists."""
    chunks = column.chunks
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    flat = [chunk.flatten().to_numpy() for chunk in chunks]
    values = flat[0] if len(flat) == 1 else np.concatenate(flat) if flat else np.zeros(0, np.int32)
    return values, np.concatenate([[0], np.cumsum(np.concatenate(lengths) if lengths else [], dtype=np.int64)]).astype(
        np.int64
    )
