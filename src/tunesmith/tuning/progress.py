"""What a person reads while the search runs: a line when a trial begins, now and then while it trains, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunesmith.tuning.space import values_of
from tunesmith.tuning.study import Study, Trial
from tunesmith.units import format_seconds

if TYPE_CHECKING:
    from tunesmith.tuning.search import Search

EVERY_S = 5.0


class Progress:
    """workers: of this command. deadline: of time.monotonic(). say: takes a line; None for silence."""

    def __init__(self, workers: int, deadline: float | None, say: Callable[[str], None] | None) -> None:
        self.workers, self.deadline = workers, deadline
        self.say: Callable[[str], None] = say or (lambda line: None)
        self._last = 0.0

    def began(self, trial: Trial, search: Search, study: Study) -> None:
        again = f", going on from step {trial.get('steps')}" if trial.get("steps") else ""
        values = show_values(values_of(search.space, trial.drawn))
        self.say(f"trial {self._place(trial, study)}  {values}{again}")

    def validated(self, trial: Trial, step: int, num_steps: int, loss: float, seconds: float, study: Study) -> None:
        if time.monotonic() - self._last < EVERY_S or step >= num_steps:
            return
        self._last = time.monotonic()
        left = self._left(study, seconds / step * (num_steps - step))
        self.say(
            f"trial {self._place(trial, study)}  step {step}/{num_steps}  validation loss {loss:.4f}  "
            f"{self._best(study)}{left}"
        )

    def ended(self, trial: Trial, study: Study) -> None:
        words = {
            "complete": f"{study.objective.words} {trial.value or 0.0:.4f}{', reused' if trial.get('reused') else ''}",
            "pruned": f"given up at step {trial.get('steps')}/{trial.get('num_steps')}: {trial.get('why')}",
            "failed": f"failed: {trial.get('why')}",
        }.get(trial.state, trial.state)
        self.say(f"trial {self._place(trial, study)}  {words};  {self._best(study)}{self._left(study, 0.0)}")

    def stopped(self, trial: Trial, step: int, what_next: str) -> None:
        self.say(f"trial {trial.number}  stopped and saved at step {step}: {what_next}")

    def _place(self, trial: Trial, study: Study) -> str:
        budget = study.spec.tune.trials
        return f"{trial.number}" if budget is None else f"{trial.number} ({num_ended(study)} of {budget} done)"

    def _best(self, study: Study) -> str:
        best = study.best()
        return f"best so far {best.value:.4f} (trial {best.number})" if best else "none complete so far"

    def _left(self, study: Study, of_this_one: float) -> str:
        """By the mean time of the trials that have ended; the deadline where that is nearer."""
        ended = [trial for trial in study.trials() if trial.state in ("complete", "pruned") and trial.get("seconds")]
        estimates = []
        if ended and study.spec.tune.trials is not None:
            mean = sum(trial.get("seconds") for trial in ended) / len(ended)
            to_begin = study.spec.tune.trials - num_ended(study) - (1 if of_this_one else 0)
            estimates.append(of_this_one + max(0, to_begin) * mean / self.workers)
        if self.deadline is not None:
            estimates.append(max(0.0, self.deadline - time.monotonic()))
        return f"  about {format_seconds(min(estimates))} left" if estimates and min(estimates) > 0 else ""


def num_ended(study: Study) -> int:
    """Trials of the budget that have come to an end, whichever."""
    return sum(trial.counts and trial.state in ("complete", "pruned", "failed") for trial in study.trials())


def show_values(values: dict[str, object]) -> str:
    return "  ".join(f"{key}={show_value(value)}" for key, value in values.items())


def show_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
