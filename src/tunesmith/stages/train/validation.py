"""What a validation measures: loss over all rows, and answers to some items where a metric asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
from torch import nn

from tunesmith.errors import DataError
from tunesmith.hub import ModelFiles
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import VALIDATION_PART, load_held_out
from tunesmith.scoring.metrics import load_metric, score
from tunesmith.stages.train.batches import share
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.guards import LOWER_IS_BETTER
from tunesmith.text.tokenizers import load_tokenizer


def answer_metrics(spec: Recipe) -> list[str]:
    """Names of the metrics that need answers: those asked for, and those that decide something."""
    train = spec.train
    stopping = train.early_stopping.metric if train.early_stopping else "auto"
    named = [*train.validation.metrics, train.best_metric, *([] if stopping == "auto" else [stopping])]
    return [name for name in dict.fromkeys(named) if name not in LOWER_IS_BETTER]


class Answers:
    """Greedy answers of the model in training to some validation items, scored.

    Raises DataError TRN-055 when there is no item to answer, and what scoring.metrics.load_metric raises.
    """

    def __init__(self, spec: Recipe, files: ModelFiles, dataset: Dataset, allowed_code: Mapping[str, str]) -> None:
        self.settings = spec.train.validation
        names = answer_metrics(spec)
        self.metrics = {name: load_metric(name, allowed_code) for name in names}
        rows = load_held_out(dataset, self.settings.max_items, [VALIDATION_PART]) if names else []
        self.items = [row.item for row in rows if row.item is not None]
        if names and not self.items:
            raise DataError(
                "TRN-055",
                f"{', '.join(names)} needs answers to validation items, and no validation row is a chat with an answer",
                where="train.best_metric",
                expected="validation rows with a prompt and an answer",
                fix="data.split: {validation: 0.1}, a source with `split: validation`, or train.best_metric: loss",
            )
        self.tokenizer = load_tokenizer(files, spec.model.template) if names else None
        self.lengths = np.array([len(item.prompt_ids) for item in self.items], np.int64)

    def __bool__(self) -> bool:
        return bool(self.metrics)

    def scores(
        self,
        model: nn.Module,
        engine: LocalEngine,
        number_format: Callable[[], AbstractContextManager[object]],
        on_batch: Callable[[], None],
    ) -> dict[str, float]:
        """Mean of each metric over the items, divided over the processes. on_batch: called after each batch of answers."""
        if self.tokenizer is None:
            return {}
        places = share(list(range(len(self.items))), self.lengths, engine.rank, engine.world_size)
        mine = [self.items[place] for place in places]
        was_training = model.training
        model.eval()
        try:
            with number_format():
                answers = generate_greedy(
                    model,
                    self.tokenizer,
                    mine,
                    max_new_tokens=self.settings.max_new_tokens,
                    batch_size=self.settings.batch_size,
                    on_progress=lambda done, total: on_batch(),
                )
        finally:
            model.train(was_training)
        sums = [
            sum(score(metric, item.expected, answer.text, item) for item, answer in zip(mine, answers, strict=True))
            for metric in self.metrics.values()
        ]
        return {name: total / len(self.items) for name, total in zip(self.metrics, engine.total(*sums), strict=True)}
