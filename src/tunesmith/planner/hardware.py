"""What the machine has, without importing torch: cores, memory, GPUs by nvidia-smi."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.units import MIB


@dataclass(frozen=True)
class Gpu:
    """memory_bytes: total; free_bytes: free now; capability: such as 9.0."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: float


@dataclass(frozen=True)
class Hardware:
    cores: int
    ram_bytes: int
    ram_available_bytes: int
    gpus: tuple[Gpu, ...] = ()
    cpu: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def detect() -> Hardware:
    """This machine; a container's memory limit counts where there is one."""
    total, available = _memory()
    limit = _container_limit()
    if limit:
        total, available = min(total, limit), min(available, limit)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(cores, total, available, _gpus(), _cpu())


def _memory() -> tuple[int, int]:
    path = Path("/proc/meminfo")
    if path.exists():
        values = {
            line.split(":")[0]: int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if "kB" in line
        }
        return values["MemTotal"], values.get("MemAvailable", values["MemTotal"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total // 2


def _cpu() -> str:
    """Its name, as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _container_limit() -> int | None:
    path = Path("/sys/fs/cgroup/memory.max")
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _gpus() -> tuple[Gpu, ...]:
    query = "--query-gpu=name,memory.total,memory.free,compute_cap"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in done.stdout.splitlines():
        name, total, free, capability = (part.strip() for part in line.split(","))
        found.append(Gpu(name, int(total) * MIB, int(free) * MIB, float(capability)))
    return tuple(found)
