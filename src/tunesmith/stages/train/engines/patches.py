"""Changes to other libraries: each with its reason, and a test that fails once the library has changed."""

from __future__ import annotations

from importlib import import_module


def compile_nothing() -> None:
    """DeepSpeed on a CPU compiles an all-reduce of its own with g++ when it is first used, though it was installed with
    DS_BUILD_OPS=0: seconds to minutes, and whoever kills it meanwhile leaves a lock for which every later run waits for ever.

    Without it gloo does the work. Seen in 0.19.8; dies when `build_shm_op` is gone or asks before it compiles.
    """
    # By its full name: the attribute `torch` of deepspeed.comm is torch itself.
    backend = import_module("deepspeed.comm.torch")
    if hasattr(backend, "build_shm_op"):
        backend.build_shm_op = lambda: None
