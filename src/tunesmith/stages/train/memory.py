"""Peak memory of this process since a moment: what the plan's prediction is held against; and a heap that gives back."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch

M_MMAP_THRESHOLD = -3  # of mallopt, glibc's malloc.h
# Bytes: glibc's first threshold, and the highest that it grows to by itself.
RETURNED_FROM, KEPT_FROM = 128 * 1024, 32 * 1024 * 1024
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """On a GPU: peak reserved bytes. On a CPU: growth of the resident peak over what was resident at the start.

    The system keeps one peak for all: where a second measurement begins, the first takes note of the peak so far.
    """

    _measuring: ClassVar[weakref.WeakSet[PeakMemory]] = weakref.WeakSet()

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        for other in self._measuring:
            other.before = other.peak()
        self._measuring.add(self)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # resets VmHWM; needs no rights on Linux
        self.start = _status("VmRSS")

    def now(self) -> int:
        """Bytes: allocated on the GPU; on a CPU what is resident over what was at the start."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return max(0, _status("VmRSS") - self.start)

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return max(self.before, torch.cuda.max_memory_reserved(self.device))
        # The system counts in batches per thread: read twice, its peak may even be lower the second time.
        self.before = max(self.before, _status("VmHWM") - self.start)
        return self.before


def _status(name: str) -> int:
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@contextlib.contextmanager
def freed_memory_returned(wanted: bool) -> Iterator[None]:
    """Within it a freed tensor's memory goes back to the system at once, on a CPU with glibc; elsewhere nothing changes.

    glibc's heap does not give the place of one tensor to the next of the same size, because tensors are aligned
    (posix_memalign; at least up to glibc 2.36). With recomputation, which frees and makes each tensor again, it grew to
    seven times what lived, and nothing was saved. The price is page faults: about half as much processor time again for small models.
    """
    mallopt = _glibc_mallopt() if wanted else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, RETURNED_FROM)
    try:
        yield
    finally:
        if mallopt:
            mallopt(M_MMAP_THRESHOLD, KEPT_FROM)


def _glibc_mallopt() -> Callable[[int, int], int] | None:
    """None where the C library is another one."""
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
