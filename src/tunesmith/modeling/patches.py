"""Patches to other libraries: each one says why, for which versions, and which test fails once it can go."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any


def import_bitsandbytes() -> None:
    """Imports bitsandbytes, where it is installed, without letting it fetch code from the hub or start the compiler.

    bitsandbytes 0.50 (backends/cpu/ops.py): on CPUs with AVX512-BF16 its import calls `kernels.get_kernel`, which downloads
    a compiled kernel and loads it, where the package `kernels` is installed; else it prints a warning. That kernel serves
    inference in bf16 only, which is switched off here (modeling/quantise.py). peft imports bitsandbytes on its own, so this
    runs before anything of this package does. tests/unit/test_quantise.py fails when bitsandbytes no longer fetches.

    bitsandbytes 0.50 (backends/default/ops.py) also decorates functions with torch.compile, which imports all of torch's
    compiler: 2 s of a CPU in every process, for functions that few trainings call. Here they are compiled when they are
    called. tests/unit/test_quantise.py fails when bitsandbytes no longer does that.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    told = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = told.level, "kernels" not in sys.modules
    told.setLevel(logging.ERROR)
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    import torch

    compile = torch.compile
    torch.compile = _when_called(compile)  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile
        told.setLevel(level)
        if hidden:
            del sys.modules["kernels"]


def _when_called(compile: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile as bitsandbytes calls it, on a function and settings, but put off until the function is called."""

    def put_off(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        made: list[Callable[..., Any]] = []

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if not made:
                made.append(compile(function, **settings))
            return made[0](*arguments, **named)

        return call

    return put_off


def keep_deepspeed_off_stdout() -> None:
    """DeepSpeed, where it is installed, speaks on standard output at its import ("Setting accelerator to CPU"), and
    accelerate imports it as soon as a model is saved: a program that reads `--json` would find that line in it.

    deepspeed 0.19 (utils/logging.py): a handler on sys.stdout of the logger "DeepSpeed", level WARNING. The filter stays when
    that logger is made later. What the engine has to say goes through its own errors. tests/unit/test_model_loading.py.
    """
    told = logging.getLogger("DeepSpeed")
    if not any(isinstance(known, _ErrorsOnly) for known in told.filters):
        told.addFilter(_ErrorsOnly())


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR
