"""What a run leaves on the disk: checkpoints, the result, exports. Rows, tokens and the base model's download apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.planner.activations import WIDTH
from tunesmith.planner.figures import Figure
from tunesmith.planner.memory import state_width
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe

# Per entry of the vocabulary: tokenizer.json of Llama 3 (128 k) has about 9 MB, of Qwen 2.5 (152 k) about 7 MB.
TOKENIZER_BYTES = 90
SMALL_FILES = 0.3e6  # configs, cards, manifests, report, events
TENSOR_HEADER = 150  # bytes that safetensors writes beside a tensor's values, its optimizer's step count included
VALIDATIONS_PER_RUN = 10  # of evaluate_every: auto


def figures(spec: Recipe, shape: Shape, precision: str, statistics: Mapping[str, Any] | None) -> dict[str, Figure]:
    """disk: the most at once, while a checkpoint is written. disk_left: when the run has ended. checkpoint: one of them.

    Bounds are the cases of the best checkpoint being one of the newest or an older one; and 5 % for what is not counted.
    """
    one = _checkpoint(spec, shape)
    saves = _saves(spec, num_steps(spec, statistics))
    least = min(spec.train.keep_checkpoints, saves)
    most = min(least + _keeps_best(spec, statistics), saves)
    other = _result_and_exports(spec, shape, precision)
    being_written = one if saves > least else 0.0
    left = _between(least * one + other, most * one + other, "checkpoints, result, exports; data apart")
    at_once = _between(
        least * one + max(being_written, other), most * one + being_written + other, "the most at once; data apart"
    )
    return {"disk": at_once, "disk_left": left, "checkpoint": Figure(one, one * 0.95, one * 1.05, "bytes")}


def _keeps_best(spec: Recipe, statistics: Mapping[str, Any] | None) -> bool:
    """Only validation says which checkpoint is the best."""
    validated = statistics is None or statistics["splits"].get("validation", {}).get("rows", 0) > 0
    return spec.train.keep == "best" and validated


def num_steps(spec: Recipe, statistics: Mapping[str, Any] | None) -> int | None:
    """Steps of the training; None before the rows were counted, unless the recipe says it."""
    if statistics is None:
        return spec.train.max_steps
    examples = num_examples(statistics["splits"]["train"])
    steps = math.ceil(max(1, round(spec.train.epochs * examples)) / spec.train.batch_size)
    return min(steps, spec.train.max_steps or steps)


def num_examples(split: Mapping[str, Any]) -> int:
    """What an epoch goes over: rows as often as they come, in their pieces. Older Datasets count rows alone."""
    return split.get("examples", split["rows"])


def validations(spec: Recipe, steps: int) -> int:
    every = spec.train.evaluate_every
    every = max(1, steps // VALIDATIONS_PER_RUN) if every == "auto" else every
    return steps // every + (steps % every > 0)


def _saves(spec: Recipe, steps: int | None) -> float:
    """Checkpoints that a training writes."""
    if steps is None:
        return math.inf
    every = spec.train.save_every
    if every == "auto":
        return validations(spec, steps)
    return steps // every + (steps % every > 0)


def _checkpoint(spec: Recipe, shape: Shape) -> float:
    width = 4.0 + state_width(spec.train.optimizer)
    tensors = len(spec.adapter.targets) * 2 if isinstance(spec.adapter, Lora) else 9
    return shape.trainable(spec) * width + shape.num_layers * tensors * TENSOR_HEADER * width / 4


def _result_and_exports(spec: Recipe, shape: Shape, precision: str) -> float:
    trained = shape.trainable(spec) * 4.0
    tokenizer = shape.vocabulary * TOKENIZER_BYTES
    is_lora = isinstance(spec.adapter, Lora)
    result = trained + (0 if is_lora else tokenizer)
    width = WIDTH[precision if spec.export.dtype == "auto" else spec.export.dtype]
    merged = shape.parameters * width + tokenizer if spec.export.merged else 0.0
    adapter = trained + tokenizer if is_lora and spec.export.adapter else 0.0
    return result + merged + adapter + SMALL_FILES


def _between(low: float, high: float, note: str) -> Figure:
    return Figure((low + high) / 2, (low - SMALL_FILES) * 0.95, high * 1.05, "bytes", note)
