"""How soon the command line answers: `python benchmarks/startup.py` -> results/startup.json.

Median of 5 whole processes per verb (`tunesmith VERB --help`), and of a recipe with a mistake.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from record import ROOT, store

from tunesmith.cli import VERBS

REPEATS = 5


def seconds(*arguments: str, status: int = 0) -> float:
    """Median wall time of `tunesmith ARGUMENTS`, which must leave with `status`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments], capture_output=True, env=environment, check=False
        )
        found.append(time.perf_counter() - started)
        assert done.returncode == status, done.stderr.decode()
    return round(median(found), 3)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        bad = Path(scratch) / "bad.yaml"
        bad.write_text("data: {sources: rows.jsonl}\nlr: 3\ntrain: {epochs: many}\n")
        help_s = {"": seconds("--help"), **{verb: seconds(verb, "--help") for verb in VERBS}}
        store("startup", {"help_s": help_s, "bad_recipe_s": seconds("run", str(bad), status=64), "repeats": REPEATS})


if __name__ == "__main__":
    main()
