"""What ends training before its last step: updates that are not finite, and validation that no longer improves."""

from __future__ import annotations

import math

from tunesmith.errors import ModelError
from tunesmith.recipe.tree import EarlyStopping
from tunesmith.stages.train.checkpoint import TrainState

MAX_SKIPPED_IN_A_ROW = 3


def note_non_finite(state: TrainState, step: int, rows: list[int]) -> None:
    """Remember a step whose update was withheld. Raises ModelError TRN-002 after several in a row."""
    state.skipped.append(step)
    last = state.skipped[-MAX_SKIPPED_IN_A_ROW:]
    if last == list(range(step - MAX_SKIPPED_IN_A_ROW + 1, step + 1)):
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise ModelError(
            "TRN-002",
            f"loss or gradients were not finite in steps {last[0]} to {step}; none of them changed a weight",
            where=f"rows {', '.join(map(str, rows[:8]))}{more}",
            expected="finite gradients",
            fix="lower train.learning_rate, or look at these rows: tunesmith explain ROW --run latest",
        )


def note_validation(state: TrainState, loss: float, early_stopping: EarlyStopping | None) -> bool:
    """Update best and patience after a validation. True when this one is the best so far; a NaN never is.

    Patience counts from the last loss that was better by more than min_delta, so that a slow drift runs out as well.
    """
    state.validated_step = state.step
    state.validations.append([state.step, loss if math.isfinite(loss) else None])
    is_best = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
    if is_best:
        state.best_loss, state.best_step = loss, state.step
    min_delta = early_stopping.min_delta if early_stopping else 0.0
    if math.isfinite(loss) and (state.patience_loss is None or loss < state.patience_loss - min_delta):
        state.patience_loss, state.evaluations_without_gain = loss, 0
    else:
        state.evaluations_without_gain += 1
    if early_stopping and state.evaluations_without_gain >= early_stopping.patience:
        state.stopped_early = True
    return is_best
