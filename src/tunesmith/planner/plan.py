"""The plan: choices that fit, and figures with the band they should fall into."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.planner import memory, speed
from tunesmith.planner.hardware import Hardware
from tunesmith.planner.ranges import Unusual, unusual
from tunesmith.planner.requirements import refuse_unmet
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe
from tunesmith.units import format_bytes, format_count, format_seconds

CPU_SHARE, GPU_RESERVE = 0.8, 0.92
TYPICAL_LEARNED_SHARE = 0.4  # of a row's tokens, before the data was read


@dataclass(frozen=True)
class Figure:
    """A prediction with its band, which should hold what is measured nine times out of ten."""

    value: float
    low: float
    high: float
    unit: str
    note: str = ""

    def text(self) -> str:
        show = {"bytes": format_bytes, "s": format_seconds}.get(self.unit, format_count)
        band = "" if self.low == self.high else f"   ({show(self.low)} to {show(self.high)})"
        return f"{show(self.value)}{band}"


@dataclass(frozen=True)
class Plan:
    """figures by name; choices: micro_batch, gradient_checkpointing, precision, attention. basis: before data | after prepare.

    unusual: values out of their usual range; warnings, never refusals.
    """

    figures: dict[str, Figure]
    choices: dict[str, Any]
    hardware: Hardware
    basis: str
    unusual: tuple[Unusual, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "choices": self.choices,
            "hardware": self.hardware.to_json(),
            "basis": self.basis,
            "unusual": [item.to_json() for item in self.unusual],
        }

    def to_text(self) -> str:
        lines = [f"plan ({self.basis})", ""]
        lines += [
            f"  {name.replace('_', ' '):<24} {figure.text()}{'   ' + figure.note if figure.note else ''}"
            for name, figure in self.figures.items()
        ]
        lines += ["", "choices", *(f"  {name.replace('_', ' '):<24} {value}" for name, value in self.choices.items())]
        lines += ["", *(f"warning: {item}" for item in self.unusual)] if self.unusual else []
        return "\n".join(lines)


def plan(spec: Recipe, config: Mapping[str, Any], *, statistics: Mapping[str, Any] | None, hardware: Hardware) -> Plan:
    """Arithmetic from the recipe, the model's config.json and, once it is prepared, the data's statistics.

    Raises ModelError PLN-002 when nothing fits, with what to change, before any weight is loaded; MDL-120 to 122 for
    what a quantised base or an 8-bit optimizer lacks.
    """
    refuse_unmet(spec, config, has_cuda=bool(hardware.gpus))
    shape = Shape.of(config)
    on_cpu = not hardware.gpus
    precision = _precision(spec, hardware)
    num_tokens, learned = _row(spec, statistics)
    room = hardware.ram_available_bytes * CPU_SHARE if on_cpu else hardware.gpus[0].memory_bytes * GPU_RESERVE

    def need(micro_batch: int, checkpointing: bool) -> memory.Parts:
        return memory.peak(
            spec,
            shape,
            precision=precision,
            micro_batch=micro_batch,
            num_tokens=num_tokens,
            learned_tokens=learned,
            checkpointing=checkpointing,
            on_cpu=on_cpu,
        )

    micro_batch, checkpointing = _fit(spec, need, room)
    parts = need(micro_batch, checkpointing)
    band = (memory.CPU_BAND if on_cpu else memory.GPU_BAND) * (1 if shape.is_known else 2)
    figures = {
        "peak_memory": _banded(parts.total, band, "bytes", "growth after imports" if on_cpu else "reserved on the GPU")
    }
    figures |= {name: _banded(value, band, "bytes") for name, value in asdict(parts).items() if value}
    figures |= _times(spec, shape, statistics, hardware, checkpointing)
    figures["disk"] = _disk(spec, shape, precision)
    choices = {
        "micro_batch": micro_batch,
        "gradient_checkpointing": checkpointing,
        "precision": precision,
        "attention": spec.model.attention,
    }
    if spec.model.quantisation.type != "none":
        choices["base_weights"] = f"{spec.model.quantisation.type}, frozen"
    basis = "after prepare" if statistics else "before data"
    return Plan(figures, choices, hardware, basis, tuple(unusual(spec, config)))


def _precision(spec: Recipe, hardware: Hardware) -> str:
    if spec.model.precision != "auto":
        return spec.model.precision
    if not hardware.gpus:
        return "fp32"
    return "bf16" if hardware.gpus[0].capability >= 8.0 else "fp16"


def _row(spec: Recipe, statistics: Mapping[str, Any] | None) -> tuple[int, int]:
    """(tokens of the longest row, learned ones of it)."""
    if statistics is None:
        return spec.data.max_tokens, math.ceil(spec.data.max_tokens * TYPICAL_LEARNED_SHARE)
    train = statistics["splits"]["train"]
    longest = min(spec.data.max_tokens, train["max"])
    share = train["learned_tokens"] / max(1, train["tokens"])
    return longest, max(1, math.ceil(longest * share))


def _fit(spec: Recipe, need: Any, room: float) -> tuple[int, bool]:
    """The largest micro-batch that fits, without recomputation where that leaves at least a quarter of the batch."""
    asked = spec.train.micro_batch
    sizes = [asked] if asked != "auto" else [s for s in (64, 32, 16, 8, 4, 2, 1) if s <= spec.train.batch_size] or [1]
    ways = {"auto": (False, True), "on": (True,), "off": (False,)}[spec.train.gradient_checkpointing]
    for checkpointing in ways:
        for size in sizes:
            if need(size, checkpointing).total <= room:
                return size, checkpointing
    least = need(sizes[-1], ways[-1])
    biggest = max(asdict(least).items(), key=lambda part: part[1])
    moves = []
    if not isinstance(spec.adapter, Lora):
        moves.append("adapter: lora")
    elif spec.model.quantisation.type == "none":
        moves.append("model.quantisation: nf4")
    if ways == (False,):
        moves.append("train.gradient_checkpointing: auto")
    moves += [f"data.max_tokens: {max(64, spec.data.max_tokens // 2)}", "a smaller model.base"]
    raise ModelError(
        "PLN-002",
        f"training needs about {format_bytes(least.total)} and {format_bytes(room)} are there ({biggest[0]}: {format_bytes(biggest[1])})",
        where="model.base",
        expected="a plan that fits into memory",
        fix="; or ".join(moves),
    )


def _times(
    spec: Recipe, shape: Shape, statistics: Mapping[str, Any] | None, hardware: Hardware, checkpointing: bool
) -> dict[str, Figure]:
    threads = spec.train.threads if spec.train.threads != "auto" else hardware.cores
    rate = speed.rate(hardware, int(threads)) * (
        spec.train.processes if not hardware.gpus else min(spec.train.processes, len(hardware.gpus))
    )
    if statistics is None:
        return {}
    train = statistics["splits"]["train"]
    steps = math.ceil(max(1, round(spec.train.epochs * train["rows"])) / spec.train.batch_size)
    steps = min(steps, spec.train.max_steps or steps)
    mean = train["tokens"] / max(1, train["rows"])
    share = train["learned_tokens"] / max(1, train["tokens"])
    work = speed.flops_per_token(spec, shape, mean, share, checkpointing) * mean * spec.train.batch_size
    seconds = work / rate
    return {
        "steps": Figure(
            steps, steps, steps, "steps", "fewer when early stopping ends it" if spec.train.early_stopping else ""
        ),
        "step_seconds": Figure(seconds, seconds / speed.BAND, seconds * speed.BAND, "s"),
        "train_seconds": Figure(
            seconds * steps, seconds * steps / speed.BAND, seconds * steps * speed.BAND, "s", "without validation"
        ),
    }


def _disk(spec: Recipe, shape: Shape, precision: str) -> Figure:
    """Checkpoints (weights and two moments of what is trained, newest ones, best one and the one being written) and exports."""
    trainable = shape.trainable(spec)
    checkpoints = (spec.train.keep_checkpoints + 2) * trainable * 12
    export = shape.parameters * memory.WIDTH[precision] + trainable * 4
    value = checkpoints + export + 20e6
    return Figure(value, value * 0.7, value * 1.3, "bytes", "checkpoints, result, export; data apart")


def _banded(value: float, band: float, unit: str, note: str = "") -> Figure:
    return Figure(value, value / (1 + band), value * (1 + band), unit, note)
