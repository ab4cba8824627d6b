"""Small trainings for tests: a Dataset of made-up ids, a Run around it, and the train stage called as the runner does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.recipe import Recipe, code_named, parse_recipe
from tunesmith.runs.dataset import Dataset, DatasetWriter
from tunesmith.runs.durable import hash_file
from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

RECIPE = "{name: small, data: {sources: rows.jsonl}}"
VOCABULARY = 256  # below that of the random tiny model


def fill_dataset(
    folder: Path, *, num_train: int = 24, num_validation: int = 6, bad_rows: int = 0, with_items: bool = True
) -> None:
    """Examples of 5 to 40 tokens with one to three learned spans of unequal weights; the second half repeats the first,
    so that there is something to learn. The last `bad_rows` training rows have a weight that no float32 sum survives."""
    draw = np.random.default_rng(0)
    writer = DatasetWriter(folder)
    items = []
    for row in range(num_train + num_validation):
        length = int(draw.integers(5, 41))
        ids = draw.integers(5, VOCABULARY, length).astype(np.int32)
        ids[length // 2 :] = ids[: length - length // 2]
        cut = (length // 2 + length) // 2
        spans = [[length // 2, cut, 1.0], [cut, length, float(draw.choice([0.5, 1.0, 2.0]))]]
        if row % 5 == 0:
            spans = [[0, 2, 1.0], *spans]  # begins at the first token, which nothing predicts
        writer.add(ids, spans, row, "train" if row < num_train else "validation")
        if row >= num_train:
            asked = {
                "part": "validation",
                "key": f"row {row}",
                "messages": [],
                "expected": "the fox",
                "prompt_ids": ids[: length // 2].tolist(),
            }
            items.append({"row": row, **asked})
    for row in range(num_train + num_validation, num_train + num_validation + bad_rows):
        writer.add(np.arange(10, 20, dtype=np.int32), [[5, 10, 3e38]], row, "train")
    writer.close(items=items if with_items else [])


@dataclass
class Small:
    """One training in a workspace of its own; `train` may be called again and goes on."""

    run: Run
    recipe: Recipe
    inputs: dict[str, Artifact]
    heard: list[Event] = field(default_factory=list)

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.inputs["dataset"].path)

    def train(self) -> Artifact:
        from tunesmith.stages.train.run import run as train

        return train(self.recipe, self.inputs, self.run)["model"]

    def allow(self) -> Small:
        """--allow-code for all that the recipe names."""
        self.run.allowed_code = {name: hash_file(Path(name.rpartition(":")[0])) for name in code_named(self.recipe)}
        return self

    def again(self) -> Small:
        """The same command once more, in another process, as far as the Run can tell."""
        run = Run.open_or_create(self.run.workspace, self.recipe)
        run.stage_key = self.run.stage_key
        return Small(run, self.recipe, self.inputs)

    def values(self, name: str) -> dict[int | None, Any]:
        return {event.step: event.value for event in self.run.events() if event.name == name}


def small_training(workspace: Path, model: Path, overrides: Sequence[str] = (), **dataset: Any) -> Small:
    """A training ready to start: full fine-tuning in fp32, batches of 5, one thread, unless overridden."""
    settings = [
        f"model.base={model}", "model.precision=fp32", "adapter={type: full}", "train.batch_size=5", "train.epochs=100",
        "train.max_steps=8", "train.learning_rate=1e-3", "train.threads=1", "train.micro_batch=2",
    ]  # fmt: skip
    recipe = parse_recipe(RECIPE, [*settings, *overrides])
    run = Run.open_or_create(workspace, recipe)
    run.stage_key = "abc"
    with run.store.create("Dataset", "d1", producer={}) as draft:
        fill_dataset(draft.path, **dataset)
    run.record("run", "run/started", "small")
    assert draft.artifact is not None
    return Small(run, recipe, {"dataset": draft.artifact})


LORA = "adapter={type: lora, rank: 4, targets: [q_proj, v_proj, down_proj]}"
LORA_DROPOUT = "adapter={type: lora, rank: 4, dropout: 0.1, targets: [q_proj, v_proj, down_proj]}"

# Validation improves for three steps and worsens afterwards: the rate rises until the end.
WORSENING = ("train.learning_rate=0.05", "train.schedule.warmup=1.0", "train.max_steps=12")
