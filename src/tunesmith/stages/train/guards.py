"""What ends training before its last step, and which weights are the best: by what validations show."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.tree import Plateau, Train
from tunesmith.stages.train.checkpoint import TrainState
from tunesmith.stages.train.engines import LocalEngine, ReplicaEngine
from tunesmith.stages.train.schedule import note_plateau

MAX_SKIPPED_IN_A_ROW = 3
LOWER_IS_BETTER = ("loss", "perplexity")  # of all other metrics, higher


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


def note_validation(state: TrainState, found: Mapping[str, float], train: Train) -> bool:
    """Update best weights, patience and plateau after a validation. True when these weights are the best so far.

    found: value of each metric, "loss" among them. A NaN is never a gain. Patience counts from the last value that was
    better by more than min_delta, so that a slow drift runs out as well.
    """
    state.validated_step = state.step
    loss = found["loss"]
    state.validations.append([state.step, loss if math.isfinite(loss) else None])
    value = found[train.best_metric]
    is_best = _gains(train.best_metric, value, state.best_value)
    if is_best:
        state.best_value, state.best_loss, state.best_step = value, found["loss"], state.step
    stopping = train.early_stopping
    metric = train.best_metric if stopping is None or stopping.metric == "auto" else stopping.metric
    if _gains(metric, found[metric], state.patience_value, by=stopping.min_delta if stopping else 0.0):
        state.patience_value, state.evaluations_without_gain = found[metric], 0
    else:
        state.evaluations_without_gain += 1
    if stopping and state.evaluations_without_gain >= stopping.patience:
        state.stopped_by = state.stopped_by or "train.early_stopping"
    if isinstance(train.schedule, Plateau):
        state.plateau = note_plateau(state.plateau, train.schedule, value, train.best_metric not in LOWER_IS_BETTER)
    return is_best


def require_whole_model(engine: LocalEngine, what: str) -> None:
    """Raises RecipeError TRN-056 where a process holds a part of the model only. Proven for these two engines, so they are named."""
    if type(engine) not in (LocalEngine, ReplicaEngine):
        raise RecipeError(
            "TRN-056",
            f"{what} needs the whole model in each process, and {type(engine).__name__} holds a part of it",
            where="train",
            expected="one process, or several with the whole model each",
            fix="train.best_metric: loss, no train.validation.metrics, train.gradient_noise: off; evaluation measures answers after training",
        )


def _gains(metric: str, value: float, best: float | None, by: float = 0.0) -> bool:
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - by if metric in LOWER_IS_BETTER else value > best + by
