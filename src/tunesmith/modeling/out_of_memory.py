"""Memory that ran out: how that is told from other errors, and what makes room again."""

from __future__ import annotations

import gc

import torch

# torch's CUDA allocator, its CPU allocator (which says both), oneDNN where it cannot allocate its own scratch.
WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True where the device or the system had no room; a plain RuntimeError is what torch raises on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


def release_memory() -> None:
    """Gives back what a failed pass has left: it sits in reference cycles and in the allocator's pool."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
