"""Small SVG charts, drawn by hand: no script, no font, no library; titles show on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 240, 58, 30, 12, 14


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(series: dict[str, Points], x_label: str, y_label: str, *, log: bool = False) -> str:
    """Line chart. series: name -> (x, y) points. log: logarithmic y axis where all values are positive."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    values = [y for points in finite.values() for _, y in points]
    places = [x for points in finite.values() for x, _ in points]
    if not values:
        return ""
    log = log and min(values) > 0
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    low = low if log else min(low, 0.0)
    high = high if high > low else low + 1
    left, right = min(places), max(places) if max(places) > min(places) else min(places) + 1

    def x_of(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return TOP + (1 - (scale(y) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)

    out = [_open(f"{y_label} over {x_label}")]
    marks = [10**power for power in range(math.floor(low), math.ceil(high) + 1)] if log else ticks(low, high)
    for mark in marks:
        if low - 1e-9 <= scale(mark) <= high + 1e-9:
            y = y_of(mark)
            out.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>'
            )
    for mark in ticks(left, right):
        out.append(f'<text x="{x_of(mark):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{mark:g}</text>')
    for number, (name, points) in enumerate(finite.items()):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        out.append(f'<polyline class="line c{number}" points="{path}"><title>{escape(name)}</title></polyline>')
        for x, y in points if len(points) <= 40 else []:
            out.append(
                f'<circle class="dot c{number}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"><title>{escape(name)}: {y:.4g} at {x:g}</title></circle>'
            )
    legend = "".join(f'<span class="key c{number}">{escape(name)}</span>' for number, name in enumerate(finite))
    return "".join(out) + f'</svg><p class="legend">{legend}</p>'


def funnel(steps: Sequence[tuple[str, int, str]], total: int) -> str:
    """Bars from top to bottom. steps: (label, rows, class)."""
    row = 26
    height = row * len(steps) + 4
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="what became of the rows">']
    for number, (label, count, kind) in enumerate(steps):
        y = number * row + 3
        width = max(1.0, count / max(1, total) * (WIDTH - 330))
        out.append(
            f'<text x="180" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="{kind}" x="190" y="{y}" width="{width:.1f}" height="{row - 6}" rx="3"><title>{escape(label)}: {count:,}</title></rect>'
            f'<text x="{196 + width:.1f}" y="{y + 15}">{count:,} ({count / max(1, total):.1%})</text>'
        )
    return "".join(out) + "</svg>"


def histogram(counts: Sequence[int], edges: Sequence[float], x_label: str) -> str:
    """Bars of counts between edges."""
    top = max(counts) or 1
    span = (WIDTH - LEFT - RIGHT) / len(counts)
    out = [_open(f"rows by {x_label}", 160)]
    for place, count in enumerate(counts):
        height = count / top * 110
        out.append(
            f'<rect class="used" x="{LEFT + place * span + 1:.1f}" y="{124 - height:.1f}" width="{span - 2:.1f}" height="{height:.1f}">'
            f"<title>{edges[place]:g} to {edges[place + 1]:g} {escape(x_label)}: {count:,} rows</title></rect>"
        )
    for place in range(0, len(edges), 4):
        out.append(f'<text x="{LEFT + place * span:.1f}" y="142" text-anchor="middle">{edges[place]:.0f}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="157" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(out) + "</svg>"


def interval_bars(rows: Sequence[tuple[str, dict[str, float | None], str]]) -> str:
    """Scores in 0..1 with their intervals. rows: (label, {value, low, high}, class)."""
    row = 28
    out = [f'<svg viewBox="0 0 {WIDTH} {row * len(rows) + 24}" role="img" aria-label="scores with intervals">']
    for mark in (0, 0.25, 0.5, 0.75, 1):
        x = 200 + mark * 380
        out.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{row * len(rows)}"/><text x="{x}" y="{row * len(rows) + 16}" text-anchor="middle">{mark:g}</text>'
        )
    for number, (label, found, kind) in enumerate(rows):
        value, low, high = (found[name] or 0.0 for name in ("value", "low", "high"))
        y = number * row + 4
        out.append(
            f'<text x="192" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="{kind}" x="200" y="{y + 2}" width="{value * 380:.1f}" height="16" rx="3"><title>{escape(label)}: {value:.3f} ({low:.3f} to {high:.3f})</title></rect>'
            f'<line class="whisker" x1="{200 + low * 380:.1f}" x2="{200 + high * 380:.1f}" y1="{y + 10}" y2="{y + 10}"/>'
            f'<text x="{210 + max(value, high) * 380:.1f}" y="{y + 15}">{value:.3f}</text>'
        )
    return "".join(out) + "</svg>"


def _open(label: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
