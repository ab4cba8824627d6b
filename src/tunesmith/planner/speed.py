"""Seconds per step: multiplications, values moved, operations started, weights updated, each at its own rate.

The rates are rough: those of a CPU from timings on a shared two-core machine, those of GPUs assumed from data sheets. After
the first training in a workspace its measured times correct them (planner/learned.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.planner import activations, disk
from tunesmith.planner.figures import Figure
from tunesmith.planner.hardware import Hardware
from tunesmith.planner.learned import Learned
from tunesmith.planner.memory import Job
from tunesmith.recipe import Recipe

# Chosen, not measured: the rates below were never held against a quiet machine, and none was measured on a GPU.
BAND = 2.5  # before any training was timed on this machine
LEARNED_BAND = 1.5  # afterwards


@dataclass(frozen=True)
class Rates:
    """Of one core or one GPU. flops: multiplications and additions of fp32 or bf16 matrices per second. values: fp32
    values per second through operations that only move or map them. start_s: seconds to start one operation.
    returned_s: seconds per value more where freed memory is returned. updates: weights per second in the optimizer.
    """

    flops: float
    values: float
    start_s: float
    returned_s: float
    updates: float


CPU_CORE = Rates(60e9, 0.8e9, 10e-6, 1e-9, 0.5e9)
GPU_SHARE_OF_PEAK = 0.4
GPU_PEAK = {9.0: 790e12, 8.9: 150e12, 8.6: 70e12, 8.0: 290e12}  # bf16 matrix multiply, assumed
GPU_VALUES, GPU_START_S = 400e9, 8e-6
THREAD_EXPONENT = 0.85  # of the gain by more threads
LOGIT_PASSES = 6  # over the logits, forward and backward
OPERATIONS = 90  # of a block, forward and backward, without adapters
OPERATIONS_OF_ADAPTER = 16  # of each adapted layer


@dataclass(frozen=True)
class Work:
    """Of a step or of a validation; see Rates."""

    flops: float
    values: float
    starts: float
    returned: float
    updates: float

    def seconds(self, rates: Rates) -> float:
        return (
            self.flops / rates.flops
            + self.values / rates.values
            + self.starts * rates.start_s
            + self.returned * rates.returned_s
            + self.updates / rates.updates
        )


def machine(hardware: Hardware, threads: int, precision: str) -> str:
    """By what name a workspace remembers how fast this machine was."""
    name = hardware.gpus[0].name if hardware.gpus else f"{hardware.cpu or 'CPU'} x {threads} threads"
    return f"{name}, {precision}"


def basis(learned: Learned, machine: str) -> str:
    """Where the times come from, in a sentence."""
    if learned.runs:
        count = f"{learned.runs} training{'s' * (learned.runs > 1)}"
        return f"times are {learned.factor:.2f} of the planner's own, as {count} on {machine} told"
    return f"times are rough until a training in this workspace has told how fast {machine} is"


def threads_of(spec: Recipe, hardware: Hardware) -> int:
    """CPU threads of one training process, as the train stage takes them."""
    asked = spec.train.threads
    return asked if asked != "auto" else max(1, hardware.cores // spec.train.processes)


def figures(
    spec: Recipe,
    statistics: Mapping[str, Any],
    hardware: Hardware,
    job: Job,
    learned: Learned,
) -> dict[str, Figure]:
    """steps, seconds of one, seconds of all with validations."""
    steps = disk.num_steps(spec, statistics)
    assert steps is not None
    rates = rates_of(hardware, threads_of(spec, hardware), spec.train.processes)
    train, validation = statistics["splits"]["train"], statistics["splits"].get("validation", {})
    step = step_work(job, spec.train.batch_size, train).seconds(rates) * learned.factor
    validate = validation_work(job, validation).seconds(rates) * learned.factor if validation.get("rows") else 0.0
    whole = step * steps + validate * disk.validations(spec, steps)
    band = LEARNED_BAND if learned.runs else BAND
    early = "fewer when early stopping ends it" if spec.train.early_stopping else ""
    return {
        "steps": Figure(steps, 1 if early else steps, steps, "steps", early),
        "step_seconds": Figure(step, step / band, step * band, "s"),
        "train_seconds": Figure(whole, whole / band, whole * band, "s", "steps and validations"),
    }


def rates_of(hardware: Hardware, threads: int, processes: int) -> Rates:
    """Of the whole machine."""
    if hardware.gpus:
        share = min(processes, len(hardware.gpus))
        peak = GPU_PEAK.get(hardware.gpus[0].capability, 100e12) * GPU_SHARE_OF_PEAK
        return Rates(peak * share, GPU_VALUES * share, GPU_START_S / share, 0.0, GPU_VALUES / 6 * share)
    cores = min(threads * processes, hardware.cores)
    gain = cores**THREAD_EXPONENT
    core = CPU_CORE
    return Rates(
        core.flops * gain, core.values * gain, core.start_s / processes, core.returned_s / gain, core.updates * gain
    )


def step_work(job: Job, batch_size: int, train: Mapping[str, Any]) -> Work:
    """The work of a step over all processes. train: examples, tokens and learned_tokens of the split."""
    step, shape = job.step, job.step.shape
    mean = train["tokens"] / max(1, disk.num_examples(train))
    tokens = mean * batch_size
    learned = tokens * train["learned_tokens"] / max(1, train["tokens"])
    again = 1 if step.recompute else 0
    linear, head = shape.linear_parameters, shape.embedding_parameters
    backward = 2 if not step.is_lora else 1
    flops = 2 * linear * tokens * (1 + backward + again) + 2 * head * learned * (1 + backward)
    flops += 6 * job.trainable * tokens * (1 + again / 3) if step.is_lora else 0
    span = mean / 2 if step.attention == "fused" else mean  # a causal kernel leaves the upper half out
    flops += 4 * tokens * span * shape.q_width * shape.num_layers * (3.5 + again)
    values = tokens * shape.num_layers * activations.block(step) / step.width * (1 + again / 3)
    values += learned * shape.vocabulary * LOGIT_PASSES
    micro_batches = max(1.0, tokens / step.num_tokens)
    operations = OPERATIONS * (1 + again / 3) + OPERATIONS_OF_ADAPTER * step.num_adapters
    starts = micro_batches * shape.num_layers * operations
    return Work(flops, values, starts, values if step.recompute else 0.0, job.trainable)


def validation_work(job: Job, validation: Mapping[str, Any]) -> Work:
    """The work of going over all validation rows once, forward only."""
    shape, tokens, learned = job.step.shape, validation["tokens"], validation["learned_tokens"]
    flops = 2 * shape.linear_parameters * tokens + 2 * shape.embedding_parameters * learned
    flops += 2 * job.trainable * tokens if job.step.is_lora else 0
    values = tokens * shape.num_layers * activations.block(job.step) / job.step.width / 3
    values += learned * shape.vocabulary * LOGIT_PASSES / 3
    starts = max(1.0, tokens / job.step.num_tokens) * shape.num_layers * OPERATIONS / 3
    return Work(flops, values, starts, 0.0, 0.0)
