"""What makes a training faster without changing what it learns: each switch, how it stands here, and why. Light.

The plan shows these; the train stage obeys the same functions.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.planner.attention import AttentionClass, best, in_words
from tunesmith.planner.memory import Job
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import AdamW, AdamW8bit, DeepSpeed, Fsdp

LIGER = "liger_kernel"


@dataclass(frozen=True)
class Switch:
    """name: attention, compile, kernels, optimizer, loss or cache. state: how it stands. why: in words."""

    name: str
    state: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def switches(
    spec: Recipe, job: Job, attention: AttentionClass, milliseconds: dict[str, float], *, recompute: bool
) -> tuple[Switch, ...]:
    """milliseconds: of attention implementations, where they were timed on this machine."""
    on_cpu = job.on_cpu
    return (
        Switch("attention", *_attention(spec, attention, milliseconds)),
        Switch("compile", *_compile(spec, on_cpu=on_cpu, recompute=recompute)),
        Switch("kernels", *kernels(spec, on_cpu=on_cpu)),
        Switch("optimizer", *_optimizer(spec)),
        Switch("loss", *_loss(job)),
        Switch("cache", spec.evaluate.cache, "evaluate.cache: keys and values while answers are generated"),
    )


# ----------------------------------------------------------------------------------------------------------- attention


def _attention(spec: Recipe, asked: AttentionClass, milliseconds: dict[str, float]) -> tuple[str, str]:
    if spec.model.attention != "auto":
        return spec.model.attention, "as the recipe says"
    if len(asked.names) == 1:
        packs = " that packs" if asked.layout == "packed" else ""
        return asked.names[0], f"the only one here{packs}"
    if milliseconds:
        return best(milliseconds), f"timed on this machine, forward and backward: {in_words(milliseconds)}"
    return "auto", f"{' and '.join(asked.names)} are timed before step 1"


# ------------------------------------------------------------------------------------------------------------- compile


def _compile(spec: Recipe, *, on_cpu: bool, recompute: bool) -> tuple[str, str]:
    if spec.train.compile == "off":
        return "off", "train.compile: regional compiles each decoder layer, at the cost of some seconds to minutes once"
    against = compile_conflict(spec, recompute=recompute) or compiler_trouble(on_cpu=on_cpu)
    if against:
        return "refused", against
    return (
        "regional",
        "each decoder layer, once; the events train/compile_seconds and train/compile_gain tell its worth",
    )


def compile_conflict(spec: Recipe, *, recompute: bool) -> str:
    """What else the recipe asks for that compiled layers are not shown to train with; empty where nothing is."""
    if isinstance(spec.train.engine, (Fsdp, DeepSpeed)):
        return f"train.engine is {spec.train.engine.type}"
    if spec.model.quantisation.type != "none":
        return f"model.quantisation is {spec.model.quantisation.type}"
    if isinstance(spec.adapter, Lora) and spec.adapter.dropout:
        return "adapter.dropout draws anew in each step"
    if spec.train.kernels == "liger":
        return "train.kernels is liger"
    return "activations are recomputed" if recompute else ""


def compiler_trouble(*, on_cpu: bool) -> str:
    """Why torch.compile cannot work on this machine, in words; empty where it can.

    On a CPU torch's inductor writes C++, on a GPU Triton, whose launcher is C.
    """
    if not on_cpu and find_spec("triton") is None:
        return "triton is not installed"
    found = compiler(on_cpu=on_cpu)
    if found is None:
        return f"no {'C++' if on_cpu else 'C'} compiler is installed"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"Python's own headers are missing ({header})"


def compiler(*, on_cpu: bool) -> str | None:
    """Path of the compiler that inductor calls: CXX or g++, of a Mac clang++; for Triton's launcher CC, gcc or clang."""
    default = ("clang++",) if sys.platform == "darwin" else ("g++",)
    named = os.environ.get("CXX" if on_cpu else "CC")
    names = (shlex.split(named)[0],) if named else default if on_cpu else ("gcc", "clang")
    return next((path for name in names if (path := shutil.which(name))), None)


# ------------------------------------------------------------------------------------------------------------- kernels


def kernels(spec: Recipe, *, on_cpu: bool) -> tuple[str, str]:
    """("liger" or "torch", why). That a model type has no Liger kernels is seen when they are applied."""
    if spec.train.kernels == "off":
        return "torch", "train.kernels: off"
    trouble = liger_trouble(on_cpu=on_cpu)
    if trouble:
        return "torch", trouble
    if spec.train.compile != "off" and spec.train.kernels == "auto":
        return "torch", "the compiler fuses the same operations"
    return "liger", f"{LIGER} {package_version('liger-kernel') or '(version unknown)'}"


def liger_trouble(*, on_cpu: bool) -> str:
    """Why Liger kernels cannot be used here, in words; empty where they can."""
    if on_cpu:
        return "Liger's kernels are Triton programs and this machine has no GPU for them"
    return "" if find_spec(LIGER) else f"{LIGER} is not installed (pip install 'tunesmith[gpu]')"


# ----------------------------------------------------------------------------------------------- optimizer, loss


def _optimizer(spec: Recipe) -> tuple[str, str]:
    optimizer = spec.train.optimizer
    if isinstance(spec.train.engine, DeepSpeed):
        return optimizer.type, "DeepSpeed's engine calls it"
    if isinstance(optimizer, AdamW) and not isinstance(optimizer, AdamW8bit):
        return "fused", "all of AdamW's arithmetic in one pass over each weight"
    return optimizer.type, "as its library has it; adamw is fused"


def _loss(job: Job) -> tuple[str, str]:
    if job.chunk is None:
        return (
            "whole",
            f"logits of all {job.step.learned:,} learned positions at once: the output layer is not a plain one here",
        )
    at_once = min(job.chunk, job.step.learned)
    return (
        "chunked",
        f"logits of {at_once:,} learned positions at once, of at most {job.step.learned:,}; none elsewhere",
    )


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
