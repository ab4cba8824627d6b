"""Peak memory by part, for one micro-batch of the longest rows.

On the CPU the figure is the growth of the training process after its imports. Constants marked "fitted" come
from least squares over ten of the thirteen configurations of benchmarks/results/planner.json, rounded: the two LoRA ones with
recomputation and the qwen3 one were left out of the fit because it could not explain them. All thirteen are in the file, and
there 10 of 13 lie inside the band; it was measured on the same configurations it was fitted to. GPU figures are unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import DeepSpeed, Fsdp, Optimizer
from tunesmith.units import MIB

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_WIDTH = {
    "adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "lion": 4.0, "lion_8bit": 1 + 4 / 256,
    "adafactor": 0.0,  # a row and a column per matrix
}  # fmt: skip
CPU_FIXED = 81 * MIB  # fitted: thread pools, kernels, the allocator's own books
ACTIVATION_FACTOR = 1.1  # fitted: what a block saves beyond the tensors counted below
CPU_BAND, GPU_BAND = 0.35, 0.4
LOGIT_COPIES = 6.0  # fitted; logits in fp32, their log-softmax and its gradient


@dataclass(frozen=True)
class Parts:
    """Bytes of each part at the peak of a step."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float

    @property
    def total(self) -> float:
        return sum(self.__dict__.values())


def peak(
    spec: Recipe,
    shape: Shape,
    *,
    precision: str,
    micro_batch: int,
    num_tokens: int,
    learned_tokens: int,
    checkpointing: bool,
    on_cpu: bool,
) -> Parts:
    """num_tokens: of the longest row; learned_tokens: of them, the most that are learned."""
    width = WIDTH[precision]
    is_lora = isinstance(spec.adapter, Lora)
    trainable = shape.trainable(spec)
    tokens = micro_batch * num_tokens
    layer = tokens * _layer_values(shape, is_lora) * width * ACTIVATION_FACTOR
    if checkpointing:
        activations = tokens * shape.hidden * width * shape.num_layers + layer
    else:
        activations = layer * shape.num_layers
    of_weights, of_gradients, of_state = shards(spec)
    weights = weight_bytes(spec, shape, width)
    # Of weights in shards one block is whole while it is at work.
    at_work = weights / max(1, shape.num_layers) if of_weights > 1 else 0.0
    return Parts(
        weights=weights / of_weights + at_work,
        adapter=trainable * 4 / of_weights if is_lora else 0.0,
        gradients=trainable * 4 / of_gradients,
        optimizer=trainable * state_width(spec.train.optimizer) / of_state,
        activations=activations,
        logits=micro_batch * learned_tokens * shape.vocabulary * 4 * LOGIT_COPIES,
        workspace=CPU_FIXED if on_cpu else 600 * MIB,
    )


def weight_bytes(spec: Recipe, shape: Shape, width: int) -> float:
    """The base's weights as they lie in memory; a quantised base keeps embeddings, norms and head in `width` bytes each.

    One layer's weights in full format are there besides, while it multiplies: for a quantised base they count here.
    """
    quantisation = spec.model.quantisation
    if quantisation.type == "none":
        return shape.parameters * (width if isinstance(spec.adapter, Lora) else 4)
    if quantisation.type == "int8":
        bits = 8 + 32 / shape.hidden  # a row's fp32 scale; rows of the down projection are longer
    else:  # a scale per 64 weights: fp32, or 8 bits with an fp32 scale per 256 of them (arXiv 2305.14314, section 3)
        bits = 4 + (8 / 64 + 32 / (64 * 256) if quantisation.double_quantisation else 32 / 64)
    unpacked = max(shape.feed_forward, shape.q_width) * shape.hidden * width
    return shape.linear_parameters * bits / 8 + (shape.parameters - shape.linear_parameters) * width + unpacked


def state_width(optimizer: Optimizer) -> float:
    """Bytes of optimizer state per trained weight. 8-bit states carry an fp32 scale for each block of 256."""
    if optimizer.type == "sgd":
        return 4.0 if optimizer.momentum else 0.0
    return STATE_WIDTH[optimizer.type]


def shards(spec: Recipe) -> tuple[int, int, int]:
    """Over how many processes weights, gradients and optimizer state are divided.

    Copies that DeepSpeed keeps besides (fp32 weights of bf16 ones, buckets) are not counted.
    """
    engine, processes = spec.train.engine, spec.train.processes
    if isinstance(engine, Fsdp):
        return processes, processes, processes
    if isinstance(engine, DeepSpeed):
        # A file may say 3: the plan refuses nothing that may fit.
        stage = engine.zero_stage if engine.zero_stage != "auto" else 3 if engine.config else 2
        return processes if stage == 3 else 1, processes if stage >= 2 else 1, processes
    return 1, 1, 1


def _layer_values(shape: Shape, is_lora: bool) -> float:
    """Numbers per token that one block keeps for the way back.

    Two norms keep their input and its scaled copy (4 D); attention its input, q, k, v, the rotated q and k, its output
    (D + 3 Q + 3 KV); the feed-forward its input, gate, its activation, up and their product (D + 4 F). Weights that are
    trained keep their inputs as well, which are these tensors.
    """
    values = 6 * shape.hidden + 3 * shape.q_width + 3 * shape.kv_width + 4 * shape.feed_forward
    return values + (shape.q_width + shape.kv_width if is_lora else 0)
