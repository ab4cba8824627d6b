"""Peak memory of this process since a moment: what the plan's prediction is held against."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """On a GPU: peak reserved bytes. On a CPU: growth of the resident peak over what was resident at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
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
            return torch.cuda.max_memory_reserved(self.device)
        return max(0, _status("VmHWM") - self.start)


def _status(name: str) -> int:
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
