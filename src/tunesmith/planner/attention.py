"""Attention implementations as they were timed on this machine: `attention.json` in the workspace.

Timed once per machine, versions and class of shapes (modeling/attention.py), before the first step that needs it. A run
keeps what it began with in its checkpoints, so that a resume depends on no clock.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe
from tunesmith.runs import durable

FILE = "attention.json"
# The first of these that is no more than MARGIN slower than the fastest is taken, so that noise does not decide.
PREFERENCE = ("flash_attention_3", "flash_attention_2", "sdpa", "eager")
MARGIN = 1.1
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # by what is imported
PACK = ("sdpa", "flash_attention_2", "flash_attention_3")  # those that take documents laid end to end
LONGEST = {
    True: 512,
    False: 2048,
}  # tokens of a row that are timed, on a CPU and on a GPU: eager's room is their square


@dataclass(frozen=True)
class AttentionClass:
    """What the times hold for. machine: device, threads and number format. length: tokens of the longest row, rounded up
    to a power of two. layout: packed or rows. names: the implementations that can serve, by preference."""

    machine: str
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    layout: str
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        versions = ", ".join(f"{name} {found}" for name in ("torch", "transformers") if (found := _version(name)))
        shape = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}, {self.length} tokens, {self.layout}"
        return f"{self.machine}; {versions}; {shape}; {', '.join(self.names)}"


def attention_class(
    spec: Recipe, shape: Shape, longest: int, *, machine: str, on_cpu: bool, precision: str, capability: float = 0.0
) -> AttentionClass:
    """longest: tokens of the longest training row. capability: of the GPU, such as 9.0."""
    windowed = shape.sliding_window is not None and shape.sliding_window < longest
    packs = spec.train.packing == "auto" and shape.family.packs and not windowed
    found = installed(on_cpu=on_cpu, precision=precision, capability=capability)
    if not shape.family.has_fused_attention:
        found = ("eager",)
    names = tuple(name for name in found if name in PACK) if packs else found
    length = min(LONGEST[on_cpu], max(16, 1 << (longest - 1).bit_length()))
    layout = "packed" if packs and names else "rows"
    return AttentionClass(machine, shape.num_heads, shape.num_kv_heads, shape.head_dim, length, layout, names or found)


def installed(*, on_cpu: bool, precision: str, capability: float = 0.0) -> tuple[str, ...]:
    """What can serve on this device in this number format, by preference."""
    flash = not on_cpu and precision != "fp32"
    least = {"flash_attention_2": 8.0, "flash_attention_3": 9.0}
    return tuple(
        name
        for name in PREFERENCE
        if name not in PACKAGES or (flash and capability >= least[name] and find_spec(PACKAGES[name]) is not None)
    )


def best(milliseconds: Mapping[str, float]) -> str:
    fastest = min(milliseconds.values())
    return next(name for name in PREFERENCE if milliseconds.get(name, float("inf")) <= MARGIN * fastest)


def recall(workspace: Path, asked: AttentionClass) -> dict[str, float]:
    """Milliseconds forward and backward by implementation; {} where nothing was timed or the file cannot be read."""
    return {name: value for name, value in read(workspace).get(asked.key, {}).items() if name in asked.names}


def remember(workspace: Path, asked: AttentionClass, milliseconds: Mapping[str, float]) -> None:
    told = read(workspace)
    told[asked.key] = dict(milliseconds)
    durable.write_json(Path(workspace) / FILE, told)


def read(workspace: Path) -> dict[str, dict[str, float]]:
    """All that was timed in a workspace; a file that cannot be read counts as none."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        told = json.loads((Path(workspace) / FILE).read_bytes())
        return {
            str(key): {str(name): float(ms) for name, ms in times.items() if float(ms) > 0}
            for key, times in told.items()
        }
    return {}


def in_words(milliseconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} ms" for name, value in milliseconds.items())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
