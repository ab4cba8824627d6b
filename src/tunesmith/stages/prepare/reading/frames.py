"""Parquet. The only door to daft."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

# Daft tells its makers of each import and each query, over the network. Rows are nobody's business, and nothing here may wait
# for a network; it looks when it is imported, so this stands in front of it. A value of the user's own stays.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft.io import IOConfig, S3Config

from tunesmith.errors import DataError, RecipeError

MAX_GROUP_BYTES = 4 * 2**30
FREE_ROWS, ROWS_PER_BYTE = 1_000_000, 10


@cache
def _run_here() -> None:
    """What is asked of Daft is about one part or one file: the process that asks does it, a task on Ray too.

    Left to choose, Daft imports ray to look for a cluster, a third of a second in every worker.
    """
    with contextlib.suppress(daft.exceptions.DaftCoreException):  # chosen before, by the program that calls us
        daft.set_runner_native()


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as dicts, in order. Raises DataError DAT-006 naming the file and the first damaged row group,
    DAT-042 for one that unpacks to more than memory holds."""
    _run_here()
    try:
        _refuse_bomb(path)
        yield from daft.read_parquet(str(path)).iter_rows()
    except (OSError, ValueError, pa.ArrowException, daft.exceptions.DaftCoreException) as error:
        raise DataError(
            "DAT-006",
            f"{path.name} cannot be read as Parquet{_damaged_group(path)}: {(str(error).splitlines() or [''])[0][:200]}",
            where="data.sources",
            expected="a whole Parquet file",
            fix="write or fetch the file again",
        ) from error


def _damaged_group(path: Path) -> str:
    """`, row group 2 of 5 (rows 2000 to 2999)`: the first that cannot be read, which Daft does not say.

    Empty where the file has no groups to speak of."""
    try:
        with pq.ParquetFile(path) as file:
            first = 0
            for number in range(file.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                try:
                    file.read_row_group(number)
                except (pa.ArrowException, OSError, ValueError):
                    return f", row group {number} of {file.num_row_groups} (rows {first:,} to {first + count - 1:,})"
                first += count
    except (pa.ArrowException, OSError, ValueError):
        pass  # its footer is damaged: there is nothing to count by
    return ""


def _refuse_bomb(path: Path) -> None:
    """A text that stands once in a file may stand in each of its rows, and a row of nothing takes no bytes."""
    size = path.stat().st_size
    with pq.ParquetFile(path) as file:
        told = file.metadata
        if told.num_rows > FREE_ROWS and told.num_rows > ROWS_PER_BYTE * size:
            raise _bomb(path, f"{told.num_rows:,} rows in {size:,} bytes")
        for group in range(told.num_row_groups):
            chunks = [told.row_group(group).column(place) for place in range(told.num_columns)]
            unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
            if unpacked > MAX_GROUP_BYTES:
                raise _bomb(path, f"{unpacked / 2**30:,.1f} GiB in one row group")
            doubtful = [
                chunk.path_in_schema
                for chunk in chunks
                if chunk.physical_type == "BYTE_ARRAY"
                and "." not in chunk.path_in_schema
                and chunk.has_dictionary_page
                and chunk.num_values * chunk.total_uncompressed_size > MAX_GROUP_BYTES
            ]
            if doubtful and (spread := _spread_out(path, group, doubtful)) > MAX_GROUP_BYTES:
                raise _bomb(path, f"{spread / 2**30:,.1f} GiB of text in one row group")


def _spread_out(path: Path, group: int, columns: list[str]) -> int:
    """Bytes of some text columns of a row group once each row has its own text; each text is held once to find out."""
    total = 0
    with pq.ParquetFile(path, read_dictionary=columns) as file:
        for column in file.read_row_group(group, columns=columns).columns:
            for chunk in column.chunks:
                if isinstance(chunk, pa.DictionaryArray):
                    lengths = pc.cast(pc.binary_length(chunk.dictionary), pa.int64())
                    total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _bomb(path: Path, what: str) -> DataError:
    return DataError(
        "DAT-042",
        f"{path.name} unpacks to more than memory holds: {what}",
        where="data.sources",
        expected=f"at most {MAX_GROUP_BYTES / 2**30:.0f} GiB in a row group, and rows that hold something",
        fix="write it again with smaller row groups, if it is meant",
    )


def objects_at(url: str) -> list[tuple[str, int]]:
    """(URL, bytes) of the objects of a store (s3://, gs://, az://) or web server that a path or glob names."""
    _run_here()
    found = daft.from_glob_path(url, io_config=_stores()).to_pydict()
    return sorted(zip(found["path"], found["size"], strict=True))


def copy_object(url: str, out: BinaryIO) -> None:
    """The bytes of one object, block by block."""
    with daft.File(url, io_config=_stores()).open() as file:
        while block := file.read(8 << 20):
            out.write(block)


STORE_ERRORS = (OSError, ValueError, daft.exceptions.DaftCoreException)


def _stores() -> IOConfig:
    """Credentials come from where their clients look for them; AWS_ENDPOINT_URL names a store other than Amazon's."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    anonymous = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")
    return IOConfig(
        s3=S3Config(endpoint_url=endpoint, region_name=os.environ.get("AWS_REGION"), anonymous=anonymous, num_tries=3)
    )


# What an expression of a recipe may not call: it would read or write files, or give each row, part or run another answer.
REFUSED_CALLS = re.compile(
    r"\b(url_download|url_upload|download|upload|\w*file\w*|image_\w+|decode_image\w*|tokenize_\w+|random\w*|uuid\w*|rand"
    r"|monotonically_increasing_id|current_\w+|row_number|rank|dense_rank|lag|lead)\(|\bover window\(|\bexists\b"
)


MISSING_COLUMN = re.compile(r'Column col\("?(.+?)"?\) not found')


def true_rows(table: pa.Table, expressions: Sequence[str], known: Sequence[str] = ()) -> list[np.ndarray]:
    """Of each Daft SQL expression: bool [R], in the table's order; null is not true.

    table: int64 `row` (no one twice) and the columns that the expressions name. An empty table proves the expressions alone.
    known: the columns that could be named, for the message.
    Raises RecipeError DAT-060 naming the expression that cannot be asked.
    """
    _run_here()
    frame = daft.from_arrow(table)
    names = [f"expression {number}" for number in range(len(expressions))]
    asked = []
    for name, text in zip(names, expressions, strict=True):
        try:
            expression = daft.sql_expr(text)
            kind = frame.select(expression.alias(name)).schema()[name].dtype
        except Exception as error:  # Daft's parser raises a kind that has no name in Python
            raise _bad_expression(text, _last_words(error), known) from error
        call = REFUSED_CALLS.search(str(expression))
        if call:
            raise _bad_expression(text, f"calls {call.group().strip('(')}", known)
        if kind != daft.DataType.bool():
            raise _bad_expression(text, f"gives {kind}, not true or false", known)
        asked.append(expression.alias(name))
    try:
        # The order is not kept: the row travels along.
        found = frame.select(daft.col("row"), *asked).to_arrow()
    except Exception as error:  # a computation may fail in as many ways as there are functions
        raise _bad_expression(" and ".join(expressions), _last_words(error), known) from error
    order = np.argsort(found.column("row").to_numpy())[np.argsort(np.argsort(table.column("row").to_numpy()))]
    return [found.column(name).fill_null(False).to_numpy()[order] for name in names]


def _bad_expression(text: str, why: str, known: Sequence[str]) -> RecipeError:
    columns = f"; columns: {', '.join(known)}" if known else ""
    fix = "data.filters.where: [\"characters < 4000 and source = 'faq'\"]"
    missing = MISSING_COLUMN.search(why)
    if missing:
        name = missing.group(1)
        why = f"no row has a column {name!r}"
        meant = _did_you_mean(name, known)
        if meant is not None:
            mended = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", meant, text)
            fix = f"did you mean {meant}? data.filters.where: [{json.dumps(mended)}]"
    return RecipeError(
        "DAT-060",
        f"the expression {text!r} cannot be asked of the rows: {why}",
        where="data.filters.where",
        expected=f"a Daft SQL expression that is true or false, row by row{columns}",
        fix=fix,
    )


def _did_you_mean(name: str, known: Sequence[str]) -> str | None:
    lowered = {column.lower(): column for column in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    return lowered[found[0]] if found else None


def _last_words(error: BaseException) -> str:
    """What a message of Daft ends in: the cause stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "REASON" in line]
    return (named or lines or [type(error).__name__])[-1][:200]
