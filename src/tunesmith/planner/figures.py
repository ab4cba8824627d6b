"""A predicted number with its band."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.units import format_bytes, format_count, format_seconds


@dataclass(frozen=True)
class Figure:
    """A prediction with its band, which should hold what is measured nine times out of ten."""

    value: float
    low: float
    high: float
    unit: str
    note: str = ""

    def text(self) -> str:
        show = {"bytes": format_bytes, "s": format_seconds}.get(self.unit, format_count)
        band = "" if self.low == self.high else f"   ({show(self.low)} to {show(self.high)})"
        return f"{show(self.value)}{band}"
