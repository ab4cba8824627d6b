"""How fast this machine has been beside what was planned for it: `speeds.json` in the workspace, a line per machine.

The constants of planner/speed.py come from one machine. A training that ends notes measured over planned time here, and
the next plan on the same machine, threads and number format is multiplied by it.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from tunesmith.runs import durable

FILE = "speeds.json"
KEPT = 5  # of the latest trainings; their median counts


@dataclass(frozen=True)
class Learned:
    """factor: measured over planned seconds, 1 where nothing is known. runs: how many trainings told it."""

    factor: float = 1.0
    runs: int = 0


def recall(workspace: Path, machine: str) -> Learned:
    """What trainings on `machine` have told; nothing where there is no such file or it cannot be read."""
    ratios = _read(workspace).get(machine, [])
    return Learned(statistics.median(ratios), len(ratios)) if ratios else Learned()


def remember(workspace: Path, machine: str, ratio: float) -> None:
    """Notes a training's measured over planned seconds. A ratio that is no positive number is not worth a note."""
    if not (math.isfinite(ratio) and ratio > 0):
        return
    told = _read(workspace)
    told[machine] = [*told.get(machine, []), round(ratio, 4)][-KEPT:]
    durable.write_json(Path(workspace) / FILE, told)


def _read(workspace: Path) -> dict[str, list[float]]:
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        told = json.loads((Path(workspace) / FILE).read_bytes())
        return {str(name): [float(ratio) for ratio in ratios if float(ratio) > 0] for name, ratios in told.items()}
    return {}
