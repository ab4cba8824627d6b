"""Steps whose loss or gradient norm stands far above what was usual just before: told, so that somebody may look."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

WINDOW, ENOUGH = 32, 12  # steps that say what is usual; fewer than ENOUGH say nothing
# A value counts as a spike from so many spreads above the median. The spread is 1.4826 times the median distance from the
# median (the standard deviation, for normal noise), and a tenth of the median at least: a loss that stands still has none.
SPREADS, LEAST_SPREAD = 8.0, 0.1


def note(recent: dict[str, list[float]], values: Mapping[str, float]) -> dict[str, list[float]]:
    """Adds a finite step's values to the recent ones. Returns the spikes among them: {name: [value, usual]}."""
    found = {}
    for name, value in values.items():
        before = recent.setdefault(name, [])
        if len(before) >= ENOUGH:
            usual = statistics.median(before)
            spread = 1.4826 * statistics.median(abs(one - usual) for one in before)
            if value > usual + SPREADS * max(spread, LEAST_SPREAD * usual):
                found[name] = [value, usual]
        before.append(value)
        del before[:-WINDOW]
    return found
