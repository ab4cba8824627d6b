"""Patches to other libraries: each one says why, for which versions, and which test fails once it can go."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec


def import_bitsandbytes() -> None:
    """Imports bitsandbytes, where it is installed, without letting it fetch code from the hub.

    bitsandbytes 0.50 (backends/cpu/ops.py): on CPUs with AVX512-BF16 its import calls `kernels.get_kernel`, which downloads
    a compiled kernel and loads it, where the package `kernels` is installed; else it prints a warning. That kernel serves
    inference in bf16 only, which is switched off here (modeling/quantise.py). peft imports bitsandbytes on its own, so this
    runs before anything of this package does. tests/unit/test_quantise.py fails when bitsandbytes no longer fetches.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    told = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = told.level, "kernels" not in sys.modules
    told.setLevel(logging.ERROR)
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        told.setLevel(level)
        if hidden:
            del sys.modules["kernels"]
