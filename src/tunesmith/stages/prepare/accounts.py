"""What becomes of each row, in columns over all rows: the first verdict on a row stands, and every row ends somewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

STATUSES = ("used", "dropped", "quarantined")
USED, DROPPED, QUARANTINED = range(3)
NONE = -1

LEDGER = pa.schema(
    [
        ("row", pa.int64()),
        ("source", pa.dictionary(pa.int32(), pa.utf8())),
        ("file", pa.dictionary(pa.int32(), pa.utf8())),
        ("position", pa.int64()),
        ("split", pa.dictionary(pa.int8(), pa.utf8())),
        ("key", pa.utf8()),
        ("status", pa.dictionary(pa.int8(), pa.utf8())),
        ("rule", pa.dictionary(pa.int32(), pa.utf8())),
        ("value", pa.float64()),
        ("detail", pa.utf8()),
        ("threshold", pa.float64()),
        ("kept_twin", pa.int64()),
        ("tokens", pa.int32()),
        ("learned", pa.int32()),
        ("copies", pa.int32()),  # examples of the Dataset that this row became
        (
            "flags",
            pa.uint8(),
        ),  # 1: encoded in pieces it has other ids than whole; 2: a control token's text in a content; 4: nothing learned
    ]
)


@dataclass
class Accounts:
    """Columns of length N, one entry per row.

    status: place in STATUSES. rule: place in `rules`, -1 without one. value, threshold: NaN without one. kept_twin: -1
    without one. details: row -> words, of the few that have some. A used row may have a rule too, such as `truncated`.
    """

    status: np.ndarray
    rule: np.ndarray
    value: np.ndarray
    threshold: np.ndarray
    kept_twin: np.ndarray
    rules: list[str] = field(default_factory=list)
    details: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, num_rows: int) -> Accounts:
        return cls(
            np.zeros(num_rows, np.int8),
            np.full(num_rows, NONE, np.int16),
            np.full(num_rows, np.nan),
            np.full(num_rows, np.nan),
            np.full(num_rows, NONE, np.int64),
        )

    @property
    def left(self) -> np.ndarray:
        """Which rows are still used: bool [N]."""
        return self.status == USED

    def rule_number(self, name: str) -> int:
        if name not in self.rules:
            self.rules.append(name)
        return self.rules.index(name)

    def judge(self, verdicts: pa.Table, status: int = DROPPED) -> np.ndarray:
        """Applies verdicts (schema `layout.VERDICTS`) to the rows that are still used; returns those rows, ascending."""
        rows = verdicts["row"].to_numpy()
        _, first = np.unique(rows, return_index=True)
        first = first[self.status[rows[first]] == USED]
        verdicts, rows = verdicts.take(pa.array(first)), rows[first]
        names = verdicts["rule"].combine_chunks().dictionary_encode()
        names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        numbers = np.array([self.rule_number(name) for name in names.dictionary.to_pylist()] or [0], np.int16)
        self.status[rows] = status
        self.rule[rows] = numbers[names.indices.to_numpy()] if len(rows) else []
        for name, column in (("value", self.value), ("threshold", self.threshold)):
            column[rows] = verdicts[name].to_numpy().astype(np.float64)
        self.kept_twin[rows] = verdicts["kept_twin"].fill_null(NONE).to_numpy()
        words = verdicts["detail"]
        if words.null_count < len(words):
            self.details.update(
                {row: told for row, told in zip(rows.tolist(), words.to_pylist(), strict=True) if told is not None}
            )
        return rows

    def note(self, rows: np.ndarray, rule: str, value: np.ndarray | float, threshold: float = np.nan) -> None:
        """Marks used rows with what was done to them."""
        self.rule[rows] = self.rule_number(rule)
        self.value[rows] = value
        self.threshold[rows] = threshold


def verdicts(
    rows: np.ndarray,
    rule: str,
    *,
    value: np.ndarray | None = None,
    threshold: float | None = None,
    details: list[str] | None = None,
) -> pa.Table:
    """A table of verdicts of one rule."""
    count = len(rows)
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "rule": pa.array([rule] * count, pa.utf8()),
            "value": pa.array(value, pa.float64()) if value is not None else pa.nulls(count, pa.float64()),
            "detail": pa.array(details, pa.utf8()) if details is not None else pa.nulls(count, pa.utf8()),
            "threshold": pa.array([threshold] * count, pa.float64()),
            "kept_twin": pa.nulls(count, pa.int64()),
        }
    )
