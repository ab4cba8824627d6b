"""Verdicts of the set-wide rules: rows that go, as lines of VERDICTS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tunesmith.stages.prepare.layout import VERDICTS


def verdicts(
    row: np.ndarray, rule: str, *, value: np.ndarray | None = None, detail: Sequence[str] | pa.Array | None = None,
    threshold: float | np.ndarray | None = None, kept_twin: np.ndarray | None = None,
) -> pa.Table:  # fmt: skip
    """Rows that go by one rule. row: int64 [n]. kept_twin: int64 [n], -1 where it is no row of this run; NaN is null."""
    count = len(row)
    columns = {
        "row": pa.array(row, pa.int64()),
        "rule": pa.array([rule] * count, pa.utf8()),
        "value": _numbers(value, count),
        "detail": pa.nulls(count, pa.utf8()) if detail is None else pa.array(detail, pa.utf8()),
        "threshold": _numbers(threshold, count),
        "kept_twin": pa.nulls(count, pa.int64())
        if kept_twin is None
        else pa.array(kept_twin, pa.int64(), mask=np.asarray(kept_twin) < 0),
    }
    return pa.table(columns, schema=VERDICTS)


def _numbers(values: float | np.ndarray | None, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, pa.float64())
    numbers = np.broadcast_to(np.asarray(values, np.float64), (count,))
    return pa.array(numbers, mask=np.isnan(numbers))
