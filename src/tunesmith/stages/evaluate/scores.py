"""From answers and losses to numbers: each metric of each part for base and tuned, with intervals, and the paired gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunesmith.recipe import Recipe
from tunesmith.scoring.items import HeldOut
from tunesmith.scoring.metrics import LOWER_IS_BETTER, PERPLEXITY, Metric, score, shown_names
from tunesmith.scoring.statistics import (
    Gain,
    Interval,
    interval,
    paired_gain,
    perplexity_gain,
    perplexity_interval,
)
from tunesmith.stages.evaluate.answers import Side

CHANGES = ("fixed", "broken", "still right", "still wrong")


@dataclass(frozen=True)
class Scores:
    """Every measured value: rows_N, the held-out rows; items, places in rows_N of those that were asked.

    by_item: metric -> (base, tuned) scores of the items. base, tuned: losses of all rows. asked: names of
    evaluate.metrics in order; perplexity is measured also where it is not among them.
    """

    asked: Sequence[str]
    rows: Sequence[HeldOut]
    items: Sequence[int]
    by_item: Mapping[str, tuple[np.ndarray, np.ndarray]]
    base: Side
    tuned: Side
    confidence: float
    seed: int

    @classmethod
    def of(cls, spec: Recipe, metrics: Sequence[Metric], rows: Sequence[HeldOut], base: Side, tuned: Side) -> Scores:
        """Every answer judged by every metric. Raises DataError EVL-006 when one fails on an answer."""
        items = [row.item for row in rows if row.item is not None]
        by_item = {
            metric.name: tuple(
                np.array(
                    [
                        score(metric, item.expected, answer.text, item)
                        for item, answer in zip(items, side.answers, strict=True)
                    ]
                )
                for side in (base, tuned)
            )
            for metric in metrics
        }
        places = [place for place, row in enumerate(rows) if row.item is not None]
        asked = [*shown_names(spec.evaluate.metrics).values()]
        return cls(asked, rows, places, by_item, base, tuned, spec.evaluate.confidence, spec.seed)  # type: ignore[arg-type]

    def parts(self) -> dict[str, Any]:
        """What `overall` says, by part."""
        parts = dict.fromkeys(row.part for row in self.rows)
        return {part: self._of([place for place, row in enumerate(self.rows) if row.part == part]) for part in parts}

    def overall(self) -> dict[str, Any]:
        """n rows, items among them, and each metric with base, tuned, gain and what became of the items."""
        return self._of(list(range(len(self.rows))))

    def gains(self) -> dict[str, Gain]:
        """By metric the gain over all parts together; only metrics that were measured on something."""
        found = {
            name: paired_gain(base, tuned, self.confidence, self.seed) for name, (base, tuned) in self.by_item.items()
        }
        found[PERPLEXITY] = self._perplexity_gain(list(range(len(self.rows))))
        return {name: gain for name, gain in found.items() if gain.n}

    def _of(self, places: list[int]) -> dict[str, Any]:
        wanted = set(places)
        chosen = [number for number, place in enumerate(self.items) if place in wanted]
        metrics = {name: self._of_items(name, chosen) for name in self.by_item} if chosen else {}
        metrics[PERPLEXITY] = self._perplexity(places)
        order = [name for name in dict.fromkeys((*self.asked, PERPLEXITY)) if name in metrics]
        return {"n": len(places), "items": len(chosen), "metrics": {name: metrics[name] for name in order}}

    def _of_items(self, name: str, chosen: list[int]) -> dict[str, Any]:
        base, tuned = (side[chosen] for side in self.by_item[name])
        kinds = change_kinds(base, tuned)
        return {
            "base": plain(interval(base, self.confidence, self.seed)),
            "tuned": plain(interval(tuned, self.confidence, self.seed)),
            "gain": plain(paired_gain(base, tuned, self.confidence, self.seed)),
            "higher_is_better": name not in LOWER_IS_BETTER,
            "items": {kind: kinds.count(kind) for kind in CHANGES},
        }

    def _perplexity(self, places: list[int]) -> dict[str, Any]:
        sides = {
            who: plain(perplexity_interval(side.nll_N[places], side.weight_N[places], self.confidence, self.seed))
            for who, side in (("base", self.base), ("tuned", self.tuned))
        }
        gain = plain(self._perplexity_gain(places))
        return {
            **sides,
            "gain": gain,
            "higher_is_better": PERPLEXITY not in LOWER_IS_BETTER,
            "learned_tokens": float(self.tuned.weight_N[places].sum()),
        }

    def _perplexity_gain(self, places: list[int]) -> Gain:
        base, tuned, weight = self.base.nll_N[places], self.tuned.nll_N[places], self.tuned.weight_N[places]
        return perplexity_gain(base, tuned, weight, self.confidence, self.seed)


def change_kinds(base_N: np.ndarray, tuned_N: np.ndarray) -> list[str]:
    """What became of each item. An item is right with the full score of 1: of F1 and the like nothing less counts."""
    return [
        ("still right" if after else "broken") if before else ("fixed" if after else "still wrong")
        for before, after in zip((base_N >= 1).tolist(), (tuned_N >= 1).tolist(), strict=True)
    ]


def plain(found: Interval | Gain) -> dict[str, float | None]:
    """The fields as JSON has them: rounded, null where there is no number."""
    return {name: _number(value) for name, value in asdict(found).items()}


def _number(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
