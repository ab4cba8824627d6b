"""What the recipe asks of training that this machine cannot do: said before anything is read. Light."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tunesmith.errors import RecipeError
from tunesmith.planner import hardware
from tunesmith.planner.switches import LIGER, compile_conflict, compiler_trouble, liger_trouble
from tunesmith.recipe.tree import DeepSpeed, Fsdp

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.recipe.tree import Train

SHARDED_OPTIMIZERS = ("adamw", "sgd")  # their states have the shape of the weights


def check(spec: Recipe) -> None:
    """Raises RecipeError TRN-020 to TRN-028 for an engine that cannot do it, TRN-060 to 062 for a speed switch that cannot
    work, and what a DeepSpeed file is refused for."""
    engine = spec.train.engine
    is_sharded = isinstance(engine, (Fsdp, DeepSpeed))
    if not (is_sharded or spec.train.compile != "off" or spec.train.kernels == "liger"):
        return
    on_cpu = not hardware.detect().gpus
    check_switches(spec, on_cpu=on_cpu, recompute=spec.train.gradient_checkpointing == "on")
    if not is_sharded:
        return
    check_engine(spec.train, on_cpu=on_cpu)
    if isinstance(engine, DeepSpeed):
        if spec.model.quantisation.type != "none":
            raise RecipeError(
                "TRN-028",
                f"model.quantisation is {spec.model.quantisation.type}, and no test has shown it to train under DeepSpeed",
                where="train.engine.type",
                expected="a quantised base with engine ddp or fsdp",
                fix="--set train.engine.type=fsdp",
            )
        from tunesmith.stages.train.engines.deepspeed_config import Facts, engine_config, read_config

        precision = spec.model.precision if spec.model.precision != "auto" else "fp32" if on_cpu else ""
        engine_config(read_config(engine), Facts(spec.train, precision, spec.train.processes, on_cpu=on_cpu))


def check_switches(spec: Recipe, *, on_cpu: bool, recompute: bool, kernels: str = "") -> None:
    """Raises RecipeError TRN-060 when there is no compiler, TRN-061 for what compiled layers are not shown to train with,
    TRN-062 when Liger's kernels are asked for and cannot be used. recompute: activations are. kernels: those that a resumed
    training began with."""
    conflict = compile_conflict(spec, recompute=recompute) if spec.train.compile != "off" else ""
    if conflict:
        raise RecipeError(
            "TRN-061",
            f"train.compile is {spec.train.compile} and {conflict}, and no test has shown the two together",
            where="train.compile",
            expected="one process or ddp, an unquantised base, no adapter dropout, no recomputation, kernels other than liger",
            fix="--set train.compile=off",
        )
    trouble = compiler_trouble(on_cpu=on_cpu) if spec.train.compile != "off" else ""
    if trouble:
        raise RecipeError(
            "TRN-060",
            f"train.compile is {spec.train.compile}, and {trouble}",
            where="train.compile",
            expected="what torch.compile calls: g++ and Python's headers on a CPU; Triton and gcc on a GPU",
            fix="apt-get install g++ python3-dev (or name a compiler by CXX); or --set train.compile=off",
        )
    trouble = liger_trouble(on_cpu=on_cpu) if "liger" in (spec.train.kernels, kernels) else ""
    if trouble:
        began = "" if spec.train.kernels == "liger" else " (this training began with them)"
        raise RecipeError(
            "TRN-062",
            f"train.kernels is liger{began}, and {trouble}",
            where="train.kernels",
            expected=f"a GPU, and the package {LIGER}",
            fix="--set train.kernels=auto, which takes them where they can be used",
        )


def check_engine(train: Train, *, on_cpu: bool) -> None:
    """As `check`, of the training loop alone and without reading a file."""
    engine = train.engine
    if isinstance(engine, (Fsdp, DeepSpeed)) and train.optimizer.type not in SHARDED_OPTIMIZERS:
        raise RecipeError(
            "TRN-025",
            f"train.optimizer is {train.optimizer.type}, whose state is not cut into shards here",
            where="train.optimizer",
            expected=f"{' or '.join(SHARDED_OPTIMIZERS)} with engine {engine.type}",
            fix="--set train.optimizer.type=adamw, or --set train.engine.type=ddp",
        )
    if isinstance(engine, Fsdp) and engine.cpu_offload and on_cpu:
        raise RecipeError(
            "TRN-020",
            "cpu_offload moves shards from a GPU to the CPU, and this machine has no CUDA device",
            where="train.engine.cpu_offload",
            expected="a CUDA device, or false: on a CPU everything lies in the CPU's memory already",
            fix="--set train.engine.cpu_offload=false",
        )
    if isinstance(engine, DeepSpeed) and sys.platform != "linux":
        raise RecipeError(
            "TRN-021",
            f"DeepSpeed runs on Linux, and this is {sys.platform}",
            where="train.engine.type",
            expected="Linux, or an engine of torch",
            fix="--set train.engine.type=fsdp, which shards as DeepSpeed's stage 3 does",
        )
    if isinstance(engine, DeepSpeed) and find_spec("deepspeed") is None:
        raise RecipeError(
            "TRN-022",
            "train.engine.type is deepspeed, and deepspeed is not installed",
            where="train.engine.type",
            expected="the extra `deepspeed`",
            fix="DS_BUILD_OPS=0 pip install 'tunesmith[deepspeed]' (compiles nothing); or --set train.engine.type=fsdp",
        )
