"""Quantities are written as people write them, also just below the next unit."""

from __future__ import annotations

import pytest

from tunesmith.units import MIB, format_bytes, format_count, format_seconds


@pytest.mark.parametrize(
    ("count", "shown"), [(1536, "1.50 KiB"), (345 * MIB, "345 MiB"), (1010 * MIB, "1010 MiB"), (2048 * MIB, "2.00 GiB")]
)
def test_bytes(count: float, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(9_999, "9,999"), (735_378, "735 k"), (1_234_567, "1.23 M"), (999_600_000, "1000 M")]
)
def test_counts(count: float, shown: str) -> None:
    assert format_count(count) == shown


def test_seconds() -> None:
    assert [format_seconds(s) for s in (0.42, 75, 7300)] == ["0.42 s", "1 min 15 s", "2 h 01 min"]
