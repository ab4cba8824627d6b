"""The page of a search: one file, no script, nothing loaded from elsewhere. Drawn from what the study holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tunesmith.tuning.progress import show_value
from tunesmith.tuning.space import Choices, Dimension, Span
from tunesmith.units import format_seconds

if TYPE_CHECKING:
    from tunesmith.tuning.results import Result
    from tunesmith.tuning.search import Search

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 240, 62, 16, 12, 32
ROUGH_BELOW = 30  # complete trials; with fewer, importance is a hint

STYLE = """
:root{--bg:#fbfaf7;--fg:#1d2129;--soft:#6b7280;--line:#e3e0d8;--card:#fff;--a:#0f766e;--b:#c2762b;--bad:#b3403a;--base:#b9bfc9}
@media(prefers-color-scheme:dark){:root{--bg:#15171b;--fg:#e6e4df;--soft:#9aa1ad;--line:#2c3038;--card:#1c1f25;--a:#3fb8a8;--b:#e0a05a;--bad:#e5776f;--base:#59606c}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:900px;margin:0 auto;padding:32px 20px 64px}h1{font-size:28px;margin:0 0 4px}h2{font-size:19px;margin:0 0 12px}.soft{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:18px 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{text-align:left;padding:4px 8px;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}th{color:var(--soft);font-weight:500}td.why{white-space:normal;min-width:320px}tr.best td{font-weight:600}
pre{white-space:pre-wrap;background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:10px;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px;paint-order:stroke;stroke:var(--card);stroke-width:3px}.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.complete{fill:var(--a)}.pruned{fill:none;stroke:var(--b);stroke-width:1.6}.best{fill:var(--bad)}.sofar{fill:none;stroke:var(--a);stroke-width:1.6}
.path{fill:none;stroke-width:1.3;stroke:var(--base)}.path.good{stroke:var(--a)}.path.top{stroke:var(--bad);stroke-width:2.2}.bar{fill:var(--a)}
.grids{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:14px}.grids svg text{font-size:17px}@media print{body{background:#fff}section{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Axis:
    """Places of values between two ends. log: by the logarithm. labels: of a choice, one place each. whole: numbers."""

    low: float
    high: float
    log: bool = False
    labels: tuple[str, ...] = ()
    whole: bool = False

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """By the logarithm where values differ by more than a factor of five."""
        low, high = min(values), max(values)
        log = low > 0 and high / low > 5
        room = 0.0 if log else (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return cls(low * 0.95, high * 1.05, True) if log else cls(low - room, high + room)

    @classmethod
    def of(cls, dimension: Dimension) -> Axis:
        if isinstance(dimension, Choices):
            return cls(-0.5, len(dimension.texts) - 0.5, labels=dimension.texts)
        return cls(dimension.low, dimension.high, dimension.log)

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return min(1.0, max(0.0, (scale(max(value, self.low)) - low) / (high - low)))

    def marks(self) -> list[tuple[float, str]]:
        if self.labels:
            return [(float(place), text.strip('"')[:14]) for place, text in enumerate(self.labels)]
        if self.whole:
            step = max(1, math.ceil((self.high - self.low) / 10))
            return [(float(value), str(value)) for value in range(math.ceil(self.low), math.floor(self.high) + 1, step)]
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            values = [10.0**power for power in range(first, last + 1)]
            if len(values) < 2:
                values = [self.low, math.sqrt(self.low * self.high), self.high]
        else:
            values = [self.low + (self.high - self.low) * part / 4 for part in range(5)]
        return [(value, f"{value:.3g}") for value in values]


def render(result: Result, search: Search) -> str:
    """The whole page."""
    counts = ", ".join(f"{count} {state}" for state, count in result.counts().items()) or "no trial yet"
    best = result.best
    words = search.objective.words
    head = f"<h1>{escape(result.search)}</h1><p class='soft'>{escape(words)}, {result.direction}d; {counts}</p>"
    if best:
        values = ", ".join(f"{key} = {show_value(value)}" for key, value in best["values"].items())
        head += f"<p><b>Best: {best['value']:.6g}</b> in trial {best['number']} (run {escape(str(best['run']))}): {escape(values)}</p>"
    sections = [
        _section("Values over the trials", history(result)),
        _section("What each key does", scatters(result, search.space)),
        _section("Trials as paths through the space", parallel(result, search.space)),
        _section("Validation loss on the way", curves(result)),
        _section("Which keys matter", importance(result)),
        _section("Trials", table(result)),
        _section("Next", _next(result)),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(result.search)}: tunesmith search</title><style>{STYLE}</style></head>"
        f"<body><main>{head}{''.join(sections)}</main></body></html>\n"
    )


# ------------------------------------------------------------------------------------------------------------ charts


def history(result: Result) -> str:
    """Value of each complete trial and the best so far; a trial given up is a ring at its last loss."""
    shown = [(trial, value) for trial in result.trials if (value := _shown_value(trial, result)) is not None]
    if not shown:
        return ""
    y = Axis.around([value for _, value in shown])
    x = Axis(-0.5, max(trial["number"] for trial, _ in shown) + 0.5, whole=True)
    out = [_frame(x, y, "trial", _words(result))]
    so_far: list[str] = []
    best: float | None = None
    for trial, value in shown:
        if trial["state"] == "complete":
            better = best is None or (value < best if result.direction == "minimize" else value > best)
            if best is not None:
                so_far.append(_point(x, y, trial["number"], best))
            best = value if better else best
            so_far.append(_point(x, y, trial["number"], best))
        out.append(_dot(x, y, trial["number"], value, trial, result))
    return "".join(out) + f'<polyline class="sofar" points="{" ".join(so_far)}"/></svg>'


def scatters(result: Result, space: Mapping[str, Dimension]) -> str:
    """One chart for each key: its value and what came of it."""
    shown = [(trial, value) for trial in result.trials if (value := _shown_value(trial, result)) is not None]
    if not shown:
        return ""
    y = Axis.around([value for _, value in shown])
    charts = []
    for key, dimension in space.items():
        x = Axis.of(dimension)
        dots = [
            _dot(x, y, place, value, trial, result)
            for trial, value in shown
            if (place := _place(trial, key, dimension)) is not None
        ]
        charts.append(f"<div>{_frame(x, y, key, _words(result))}{''.join(dots)}</svg></div>")
    return f"<div class='grids'>{''.join(charts)}</div>"


def parallel(result: Result, space: Mapping[str, Dimension]) -> str:
    """A line for each complete trial across an axis for each key, and the value; the best third coloured, the best bold."""
    complete = [trial for trial in result.trials if trial["state"] == "complete"]
    if not complete or not space:
        return ""
    axes = [(key, Axis.of(dimension)) for key, dimension in space.items()]
    value_axis = Axis.around([trial["value"] for trial in complete])
    gap = (WIDTH - 2 * LEFT) / len(axes)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" aria-label="trials across keys">']
    ranked = sorted(complete, key=lambda trial: trial["value"], reverse=result.direction == "maximize")
    for rank, trial in reversed(list(enumerate(ranked))):
        points = []
        for number, (key, axis) in enumerate(axes):
            place = _place(trial, key, space[key])
            if place is not None:
                points.append(
                    f"{LEFT + number * gap:.1f},{TOP + (1 - axis.share(place)) * (HEIGHT - TOP - BOTTOM):.1f}"
                )
        end = TOP + (1 - value_axis.share(trial["value"])) * (HEIGHT - TOP - BOTTOM)
        points.append(f"{LEFT + len(axes) * gap:.1f},{end:.1f}")
        kind = "top" if rank == 0 else "good" if rank < max(1, len(ranked) // 3) else ""
        out.append(
            f'<polyline class="path {kind}" points="{" ".join(points)}"><title>{escape(_title(trial))}</title></polyline>'
        )
    for number, (name, axis) in enumerate([*axes, (_words(result), value_axis)]):
        x = LEFT + number * gap
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - 8 + 16 * (number % 2)}" text-anchor="middle">{escape(name)}</text>')
        for mark, text in axis.marks():
            y = TOP + (1 - axis.share(mark)) * (HEIGHT - TOP - BOTTOM)
            out.append(f'<text x="{x + 4:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
    return "".join(out) + "</svg>"


def curves(result: Result) -> str:
    """Validation loss over the share of the steps, for every trial; the best one bold."""
    found = [
        (trial, [(share, loss) for share, loss in trial["curve"] if loss is not None])
        for trial in result.trials
        if trial["curve"]
    ]
    losses = [loss for _, points in found for _, loss in points]
    if not losses:
        return ""
    x, y = Axis(0.0, 1.0), Axis.around(losses)
    out = [_frame(x, y, "share of the steps", "validation loss")]
    for trial, points in found:
        is_best = bool(result.best) and trial["number"] == result.best["number"]  # type: ignore[index]
        kind = "top" if is_best else "good" if trial["state"] == "complete" else ""
        path = " ".join(_point(x, y, share, loss) for share, loss in points)
        out.append(f'<polyline class="path {kind}" points="{path}"><title>{escape(_title(trial))}</title></polyline>')
    return "".join(out) + "</svg>"


def importance(result: Result) -> str:
    if not result.importance:
        return ""
    row = 26
    out = [
        f'<svg viewBox="0 0 {WIDTH} {row * len(result.importance) + 4}" role="img" aria-label="importance of each key">'
    ]
    for number, (key, share) in enumerate(sorted(result.importance.items(), key=lambda item: -item[1])):
        y = number * row + 3
        out.append(
            f'<text x="200" y="{y + 15}" text-anchor="end">{escape(key)}</text>'
            f'<rect class="bar" x="210" y="{y}" width="{max(1.0, share * 360):.1f}" height="{row - 6}" rx="3"/>'
            f'<text x="{216 + share * 360:.1f}" y="{y + 15}">{share:.0%}</text>'
        )
    num = sum(trial["state"] == "complete" for trial in result.trials)
    rough = f" With {num} complete trials this is a hint, no more." if num < ROUGH_BELOW else ""
    return f"{''.join(out)}</svg><p class='soft'>PED-ANOVA over complete trials: what sets the best tenth apart.{rough}</p>"


def table(result: Result) -> str:
    keys = list(result.space)
    head = "".join(
        f"<th>{escape(name)}</th>" for name in ("trial", _words(result), "state", "steps", "time", *keys, "run", "why")
    )
    rows = []
    for trial in result.trials:
        is_best = bool(result.best) and trial["number"] == result.best["number"]  # type: ignore[index]
        cells: Iterable[str] = (
            str(trial["number"]),
            "" if trial["value"] is None else f"{trial['value']:.6g}",
            trial["state"] + (", reused" if trial["reused"] and trial["state"] == "complete" else ""),
            f"{trial['steps'] or 0}/{trial['num_steps']}" if trial["num_steps"] else "",
            format_seconds(trial["seconds"]) if trial["seconds"] else "",
            *(show_value(trial["values"].get(key, "")) for key in keys),
            str(trial["run"] or ""),
        )
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(
            f"<tr{' class=best' if is_best else ''}>{body}<td class='why'>{escape(trial['why'] or '')}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


# ------------------------------------------------------------------------------------------------------------- parts


def _words(result: Result) -> str:
    return result.metric.rpartition("/")[2].replace("_", " ")


def _shown_value(trial: Mapping[str, Any], result: Result) -> float | None:
    """Of a complete trial its value; of one that was given up its last loss, where that is what is searched for."""
    if trial["value"] is not None:
        return trial["value"]
    losses = [loss for _, loss in trial["curve"] if loss is not None]
    return losses[-1] if trial["state"] == "pruned" and losses and result.metric == "validation_loss" else None


def _place(trial: Mapping[str, Any], key: str, dimension: Dimension) -> float | None:
    if key not in trial["values"]:
        return None
    if isinstance(dimension, Span):
        return float(trial["values"][key])
    return float(dimension.values.index(trial["values"][key]))


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 14}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">'
    ]
    for mark, text in y.marks():
        place = TOP + (1 - y.share(mark)) * (HEIGHT - TOP - BOTTOM)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for mark, text in x.marks():
        place = LEFT + x.share(mark) * (WIDTH - LEFT - RIGHT)
        out.append(f'<text x="{place:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(text)}</text>')
    out.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT + 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(out)


def _point(x: Axis, y: Axis, at: float, value: float) -> str:
    across = LEFT + x.share(at) * (WIDTH - LEFT - RIGHT)
    return f"{across:.1f},{TOP + (1 - y.share(value)) * (HEIGHT - TOP - BOTTOM):.1f}"


def _dot(x: Axis, y: Axis, at: float, value: float, trial: Mapping[str, Any], result: Result) -> str:
    across, down = _point(x, y, at, value).split(",")
    is_best = bool(result.best) and trial["number"] == result.best["number"]  # type: ignore[index]
    kind, radius = ("best", 6) if is_best else (trial["state"], 4)
    return (
        f'<circle class="{kind}" cx="{across}" cy="{down}" r="{radius}"><title>{escape(_title(trial))}</title></circle>'
    )


def _title(trial: Mapping[str, Any]) -> str:
    values = ", ".join(f"{key} = {show_value(value)}" for key, value in trial["values"].items())
    value = f", {trial['value']:.6g}" if trial["value"] is not None else ""
    return f"trial {trial['number']}, {trial['state']}{value}: {values}"


def _next(result: Result) -> str:
    if not result.best:
        return "<p>No trial is complete yet; the same command goes on.</p>"
    return f"<pre>tunesmith run {escape(result.files['best'])}</pre><pre>{escape(result.best_recipe or '')}</pre>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""
