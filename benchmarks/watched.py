"""A process and all that it starts, timed and with its memory sampled from outside (Linux)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INTERVAL_S = 0.1


class SideFailed(Exception):
    """The process ended without a result; the text is the end of what it wrote."""


def run_side(command: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object behind RESULT in what the command prints, with what was seen from outside.

    started_s: from the start of the process to its "began" (seconds since the epoch). peak_anonymous_gib: most memory
    outside of files, summed over the process and its descendants at one moment; peak_rss_gib: with mapped files.
    Raises SideFailed.
    """
    at = time.time()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
    )
    memory = Memory(process.pid)
    memory.start()
    written, _ = process.communicate()
    memory.stop()
    told = [line for line in written.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not told:
        raise SideFailed(f"status {process.returncode}: {written[-3000:]}")
    found = json.loads(told[-1].removeprefix("RESULT "))
    if "began" in found:
        found["started_s"] = found.pop("began") - at
    seen = {"peak_anonymous_gib": memory.anonymous_gib, "peak_rss_gib": memory.rss_gib, "processes": memory.processes}
    return found | seen


class Memory(threading.Thread):
    """Samples a process and its descendants until stopped; pages that forked processes share count in each."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.anonymous_gib = self.rss_gib = 0.0
        self.processes = 0

    def run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            held = [_held(pid) for pid in descendants(self._pid)]
            self.anonymous_gib = max(self.anonymous_gib, sum(anonymous for anonymous, _ in held) / 2**20)
            self.rss_gib = max(self.rss_gib, sum(rss for _, rss in held) / 2**20)
            self.processes = max(self.processes, len(held))

    def stop(self) -> None:
        self._over.set()
        self.join()


def descendants(pid: int) -> list[int]:
    """The process and all that it and its threads started and that live."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it has ended meanwhile
                continue
    return found


def _held(pid: int) -> tuple[int, int]:
    """(anonymous KiB, resident KiB); shared memory without a file counts as anonymous."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {
        line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon", "RssShmem"))
    }
    return values.get("RssAnon", 0) + values.get("RssShmem", 0), values.get("VmRSS", 0)
