"""Which rows a quality score drops, by value or by share of the set, and what every threshold would keep."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tunesmith.recipe.tree import Heuristics, NoScore, Scoring
from tunesmith.stages.prepare.cleaning.facts import histogram
from tunesmith.stages.prepare.layout import VERDICTS

Best = Literal["high", "low"]


def best_of(scoring: Scoring) -> Best:
    """Whether a high score or a low one is the better."""
    return "low" if scoring.type == "perplexity" else "high"


def judge_scores(rows: np.ndarray, scores: np.ndarray, may_go: np.ndarray, scoring: Scoring) -> pa.Table:
    """VERDICTS of the set's scores, in the order of rows.

    rows: int64 [R]. scores: float64 [R]; a row without one (NaN) stays. may_go: bool [R], rows that train and that no
    other rule took; shares are shares of those among them that have a score. A tie at the border is decided by the row's number.
    """
    if isinstance(scoring, NoScore):
        return VERDICTS.empty_table()
    assert isinstance(scoring, Heuristics)
    left = may_go & ~np.isnan(scores)
    taken: list[tuple[np.ndarray, float, str | None]] = []
    for bound, beyond in ((scoring.above, lambda b: ~(scores > b)), (scoring.below, lambda b: ~(scores < b))):
        if bound is not None:
            hit = np.flatnonzero(left & beyond(bound))
            left[hit] = False
            taken.append((hit, bound, None))
    if scoring.keep is not None:
        order = _best_first(rows, scores, np.flatnonzero(left), best_of(scoring))
        kept = round(scoring.keep * len(order))
        if kept < len(order):
            border = float(scores[order[kept - 1]]) if kept else np.nan
            taken.append((order[kept:], border, f"not among the best {scoring.keep:.0%}"))
    columns: dict[str, list[Any]] = {name: [] for name in VERDICTS.names}
    for places, threshold, detail in taken:
        columns["row"] += rows[places].tolist()
        columns["rule"] += [scoring.type] * len(places)
        columns["value"] += scores[places].tolist()
        columns["detail"] += [detail] * len(places)
        columns["threshold"] += [None if np.isnan(threshold) else threshold] * len(places)
        columns["kept_twin"] += [None] * len(places)
    return pa.table(columns, VERDICTS).sort_by("row")


def _best_first(rows: np.ndarray, scores: np.ndarray, places: np.ndarray, best: Best) -> np.ndarray:
    falling = scores[places] if best == "low" else -scores[places]
    return places[np.lexsort((rows[places], falling))]


def score_facts(scores: np.ndarray, scoring: Scoring) -> dict[str, Any]:
    """Of the rows that may go: {type, best, scored, missing, thresholds, histogram}, plain JSON for the report."""
    name = "quality" if scoring.type == "heuristics" else scoring.type
    return {
        "type": scoring.type,
        **what_thresholds_keep(scores, best_of(scoring)),
        "histogram": histogram(name, scores),
    }


def what_thresholds_keep(scores: np.ndarray, best: Best) -> dict[str, Any]:
    """{best, scored, missing, thresholds: [{share, threshold, rows}]}: the best 90 %, 80 % ... 10 % of the rows with a score.

    `rows` are those that the threshold itself keeps as a bound by value, of equal scores all or none.
    """
    known = np.sort(scores[~np.isnan(scores)])
    table = []
    for tenths in range(9, 0, -1) if len(known) else ():
        count = max(1, round(tenths / 10 * len(known)))
        threshold = float(known[count - 1] if best == "low" else known[-count])
        kept = (
            np.searchsorted(known, threshold, side="right")
            if best == "low"
            else len(known) - np.searchsorted(known, threshold)
        )
        table.append({"share": tenths / 10, "threshold": threshold, "rows": int(kept)})
    return {"best": best, "scored": len(known), "missing": len(scores) - len(known), "thresholds": table}
