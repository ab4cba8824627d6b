"""What stops training: losses that are not finite, no more improvement, a signal."""

from __future__ import annotations

from tunesmith.errors import ModelError
from tunesmith.recipe.tree import EarlyStopping
from tunesmith.stages.train.checkpoint import TrainState

MAX_SKIPPED_IN_A_ROW = 3


def note_non_finite(state: TrainState, step: int, rows: list[int]) -> None:
    """Remember a step whose update was withheld. Raises ModelError TRN-002 after several in a row."""
    state.skipped.append(step)
    last = state.skipped[-MAX_SKIPPED_IN_A_ROW:]
    if last == list(range(step - MAX_SKIPPED_IN_A_ROW + 1, step + 1)):
        raise ModelError(
            "TRN-002",
            f"gradients were not finite in steps {last[0]} to {step}; no weight was changed by them",
            where=f"rows {', '.join(map(str, rows[:8]))}",
            expected="finite gradients",
            fix="lower train.learning_rate, or look at these rows: tunesmith explain ROW --run latest",
        )


def note_validation(state: TrainState, loss: float, early_stopping: EarlyStopping | None) -> bool:
    """Update best and patience after a validation. True when this one is the best so far."""
    min_delta = early_stopping.min_delta if early_stopping else 0.0
    if state.best_loss is None or loss < state.best_loss - min_delta:
        state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
        return True
    state.evaluations_without_gain += 1
    if early_stopping and state.evaluations_without_gain >= early_stopping.patience:
        state.stopped_early = True
    return False
