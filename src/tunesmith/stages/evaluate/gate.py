"""Whether the model may be shipped: its gain over the base, interval and all, on the metric that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.scoring.statistics import paired_gain


def judge(spec: Recipe, base: Mapping[str, list[float]], tuned: Mapping[str, list[float]]) -> dict[str, Any]:
    """The verdict over all held-out items together: {"verdict": "ship" | "hold", "reason", numbers}.

    base, tuned: metric -> score of each item, in the same order, higher better.
    """
    metric = _metric(spec, base)
    gain = (
        paired_gain(base[metric], tuned[metric], spec.evaluate.confidence, spec.seed)
        if metric and base[metric]
        else None
    )
    if spec.gate.require == "none":
        return {
            "verdict": "ship",
            "metric": metric,
            "reason": "gate.require is none: nothing was demanded",
            "require": "none",
        }
    if gain is None:
        return {
            "verdict": "hold",
            "metric": metric,
            "require": spec.gate.require,
            "reason": "no held-out item was answered, so nothing shows that the model is better",
        }
    ships = gain.low > spec.gate.min_gain
    relation = "above" if ships else "not above"
    reason = (
        f"the gain in {metric} is {gain.value:+.3f}, and the low end of its {spec.evaluate.confidence:.0%} interval, "
        f"{gain.low:+.3f}, is {relation} {spec.gate.min_gain:g} (n = {len(base[metric])})"
    )
    return {
        "verdict": "ship" if ships else "hold",
        "metric": metric,
        "require": spec.gate.require,
        "n": len(base[metric]),
        "gain": gain.value,
        "low": gain.low,
        "high": gain.high,
        "min_gain": spec.gate.min_gain,
        "reason": reason,
    }


def _metric(spec: Recipe, scores: Mapping[str, list[float]]) -> str | None:
    if spec.gate.metric != "auto":
        # Own metrics are known by the file's name: /home/me/own.py:judge is own.py:judge here.
        return next((name for name in scores if spec.gate.metric.endswith(name)), None)
    return next(iter(scores), None)
