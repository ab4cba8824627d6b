"""Parquet. The only door to daft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daft

from tunesmith.errors import DataError


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as dicts, in order. Raises DataError DAT-006 naming the file."""
    try:
        yield from daft.read_parquet(str(path)).iter_rows()
    except (OSError, ValueError, daft.exceptions.DaftCoreException) as error:
        raise DataError(
            "DAT-006",
            f"{path.name} cannot be read as Parquet: {str(error).splitlines()[0][:200]}",
            where="data.sources",
            expected="a whole Parquet file",
            fix="write or fetch the file again",
        ) from error
