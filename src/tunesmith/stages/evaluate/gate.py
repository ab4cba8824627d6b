"""Whether the model may be shipped: its gain over the base, interval and all, on the metric that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.scoring.metrics import PERPLEXITY, shown_names
from tunesmith.scoring.statistics import Gain, smallest_decisive_n
from tunesmith.units import format_gain


def judged_metric(spec: Recipe, has_items: bool) -> str:
    """The metric that decides, by its name in the scores. auto: the first of evaluate.metrics; perplexity where nothing
    held out is a chat, so that there are no answers to judge."""
    names = shown_names(spec.evaluate.metrics)
    if spec.gate.metric != "auto":
        return names.get(spec.gate.metric, spec.gate.metric)
    return next((names[name] for name in spec.evaluate.metrics if has_items or name == PERPLEXITY), PERPLEXITY)


def judge(spec: Recipe, metric: str, gains: Mapping[str, Gain]) -> dict[str, Any]:
    """The verdict over all held-out rows together: {"verdict": "ship" | "hold", "reason", the numbers}.

    gains: by metric; positive is better.
    """
    gain = gains.get(metric)
    found: dict[str, Any] = {"metric": metric, "require": spec.gate.require, "min_gain": spec.gate.min_gain}
    if gain is not None:
        numbers = {"gain": gain.value, "low": gain.low, "high": gain.high, "detectable": gain.detectable}
        found |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        found |= {"n": gain.n, "changed": gain.changed, "smallest_decisive_n": smallest_decisive_n(_confidence(spec))}
    if spec.gate.require == "none":
        return {**found, "verdict": "ship", "reason": "gate.require is none: nothing was demanded"}
    ships, reason = _judge(spec, metric, gain)
    return {**found, "verdict": "ship" if ships else "hold", "reason": reason}


def _judge(spec: Recipe, metric: str, gain: Gain | None) -> tuple[bool, str]:
    if gain is None:
        return False, f"nothing that is held out can be measured by {metric}, so nothing shows that the model is better"
    if not math.isfinite(gain.value):
        return False, f"the gain in {metric} is no number: a loss is not finite"
    least = smallest_decisive_n(_confidence(spec))
    if gain.changed < least:
        return False, (
            f"base and tuned differ in {metric} on {gain.changed} of {gain.n} rows; fewer than {least} cannot show a gain "
            f"at {_confidence(spec):.0%} confidence, whatever they say"
        )
    ships = gain.low > spec.gate.min_gain
    reason = (
        f"the gain in {metric} is {format_gain(gain.value)}, and the low end of its {_confidence(spec):.0%} interval, "
        f"{format_gain(gain.low)}, is {'above' if ships else 'not above'} {spec.gate.min_gain:g} (n = {gain.n:,})"
    )
    if not ships and math.isfinite(gain.detectable):
        needed = format_gain(gain.detectable + spec.gate.min_gain)
        reason += f"; {gain.n:,} rows show a true gain of {needed} or more in four of five repetitions"
    return ships, reason


def _confidence(spec: Recipe) -> float:
    return spec.evaluate.confidence
