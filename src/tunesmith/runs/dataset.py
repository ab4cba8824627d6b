"""The layout of a Dataset on disk: flat arrays without pickle, read by memory map, and a ledger of every row.

    dataset.json        {"schema": 1, "examples": N, "sequences": S, "tokens": T}
    tokens.npy          int32 [T]     ids of all sequences, end to end
    sequences.npy       int64 [S+1]   offsets into tokens
    examples.npy        int64 [N+1]   offsets into sequences: an example owns 1..k of them
    roles.npy           uint8 [S]     0 text
    span_offsets.npy    int64 [S+1]   offsets into spans
    spans.npy           int32 [K, 2]  learned spans, start:end inside their sequence
    span_weights.npy    float32 [K]
    keys.npy            int64 [N]     row id = line of the ledger, counted from 0
    splits.npy          uint8 [N]     0 train, 1 validation, 2 test
    ledger.parquet      one line per source position: row, source, file, position, split, key, status, rule, value, detail,
                        threshold, kept_twin, tokens, learned, copies
    items.jsonl         the held-out rows and what is asked: {row, part, split, key, messages, expected, prompt_ids};
                        of plain text the last three are null
    samples.json        a few decoded rows as pieces [{text, learned}]
    statistics.json     counts, token lengths, funnel

A training machine needs numpy to read it, nothing else.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import FileError

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
SPLITS = ("train", "validation", "test")
ROLE_TEXT = 0
HEADER_BYTES = 128
# Array -> its numbers, what of dataset.json counts its entries, and how many more they are.
LAYOUT: Mapping[str, tuple[str, str | None, int]] = {
    "tokens": ("<i4", "tokens", 0),
    "sequences": ("<i8", "sequences", 1),
    "examples": ("<i8", "examples", 1),
    "roles": ("|u1", "sequences", 0),
    "span_offsets": ("<i8", "sequences", 1),
    "spans": ("<i4", None, 0),
    "span_weights": ("<f4", None, 0),
    "keys": ("<i8", "examples", 0),
    "splits": ("|u1", "examples", 0),
}
OFFSETS = {"sequences": "tokens", "examples": "sequences", "span_offsets": ""}  # array -> what counts where it ends

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Written:
    """Of each of N examples that were written: its row, its place in SPLITS, tokens, and those that are predicted and learned."""

    rows: np.ndarray
    splits: np.ndarray
    tokens: np.ndarray
    learned: np.ndarray


class DatasetWriter:
    """Writes a Dataset into an empty folder, many examples at a time; tokens go to the disk as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._tokens = (self.folder / "tokens.npy").open("wb")
        self._tokens.write(b"\0" * HEADER_BYTES)  # its header is known at the end
        self._sequences = array("q", [0])
        self._examples = array("q", [0])
        self._span_offsets = array("q", [0])
        self._spans = array("i")
        self._span_weights = array("f")
        self._keys = array("q")
        self._splits = array("B")

    def add(self, tokens: np.ndarray, spans: Sequence[Sequence[float]], row: int, split: str) -> None:
        """Adds an example of one sequence.

        tokens: int32 [T], T >= 1. spans: [start, end, weight] each, sorted, disjoint, inside the sequence.
        row: its line in the ledger. split: train, validation or test.
        """
        import numpy as np

        bounds = np.array([span[:2] for span in spans], np.int32).reshape(-1, 2)
        weights = np.array([span[2] for span in spans], np.float32)
        one = np.array([row]), np.array([SPLITS.index(split)])
        self.add_many([tokens], np.array([len(tokens)]), bounds, np.array([len(bounds)]), weights, *one)

    def add_many(
        self,
        tokens: Iterable[np.ndarray],
        lengths: np.ndarray,
        spans: np.ndarray,
        num_spans: np.ndarray,
        weights: np.ndarray,
        rows: np.ndarray,
        splits: np.ndarray,
    ) -> None:
        """Adds N examples of one sequence each.

        tokens: int32, together [sum of lengths], end to end. lengths: int [N], all >= 1. spans: int32 [K, 2], start:end inside
        their sequence. num_spans: int [N], how many of them each example has. weights: float32 [K]. rows: int64 [N]. splits: [N],
        places in SPLITS.
        """
        import numpy as np

        assert np.all(lengths > 0), "an example needs at least one token"
        of = np.repeat(np.arange(len(lengths)), num_spans)
        inside = (spans[:, 0] >= 0) & (spans[:, 0] < spans[:, 1]) & (spans[:, 1] <= lengths[of])
        inside[1:] &= (spans[1:, 0] >= spans[:-1, 1]) | (of[1:] != of[:-1])
        if not inside.all():
            place = int(np.argmin(inside))
            (start, end), example = spans[place], of[place]
            raise AssertionError(f"row {rows[example]}: span {start}:{end} of {lengths[example]} tokens")
        for stretch in tokens:
            self._tokens.write(np.ascontiguousarray(stretch, dtype=np.int32).data)
        self._spans.frombytes(np.ascontiguousarray(spans, dtype=np.int32).tobytes())
        self._span_weights.frombytes(np.ascontiguousarray(weights, dtype=np.float32).tobytes())
        for column, counts in ((self._sequences, lengths), (self._span_offsets, num_spans)):
            column.frombytes((column[-1] + np.cumsum(counts, dtype=np.int64)).tobytes())
        first = self._examples[-1] + 1
        self._examples.frombytes(np.arange(first, first + len(lengths), dtype=np.int64).tobytes())
        self._keys.frombytes(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
        self._splits.frombytes(np.ascontiguousarray(splits, dtype=np.uint8).tobytes())

    def written(self) -> Written:
        """What was added so far, each example with its one sequence."""
        import numpy as np

        spans = np.array(self._spans, np.int32).reshape(-1, 2)
        ends = np.concatenate([[0], np.cumsum(spans[:, 1] - np.maximum(spans[:, 0], 1), dtype=np.int64)])
        learned = np.diff(ends[np.array(self._span_offsets, np.int64)])
        tokens = np.diff(np.array(self._sequences, np.int64))
        return Written(np.array(self._keys, np.int64), np.array(self._splits, np.uint8), tokens, learned)

    def close(
        self,
        *,
        items: Iterable[Mapping[str, Any]] = (),
        samples: Sequence[Any] = (),
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the small arrays, items, samples and statistics. The ledger is written by who accounts for the rows."""
        import numpy as np

        total = self._sequences[-1]
        self._tokens.seek(0)
        self._tokens.write(_npy_header("<i4", total))
        self._tokens.close()
        arrays = {
            "sequences": np.frombuffer(self._sequences, np.int64),
            "examples": np.frombuffer(self._examples, np.int64),
            "roles": np.full(len(self._sequences) - 1, ROLE_TEXT, np.uint8),
            "span_offsets": np.frombuffer(self._span_offsets, np.int64),
            "spans": np.array(self._spans, np.int32).reshape(-1, 2),
            "span_weights": np.array(self._span_weights, np.float32),
            "keys": np.array(self._keys, np.int64),
            "splits": np.array(self._splits, np.uint8),
        }
        for name, values in arrays.items():
            np.save(self.folder / f"{name}.npy", values, allow_pickle=False)
        _write_lines(self.folder / "items.jsonl", items)
        _write_json(self.folder / "samples.json", list(samples))
        _write_json(self.folder / "statistics.json", dict(statistics or {}))
        counts = {"examples": len(self._keys), "sequences": len(self._sequences) - 1, "tokens": total}
        _write_json(self.folder / "dataset.json", {"schema": SCHEMA, **counts})


def _npy_header(dtype: str, length: int) -> bytes:
    """The 128 bytes in front of a one-dimensional .npy file, format 1.0 (numpy.lib.format)."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({length},), }}"
    head = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return head + text.ljust(HEADER_BYTES - 11).encode() + b"\n"


def _write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    # The folder becomes true by the store's rename, so that plain writing is enough here.
    dumps = _fast_dumps()
    with path.open("wb") as file:
        for entry in entries:
            file.write(dumps(entry) + b"\n")


def _fast_dumps() -> Callable[[Any], bytes]:
    """orjson's, which whoever prepares has; json's for what it refuses: half characters become their escapes."""

    def plain(entry: Any) -> bytes:
        return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")

    try:
        import orjson
    except ModuleNotFoundError:
        return plain

    def fast(entry: Any) -> bytes:
        try:
            return orjson.dumps(entry)
        except TypeError:
            return plain(entry)

    return fast


def _write_json(path: Path, obj: Any) -> None:
    text = json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


class Dataset:
    """A Dataset folder, read by memory map. Examples are numbered 0..num_examples-1 over all splits.

    Raises FileError RUN-007 when the folder is no Dataset that this version reads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            self.counts = json.loads((self.folder / "dataset.json").read_bytes())
            if not all(type(self.counts[name]) is int for name in ("schema", "examples", "sequences", "tokens")):
                raise ValueError("its counts are no numbers")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise _no_dataset(self.folder, f"dataset.json cannot be read ({error})") from error
        if self.counts.get("schema") != SCHEMA:
            raise _no_dataset(self.folder, f"its schema is {self.counts.get('schema')!r}")

    @property
    def num_examples(self) -> int:
        return self.counts["examples"]

    def split(self, name: Split) -> np.ndarray:
        """Indices of the examples of one split, ascending: int64 [n]."""
        import numpy as np

        return np.flatnonzero(self._splits == SPLITS.index(name))

    def sequence(self, example: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First sequence of an example: ids int32 [T], learned spans int32 [k, 2], their weights float32 [k]; views."""
        number = self._examples[example]
        first, last = self._span_offsets[number], self._span_offsets[number + 1]
        ids = self._tokens[self._sequences[number] : self._sequences[number + 1]]
        return ids, self._spans[first:last], self._span_weights[first:last]

    def lengths(self) -> np.ndarray:
        """Tokens of each example: int64 [N]."""
        return self._sequences[self._examples[1:]] - self._sequences[self._examples[:-1]]

    def largest_id(self) -> int:
        """The largest token id of all sequences; -1 where there is no token. Raises FileError RUN-007 for one below 0."""
        if not len(self._tokens):
            return -1
        if self._tokens.min() < 0:
            raise _no_dataset(self.folder, "tokens.npy holds an id below 0")
        return int(self._tokens.max())

    def learned_weights(self) -> np.ndarray:
        """Sum of the weights of each example's learned tokens: float64 [N].

        The first token of a sequence counts nothing even inside a span: nothing comes before it to predict it from.
        """
        import numpy as np

        starts, ends = self._spans[:, 0], self._spans[:, 1]
        learned = (ends - np.maximum(starts, 1)) * self._span_weights.astype(np.float64)
        before = np.concatenate([[0.0], np.cumsum(learned)])[self._span_offsets[self._examples]]
        return before[1:] - before[:-1]

    def row(self, example: int) -> int:
        """The example's row id: its line in the ledger, counted from 0."""
        return int(self._keys[example])

    def items(self, part: str | None = None) -> list[dict[str, Any]]:
        """The held-out rows of all parts or one, and what is asked of those that are chats; see items.jsonl above."""
        return [item for item in _read_lines(self.folder / "items.jsonl") if part in (None, item["part"])]

    def ledger(self) -> Iterator[dict[str, Any]]:
        """The entry of each source position, in order; streamed. Needs pyarrow."""
        from tunesmith.runs.ledger import entries

        return entries(self.folder / "ledger.parquet")

    @cached_property
    def samples(self) -> list[Any]:
        return json.loads((self.folder / "samples.json").read_bytes())

    @cached_property
    def statistics(self) -> dict[str, Any]:
        return json.loads((self.folder / "statistics.json").read_bytes())

    # -------------------------------------------------------------------------------------------------- arrays

    def _array(self, name: str, *, mapped: bool = False) -> np.ndarray:
        import numpy as np

        path = self.folder / f"{name}.npy"
        kind, length = LAYOUT[name][0], self._length(name)
        try:
            values = np.load(path, mmap_mode="r" if mapped and self.counts["tokens"] else None, allow_pickle=False)
            expected = (length, 2) if name == "spans" else (length,)
            is_right = isinstance(values, np.ndarray) and values.dtype.str == kind and values.ndim == len(expected)
            if not is_right or any(
                want is not None and want != has for want, has in zip(expected, values.shape, strict=True)
            ):
                raise ValueError(f"it is no {kind} of {expected}")
            if name in OFFSETS:
                _check_offsets(values, self.counts[OFFSETS[name]] if OFFSETS[name] else len(self._spans))
        except (OSError, ValueError, TypeError, SyntaxError, MemoryError, OverflowError, AttributeError) as error:
            raise _no_dataset(self.folder, f"{path.name} cannot be read ({error})") from error
        return values.view(np.ndarray)  # slices of a plain array cost a fifth of slices of a memmap

    def _length(self, name: str) -> int | None:
        """How many entries dataset.json says an array has; None where nothing says it."""
        counted, more = LAYOUT[name][1:]
        return None if counted is None else self.counts[counted] + more

    @cached_property
    def _tokens(self) -> np.ndarray:
        return self._array("tokens", mapped=True)

    @cached_property
    def _sequences(self) -> np.ndarray:
        return self._array("sequences")

    @cached_property
    def _examples(self) -> np.ndarray:
        return self._array("examples")

    @cached_property
    def _span_offsets(self) -> np.ndarray:
        return self._array("span_offsets")

    @cached_property
    def _spans(self) -> np.ndarray:
        return self._array("spans")

    @cached_property
    def _span_weights(self) -> np.ndarray:
        return self._array("span_weights")

    @cached_property
    def _keys(self) -> np.ndarray:
        return self._array("keys")

    @cached_property
    def _splits(self) -> np.ndarray:
        return self._array("splits")


def _check_offsets(values: np.ndarray, end: int) -> None:
    """Raises ValueError for offsets that go back, or elsewhere than from the beginning to the end."""
    if values[0] != 0 or (values[1:] < values[:-1]).any() or values[-1] != end:
        raise ValueError("its offsets do not go from the beginning to the end")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _no_dataset(folder: Path, why: str) -> FileError:
    return FileError(
        "RUN-007",
        f"{folder} is no Dataset that can be read: {why}",
        expected=f"a folder made by prepare, schema {SCHEMA}",
        fix="run tunesmith prepare RECIPE again: it makes a damaged Dataset anew",
    )
