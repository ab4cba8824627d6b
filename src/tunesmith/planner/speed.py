"""Seconds per step from floating-point operations. Before anything was measured on a machine the band is wide."""

from __future__ import annotations

from tunesmith.planner.hardware import Hardware
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe

# CPU: from benchmarks/results/planner.json (one thread, fp32), whose predictions at 20e9 were 2.1 to 3.6 times the measured
# time, that is 43 to 72 GFLOP/s; not measured again with this value. GPU: assumptions from data sheets, unmeasured.
CPU_FLOPS_PER_CORE = 50e9
GPU_SHARE_OF_PEAK = 0.4
GPU_PEAK = {9.0: 790e12, 8.9: 150e12, 8.6: 70e12, 8.0: 290e12}  # bf16 matrix multiply, assumed
BAND = 2.5  # chosen wide; how often it holds is not measured for these constants


def flops_per_token(spec: Recipe, shape: Shape, num_tokens: float, learned_share: float, checkpointing: bool) -> float:
    """Operations of forward and backward: 4N + 6A for LoRA (frozen weights get no gradient), 6N for full; causal
    attention in addition; the output layer at learned positions only."""
    head = shape.vocabulary * shape.hidden * learned_share
    attention = 2 * num_tokens * shape.num_layers * shape.q_width
    linear = shape.linear_parameters
    if isinstance(spec.adapter, Lora):
        work = 4 * (linear + head) + 6 * shape.adapter_parameters(spec.adapter) + 3 * attention
    else:
        work = 6 * (linear + head) + 3 * attention
    return work + (2 * linear + attention if checkpointing else 0)


def rate(hardware: Hardware, threads: int) -> float:
    """Operations per second this machine reaches in training."""
    if hardware.gpus:
        return GPU_PEAK.get(hardware.gpus[0].capability, 100e12) * GPU_SHARE_OF_PEAK
    return CPU_FLOPS_PER_CORE * threads
