"""What a trial is worth: the validation loss of its result, or a metric of its answers on validation rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.recipe.space import PERPLEXITY, VALIDATION_LOSS
from tunesmith.runs.run import Run


@dataclass(frozen=True)
class Objective:
    """metric: as the recipe names it. until: the last stage that a trial runs."""

    metric: str
    direction: Literal["minimize", "maximize"]
    until: Literal["train", "evaluate"]

    @classmethod
    def of(cls, spec: Recipe) -> Objective:
        metric, asked = spec.tune.metric, spec.tune.direction
        low_is_better = metric in (VALIDATION_LOSS, PERPLEXITY)
        direction = asked if asked != "auto" else "minimize" if low_is_better else "maximize"
        return cls(metric, direction, "train" if metric == VALIDATION_LOSS else "evaluate")

    @property
    def settings(self) -> dict[str, Any]:
        """What every trial's recipe is given: answers are asked on validation rows, so that the test stays unseen."""
        return {} if self.until == "train" else {"evaluate.split": "validation"}

    @property
    def words(self) -> str:
        """For people: validation_loss -> validation loss."""
        return self.metric.rpartition("/")[2].replace("_", " ")

    def value(self, run: Run) -> float:
        """Of a finished trial. Raises DataError TUN-004 where there is no finite value."""
        found = self._validation_loss(run) if self.until == "train" else self._score(run)
        if found is None or not math.isfinite(found):
            raise DataError(
                "TUN-004",
                f"the trial has no {self.words} ({found})",
                where=f"run {run.id}",
                expected="a number",
                fix="validation rows: data.split.validation above 0, or a source with `split: validation`",
            )
        return found

    def _validation_loss(self, run: Run) -> float | None:
        """Of the weights that became the result."""
        notes = (run.outputs("train") or {})["model"].notes
        losses = {step: loss for step, loss in notes.get("validations", ())}
        best = notes.get("best_loss") if notes.get("best_step") == notes.get("result_step") else None
        return losses.get(notes.get("result_step"), best)

    def _score(self, run: Run) -> float | None:
        folder = (run.outputs("evaluate") or {})["evaluation"].path
        evaluation = json.loads((folder / "evaluation.json").read_bytes())
        metrics = evaluation["parts"].get("validation", {"metrics": {}})["metrics"]
        name = next((name for name in metrics if self.metric.endswith(name)), None)
        return metrics[name]["tuned"]["value"] if name else None


def curve_of(run: Run) -> tuple[list[tuple[int, float]], int]:
    """Validations of a finished training, (step, loss), and the steps it was to have; from the artifact, so of a reused
    one as well."""
    notes = (run.outputs("train") or {})["model"].notes
    losses = [(int(step), math.inf if loss is None else float(loss)) for step, loss in notes.get("validations", ())]
    return losses, int(notes.get("planned_steps") or notes.get("steps") or 1)
