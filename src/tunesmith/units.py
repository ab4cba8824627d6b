"""Quantities as people read them: bytes, durations, counts, scores. Standard library only."""

from __future__ import annotations

GIB = 1024**3
MIB = 1024**2
KIB = 1024


def format_bytes(count: float) -> str:
    """Bytes in binary units, three figures: 1536 -> '1.50 KiB'."""
    for unit, size in (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.0f} {unit}" if abs(count) / size >= 100 else f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """0.42 -> '0.42 s', 75 -> '1 min 15 s', 7300 -> '2 h 01 min'."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_count(count: float) -> str:
    """1234567 -> '1.23 M'; below 10,000 the number itself with a thousands comma."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size * (10 if unit == "k" else 1):
            few = f"{count / size:.3g}"
            return f"{few if 'e' not in few else format(count / size, '.0f')} {unit}"
    return f"{count:,.0f}"


def format_score(value: float | None) -> str:
    """A metric's value in about four figures: 0.9167 -> '0.917', 293.41 -> '293.4', 12345.6 -> '12,346'; None -> '-'."""
    if value is None:
        return "-"
    size = abs(value)
    digits = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{digits}f}" if size < 1e7 else f"{value:.3g}"


def format_gain(value: float | None) -> str:
    """As `format_score`, with its sign: '+0.917'."""
    return "-" if value is None else f"{'+' if value >= 0 else '-'}{format_score(abs(value))}"
