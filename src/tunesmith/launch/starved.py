"""Whether the system killed processes for want of memory: what its own counters say. Linux; elsewhere nothing is known."""

from __future__ import annotations

import re
from pathlib import Path

# Of the processes of this control group (version 2, then 1), and of the whole machine where there is no group.
COUNTERS = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
    Path("/proc/vmstat"),
)
KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def kills(counters: tuple[Path, ...] = COUNTERS) -> int:
    """Processes that the system has killed for want of memory so far, by the nearest counter that can be read."""
    for path in counters:
        try:
            found = KILLS.search(path.read_text())
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
