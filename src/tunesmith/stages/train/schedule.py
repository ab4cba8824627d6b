"""The learning rate of each step: a function of the step alone."""

from __future__ import annotations

import math

from tunesmith.recipe.tree import Schedule


def rate_factor(schedule: Schedule, step: int, num_steps: int) -> float:
    """Share of the peak rate at `step` (from 1 to num_steps), in 0..1."""
    warmup = round(schedule.warmup * num_steps)
    if step <= warmup:
        return step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, num_steps - 1 - warmup)
    if schedule.type == "constant":
        return 1.0
    falling = 1 - progress if schedule.type == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * falling
