"""Arrow and Feather files, batch by batch: what `datasets` and pandas write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.errors import DataError
from tunesmith.stages.prepare.reading.files import shown

MAX_BATCH_BYTES = 1024**3
ROWS_AT_ONCE = 512
MAX_ROWS_BYTES = 256 * 1024**2  # of so many rows


def read_arrow(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as dicts, in order; each batch is checked before it is believed. Raises DataError DAT-037 naming the batch."""
    done = 0
    try:
        with pa.memory_map(str(path)) as file:
            for batch in _batches(file):
                batch.validate(full=True)
                if batch.nbytes > MAX_BATCH_BYTES:
                    raise pa.ArrowInvalid(f"{batch.nbytes:,} bytes in one batch")
                for first in range(0, batch.num_rows, ROWS_AT_ONCE):
                    yield from _rows(batch.slice(first, ROWS_AT_ONCE))
                done += 1
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        OverflowError,
        MemoryError,
        NotImplementedError,
        IndexError,
    ) as error:
        place = f" behind batch {done}" if done else ""
        raise DataError(
            "DAT-037",
            f"{shown(path.name)} cannot be read as Arrow{place}: {(str(error) or type(error).__name__).splitlines()[0][:200]}",
            where="data.sources",
            expected="a whole Arrow IPC file or stream",
            fix="write or fetch the file again",
        ) from error


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A text that stands once in a dictionary may stand in each row."""
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray) and pa.types.is_string(column.dictionary.type):
            lengths = pc.cast(pc.binary_length(column.dictionary), pa.int64()).take(column.indices)
            spread = pc.sum(lengths).as_py() or 0
            if spread > MAX_ROWS_BYTES:
                raise pa.ArrowInvalid(f"{spread:,} bytes of text in {batch.num_rows} rows")
    return batch.to_pylist()


def _batches(file: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    """Of the file format, or of a stream, as `datasets` writes it."""
    if file.size() >= 6 and file.read(6) == b"ARROW1":
        with pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    else:
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            yield from reader
