"""Before step 1: attention that is timed, layers that are compiled, and what compiling them cost and gained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.modeling.attention import measure
from tunesmith.modeling.compile import compile_layers, compiling, graphs_compiled
from tunesmith.modeling.forward import micro_batches
from tunesmith.modeling.load import capability_of, resolve_attention
from tunesmith.planner import attention, hardware, speed
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe
from tunesmith.runs.run import Run
from tunesmith.stages.train.batches import share
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.loop import Loop

PASSES_TIMED = 2  # after one that warms up; the faster one counts


def fastest_attention(
    spec: Recipe,
    config: Mapping[str, Any],
    longest: int,
    device: torch.device,
    precision: str,
    threads: int,
    run: Run,
    engine: LocalEngine,
) -> tuple[str, dict[str, float]]:
    """The fastest implementation for this training and the milliseconds of each, timed now unless this machine has been
    timed for such shapes before; no times where only one can serve.

    longest: tokens of the longest training row. The first process times; all of them take what it found.
    """
    try:
        shape = Shape.of(config)
    except ModelError:  # config.json does not tell the shapes
        return resolve_attention("auto", device, precision), {}
    asked = attention.attention_class(
        spec, shape, longest, machine=_machine(run, threads, precision), on_cpu=device.type == "cpu",
        precision=precision, capability=capability_of(device),
    )  # fmt: skip
    if len(asked.names) == 1:
        return asked.names[0], {}
    name, times = _timed(asked, device, precision, run) if engine.rank == 0 else (asked.names[0], {})
    (place,) = engine.total(float(asked.names.index(name)) if engine.rank == 0 else 0.0)
    return asked.names[int(place)], times


def _machine(run: Run, threads: int, precision: str) -> str:
    """As the plan calls it, so that the next plan finds the times."""
    planned = (run.plan or {}).get("pace", {}).get("machine")
    return planned or speed.machine(hardware.detect(), threads, precision)


def _timed(
    asked: attention.AttentionClass, device: torch.device, precision: str, run: Run
) -> tuple[str, dict[str, float]]:
    times, source = attention.recall(run.workspace, asked), "timed before"
    if not times:
        times, source = measure(asked, device, precision), "timed now"
        if not times:
            return asked.names[-1], {}
        attention.remember(run.workspace, asked, times)
    picked = attention.best(times)
    told = {"picked": picked, "milliseconds": times, "source": source, "tokens": asked.length, "layout": asked.layout}
    run.record("train", "train/attention", told)
    return picked, times


@dataclass(frozen=True)
class Compilation:
    """seconds: that the first pass took longer than later ones. gain: seconds of a pass before over those after. graphs:
    compiled by this process so far."""

    seconds: float
    gain: float
    graphs: int


def compiled_layers(loop: Loop, run: Run) -> Compilation:
    """Compiles the decoder layers and tells what it cost and gains: a training pass before and after, gradients thrown away.

    The passes are of the first and the last micro-batch of step 1, the longest and the oddest, so that a resumed run
    compiles what a straight one did.
    """
    examples = loop.order.step(1)
    mine = share(examples, loop.lengths, loop.engine.rank, loop.engine.world_size)
    groups = micro_batches(mine, loop.lengths, loop.budget_tokens, loop.layout)
    groups = [*groups[:1], *groups[1:][-1:]]
    _pass(loop, groups)
    eager = min(_pass(loop, groups) for _ in range(PASSES_TIMED))
    compile_layers(loop.model)
    with compiling():
        first = _pass(loop, groups)
        compiled = min(_pass(loop, groups) for _ in range(PASSES_TIMED))
    tokens = sum(int(loop.lengths[example]) for group in groups for example in group)
    made = Compilation(round(max(0.0, first - compiled), 3), round(eager / compiled, 4), graphs_compiled())
    run.record("train", "train/compile_seconds", made.seconds, unit="s")
    run.record("train", "train/compile_gain", made.gain, unit="x")
    if groups:
        told = {"eager": round(tokens / eager, 1), "compiled": round(tokens / compiled, 1)}
        run.record("train", "train/compile_tokens_per_second", told, unit="tokens/s")
    return made


def _pass(loop: Loop, groups: list[list[int]]) -> float:
    """Seconds of a forward and backward pass; a process without rows in step 1 has nothing to compile for yet."""
    started = time.perf_counter()
    loop.accumulate(1, groups, total_weight=1.0)
    loop.engine.discard()
    if loop.device.type == "cuda":
        torch.cuda.synchronize(loop.device)
    return time.perf_counter() - started
