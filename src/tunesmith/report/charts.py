"""Charts without script, font or library: bars are plain boxes that wrap on a phone, curves are SVG; titles on hover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 230, 56, 30, 12, 14
MAX_DOTS = 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of low..high (both positive) for a logarithmic axis; as `ticks` where the range is narrow."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [factor * 10.0**power for power in powers for factor in factors]
        marks = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
        if len(marks) >= 3:
            return marks[:: -(-len(marks) // 7)]
    return ticks(low, high, 4)


def lines(series: Mapping[str, Points], x_label: str, title: str, *, log: bool = False) -> str:
    """Line chart. series: name -> (x, y) points; "" where there is none to draw. log: logarithmic y axis, where all
    values are positive."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    values = [y for points in finite.values() for _, y in points]
    if not values:
        return ""
    log = log and min(values) > 0 and max(values) > min(values)
    low, high = min(values), max(values)
    marks = log_ticks(low, high) if log else ticks(min(low, 0.0), high)
    low, high = (low, high) if log else (min(low, 0.0), max(high, marks[-1]))
    places = [x for points in finite.values() for x, _ in points]
    left, right = min(places), max(places)
    scale = math.log if log else float
    span = (scale(high) - scale(low)) or 1.0

    def x_of(x: float) -> float:
        return LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return TOP + (1 - (scale(y) - scale(low)) / span) * (HEIGHT - TOP - BOTTOM)

    out = [_open(f"{title} over {x_label}", HEIGHT)]
    for mark in marks:
        y = y_of(mark)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(mark)}</text>')
    for mark in ticks(left, right):
        out.append(f'<text x="{x_of(mark):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{short(mark)}</text>')
    for number, (name, points) in enumerate(finite.items()):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        out.append(f'<polyline class="line c{number}" points="{path}"><title>{escape(name)}</title></polyline>')
        for x, y in points if len(points) <= MAX_DOTS else []:
            out.append(
                f'<circle class="dot c{number}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3">'
                f"<title>{escape(name)}: {y:.4g} at {x_label} {x:g}</title></circle>"
            )
    keys = "".join(f'<span class="key c{number}">{escape(name)}</span>' for number, name in enumerate(finite))
    legend = f'<span class="keys">{keys}</span>' if len(finite) > 1 else ""
    scaled = ", logarithmic" if log else ""
    caption = f"<figcaption><b>{escape(title)}</b> by {escape(x_label)}{scaled}{legend}</figcaption>"
    return f"<figure class='of{len(finite)}'>{caption}{''.join(out)}</svg></figure>"


def short(value: float) -> str:
    """A tick in few characters: 12000 -> 12k, 0.0002 -> 2e-4."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{value / size:g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}"


def bars(rows: Sequence[tuple[str, float, str, str]], most: float) -> str:
    """One bar per row. rows: (label, number, its text, class); most: the number of a full bar."""
    out = []
    for label, number, text, kind in rows:
        share = _share(number / most if most else 0.0)
        fill = f'<i class="{kind}" style="width:{share}"></i>'
        out.append(
            f'<div class="bar"><span>{escape(label)}</span><div class="track">{fill}</div><b>{escape(text)}</b></div>'
        )
    return f'<div class="bars">{"".join(out)}</div>'


def interval_bar(value: float, low: float, high: float, kind: str, title: str) -> str:
    """A share of 0..1 as a bar, its interval as a whisker."""
    whisker = f'<i class="whisker" style="left:{_share(low)};width:{_share(max(0.0, high - low))}"></i>'
    return f'<div class="track" title="{escape(title)}"><i class="{kind}" style="width:{_share(value)}"></i>{whisker}</div>'


def stack(pieces: Sequence[tuple[str, int, str]]) -> str:
    """Counts that make a whole, side by side. pieces: (label, count, class)."""
    total = sum(count for _, count, _ in pieces) or 1
    fills = "".join(
        f'<i class="{kind}" style="width:{_share(count / total)}" title="{escape(label)}: {count:,}"></i>'
        for label, count, kind in pieces
        if count
    )
    keys = "".join(f'<span class="key {kind}">{escape(label)} <b>{count:,}</b></span>' for label, count, kind in pieces)
    return f'<div class="stack">{fills}</div><div class="keys">{keys}</div>'


def histogram(
    counts: Sequence[int], edges: Sequence[float], title: str, *, kept: tuple[float, float] = (-math.inf, math.inf)
) -> str:
    """Columns of counts between edges, empty ones at both ends left out. kept: what lies wholly beyond is drawn as lost."""
    some = [place for place, count in enumerate(counts) if count] or [0, len(counts) - 1]
    counts, edges = counts[some[0] : some[-1] + 1], edges[some[0] : some[-1] + 2]
    most = max(counts, default=0) or 1
    height, floor = 150, 122
    span = (WIDTH - LEFT - RIGHT) / max(1, len(counts))
    out = [_open(title, height)]
    for place, count in enumerate(counts):
        tall = count / most * (floor - TOP)
        low, high = edges[place], edges[place + 1]
        kind = "lost" if high <= kept[0] or low >= kept[1] else "used"
        out.append(
            f'<rect class="{kind}" x="{LEFT + place * span + 1:.1f}" y="{floor - tall:.1f}" width="{max(1.0, span - 2):.1f}" height="{tall:.1f}" rx="1.5">'
            f"<title>{low:g} to {high:g}: {count:,}</title></rect>"
        )
    for place in range(0, len(edges), max(1, -(-len(counts) // 5))):
        anchor = "end" if place == len(edges) - 1 else "middle"
        x = LEFT + place * span
        out.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="{anchor}">{_edge(edges[place])}</text>')
    out.append(f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{short(most)}</text>')
    return f"<figure><figcaption><b>{escape(title)}</b></figcaption>{''.join(out)}</svg></figure>"


def _edge(value: float) -> str:
    return short(round(value)) if abs(value) >= 10 else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{min(1.0, max(0.0, value)):.2%}"


def _open(label: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
