"""Which trials are given up early: asynchronous successive halving over shares of a trial's steps. Pure functions.

At each rung a trial goes on only if its lowest validation loss so far is among the best third of all that have come to
that rung by now. Source: Li et al., A System for Massively Parallel Hyperparameter Tuning (ASHA), 2020; here in its
stopping form, as a trial's schedule knows its end and cannot be cut in advance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

ETA = 3  # one in ETA goes on
FULL = 1000  # shares are told in thousandths of a trial's steps
RUNGS = (FULL // 9, FULL // 3)

Curve = Mapping[int, float]  # thousandths of the steps -> validation loss


def share_of(step: int, num_steps: int) -> int:
    """Thousandths of a trial's steps; the last step is FULL, one before it is not."""
    return FULL if step >= num_steps else min(FULL - 1, FULL * step // num_steps)


def rung_value(curve: Curve, rung: int) -> float | None:
    """Lowest loss up to the first validation at or after the rung; None before that."""
    reached = [share for share in curve if share >= rung]
    if not reached:
        return None
    return min((loss for share, loss in curve.items() if share <= min(reached)), key=_rank)


def why_pruned(curve: Curve, others: Iterable[Curve]) -> str | None:
    """Why a trial is given up at its newest validation; None: it goes on.

    curve: of this trial; others: of all other trials, whatever became of them.
    """
    newest = max(curve)
    if newest >= FULL:
        return None
    if not math.isfinite(curve[newest]):
        return f"the validation loss at {newest / 10:.0f} % of the steps is not finite"
    earlier = max((share for share in curve if share < newest), default=0)
    crossed = [rung for rung in RUNGS if earlier < rung <= newest]
    if not crossed:
        return None
    rung = crossed[-1]
    mine = rung_value(curve, rung)
    rivals = [value for other in others if (value := rung_value(other, rung)) is not None]
    num, num_better = len(rivals) + 1, sum(_rank(value) < _rank(mine) for value in rivals)
    if num < ETA or num_better < num // ETA:
        return None
    return (
        f"loss {mine:.4f} at {newest / 10:.0f} % of the steps is place {num_better + 1} of {num}, "
        f"and places 1 to {num // ETA} go on"
    )


def _rank(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf
