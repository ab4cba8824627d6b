"""The learning rate of each step: a function of the step alone and, for `plateau`, of what validations have shown.

Steps count from 1. The warm-up rises by 1/(W + 1) per step, so that the first step has a rate and step W + 1 the peak; the
last step has the lowest rate. So step n here is call n of transformers' schedulers with W + 1 warm-up steps, and a run
of N steps their run of N (tests/unit/test_schedule.py compares them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tunesmith.recipe.tree import Constant, InverseSqrt, Linear, Plateau, Schedule, Wsd

LONG_TIMESCALE = 10_000  # of inverse_sqrt without a warm-up, as in transformers


@dataclass(frozen=True)
class PlateauState:
    """What plateau remembers from validation to validation.

    factor: share of the peak rate now. best: best value so far. without_gain: validations since. cooldown: validations
    that still do not count.
    """

    factor: float = 1.0
    best: float | None = None
    without_gain: int = 0
    cooldown: int = 0


def rate_factor(schedule: Schedule, step: int, num_steps: int, plateau: PlateauState = PlateauState()) -> float:
    """Share of the peak rate at `step` (from 1 to num_steps), in 0..1."""
    warmup = num_warmup(schedule, num_steps)
    if step <= warmup:
        return step / (warmup + 1)
    if isinstance(schedule, Constant):
        return 1.0
    if isinstance(schedule, Plateau):
        return plateau.factor
    if isinstance(schedule, InverseSqrt):
        timescale = (warmup + 1 if warmup else LONG_TIMESCALE) if schedule.timescale == "auto" else schedule.timescale
        return 1 / math.sqrt((step + timescale - warmup - 1) / timescale)
    if isinstance(schedule, Wsd):
        decay = min(_steps(schedule.decay, num_steps), num_steps - warmup - 1)  # the peak is reached before it
        progress, shape = (max(0.0, (step - (num_steps - decay)) / decay) if decay > 0 else 0.0), schedule.shape
    else:
        progress = (step - 1 - warmup) / max(1, num_steps - 1 - warmup)
        shape = "linear" if isinstance(schedule, Linear) else "cosine"
    return schedule.final + (1 - schedule.final) * _falling(shape, progress)


def num_warmup(schedule: Schedule, num_steps: int) -> int:
    """Steps with a rising rate."""
    return _steps(schedule.warmup, num_steps)


def note_plateau(state: PlateauState, schedule: Plateau, value: float, higher_is_better: bool) -> PlateauState:
    """The state after a validation. The same rule as torch's ReduceLROnPlateau (relative threshold); a NaN is no gain."""
    better = _gains(value, state.best, schedule.min_gain, higher_is_better)
    best = value if better else state.best
    without_gain = 0 if better else state.without_gain + 1
    cooldown = state.cooldown
    if cooldown > 0:
        cooldown, without_gain = cooldown - 1, 0
    factor = state.factor
    if without_gain > schedule.patience:
        factor = max(factor * schedule.factor, schedule.final)
        cooldown, without_gain = schedule.cooldown, 0
    return replace(state, factor=factor, best=best, without_gain=without_gain, cooldown=cooldown)


def _gains(value: float, best: float | None, min_gain: float, higher_is_better: bool) -> bool:
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best * (1 + min_gain) if higher_is_better else value < best * (1 - min_gain)


def _steps(asked: float, num_steps: int) -> int:
    """A number up to 1 is a share of the steps, from 2 on a number of them."""
    return round(asked * num_steps) if asked <= 1 else int(asked)


def _falling(shape: str, progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    if shape == "linear":
        return 1 - progress
    if shape == "1-sqrt":
        return 1 - math.sqrt(progress)
    return (1 + math.cos(math.pi * progress)) / 2
