"""Peak memory by part: what lives at each moment of training that can be the highest, added up from the operations.

On the CPU the figure is the growth of the training process after its imports, on a GPU what torch reserves. Sizes of
tensors are exact (planner/activations.py); the few constants below are fitted on the calibration half of
benchmarks/planner.py and judged on its other half. Nothing was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tunesmith.planner import activations
from tunesmith.planner.activations import Pass
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import DeepSpeed, Fsdp, Optimizer
from tunesmith.units import MIB

CPU_FIXED = 35 * MIB  # fitted: code pages first touched in a step, kernels' buffers, threads
# Fitted, by (adapter, several micro-batches a step): glibc's heap does not give the place of one tensor to the next of the
# same size (seen with glibc 2.36), so that it grows beyond activations and logits by this share of them; most where small
# gradients come to lie in between. Not with recomputation: there the train stage has freed memory returned.
HEAP_SLACK = {(True, True): 1.26, (True, False): 0.78, (False, True): 0.58, (False, False): 0.3}
LEFT_SLACK = 0.3  # fitted: of the same, what the heap still holds when a checkpoint is written
# Shares below and above. A heap that keeps what is freed grows on for a while: by a tenth over 60 steps of mixed lengths.
CPU_BAND, CPU_KEPT_BAND, GPU_BAND = (0.2, 0.2), (0.2, 0.3), (0.4, 0.4)
STATE_WIDTH = {
    "adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "lion": 4.0, "lion_8bit": 1 + 4 / 256,
    "adafactor": 0.0,  # a row and a column per matrix
}  # fmt: skip
GPU_FIXED = 200 * MIB  # assumed: cuBLAS and attention workspaces
GPU_SLACK = 0.08  # assumed: the caching allocator's rounding and holes


@dataclass(frozen=True)
class Parts:
    """Bytes of each part at one moment.

    passing: casts of weights, and gradients on their way to be added or summed. saving: copies that a checkpoint is
    written from. data: token ids, mapped. allocator: held by it, not used.
    """

    weights: float = 0.0
    adapter: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    passing: float = 0.0
    saving: float = 0.0
    data: float = 0.0
    allocator: float = 0.0
    workspace: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Job:
    """A training. weights: bytes of all that is not an adapter. trainable: weights that get gradients. state_width: bytes
    that the optimizer keeps for each.

    processes: that work on each step. accumulates: a step has several micro-batches, so that gradients are there while
    the next one goes forward. data_bytes: the mapped token ids. on_cpu: else on one GPU. shards: over how many processes
    weights, gradients and optimizer state are divided. chunk: learned positions whose logits exist at once; None: all.
    """

    step: Pass
    weights: float
    trainable: int
    state_width: float
    processes: int
    accumulates: bool
    data_bytes: float
    on_cpu: bool
    shards: tuple[int, int, int] = (1, 1, 1)
    chunk: int | None = None


def peak(job: Job) -> tuple[str, Parts]:
    """The highest moment, by name, and what lives then."""
    moments = _moments(job)
    name = max(moments, key=lambda moment: moments[moment].total)
    return name, moments[name]


def band(job: Job) -> tuple[float, float]:
    """By what shares the peak may be lower and higher; twice as wide for architectures that were not counted."""
    if not job.on_cpu:
        below, above = GPU_BAND
    else:
        below, above = CPU_BAND if job.step.recompute else CPU_KEPT_BAND
    width = 1 if job.step.shape.is_known else 2
    return below * width, above * width


def _moments(job: Job) -> dict[str, Parts]:
    step, shape = job.step, job.step.shape
    saved = activations.saved(step)
    gradients = job.trainable * 4.0
    there = gradients if job.accumulates else 0.0
    # The gradient of the output layer: a tensor of its own until it is added, tied ones until the embedding's comes in.
    head = 0.0 if step.is_lora else shape.embedding_parameters * 4.0
    waiting = head if shape.is_tied or not job.accumulates else 0.0
    last = head * (2 if shape.is_tied else 1)
    # Plain data parallelism sums gradients laid end to end, in a tensor of its own.
    laid_out = gradients if job.processes > 1 and job.shards == (1, 1, 1) else 0.0
    logits, left = _logits(job)
    at_loss = head if job.chunk else 0.0  # a chunked loss makes the output layer's gradient on its way
    moments = {
        "loss": _living(job, there, saved, logits, passing=at_loss),
        "output layer": _living(job, there, saved, left, passing=head),
        "last block": _living(job, there, saved + activations.way_back(step), 0.0, passing=waiting),
        "embedding": _living(job, max(there, gradients - head), 0.0, 0.0, passing=last),
        "update": _living(job, gradients, 0.0, 0.0, passing=laid_out),
    }
    if job.on_cpu:  # a GPU's tensors are copied to the host's memory, which is not counted
        copies = job.trainable * (4.0 + job.state_width) + head  # head: the test for NaN copies the largest tensor
        held = 0.0 if step.recompute else LEFT_SLACK * (saved + logits)
        moments["checkpoint"] = replace(_living(job, 0.0, 0.0, 0.0), passing=0.0, saving=copies, allocator=held)
    return moments


def _logits(job: Job) -> tuple[float, float]:
    """Bytes of logits and what is made of them while the loss is made, and of what is left of them on the way back.

    By chunks: those of one chunk in the number format of the output layer, their softmax in fp32; hidden states at the
    learned positions and their gradient, which stays (full training has counted one of the two). Else log-softmax and two
    gradients of all, fp32.
    """
    step, vocabulary = job.step, job.step.shape.vocabulary
    if job.chunk is None:
        logit = step.learned * vocabulary * 4.0
        return 3 * logit + _whole_logits(step), logit + _whole_logits(step)
    picked = step.learned * step.shape.hidden * float(step.width)
    counted = 0.0 if step.is_lora else picked
    at_once = min(step.learned, job.chunk) * vocabulary * (4.0 + step.width)
    return at_once + 2 * picked - counted, picked - counted


def _living(job: Job, gradients: float, activations: float, logits: float, passing: float = 0.0) -> Parts:
    """All parts, with what never goes away. Of weights in shards one block is whole while it is at work."""
    step = job.step
    of_weights, of_gradients, of_state = job.shards
    at_work = job.weights / max(1, step.shape.num_layers) if of_weights > 1 else 0.0
    moving = activations + logits
    if job.on_cpu:
        share = 0.0 if step.recompute else HEAP_SLACK[step.is_lora, job.accumulates]
        slack, fixed = share * moving, CPU_FIXED
    else:
        slack, fixed = GPU_SLACK * (moving + gradients), GPU_FIXED
    return Parts(
        weights=job.weights / of_weights + at_work,
        adapter=job.trainable * 4.0 / of_weights if step.is_lora else 0.0,
        gradients=gradients / of_gradients,
        optimizer=job.trainable * job.state_width / of_state,
        activations=activations,
        logits=logits,
        passing=passing + _casts(job),
        data=job.data_bytes if job.on_cpu else 0.0,
        allocator=slack,
        workspace=fixed,
    )


def _casts(job: Job) -> float:
    """What is trained in fp32 is cast for use where less is computed in, and the casts stay until the way back. Engines
    that divide weights or state keep copies of their own, of which a block's is counted."""
    step = job.step
    if step.precision == "fp32":
        return 0.0
    if step.is_lora:
        return 2.0 * job.trainable
    if job.shards != (1, 1, 1):
        return 0.0
    return 2.0 * (step.shape.linear_parameters + step.shape.embedding_parameters)


def _whole_logits(step: Pass) -> float:
    """A model whose logits are more than an output layer makes them at every position: with their gradient, twice."""
    if step.shape.family.has_plain_head:
        return 0.0
    return 2.0 * step.num_tokens * step.shape.vocabulary * step.width


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


def chunk(spec: Recipe, shape: Shape, *, on_cpu: bool) -> int | None:
    """Learned positions whose logits exist at once, as stages/train/objectives.py has it; None where all of them do."""
    adapted = isinstance(spec.adapter, Lora) and "lm_head" in spec.adapter.targets
    whole = isinstance(spec.train.engine, (Fsdp, DeepSpeed)) or adapted or not shape.family.has_plain_head
    return None if whole else activations.loss_chunk(shape.vocabulary, on_cpu=on_cpu)


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
