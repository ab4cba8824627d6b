"""Runs the harnesses one after the other, and goes on where it was cut off.

    python benchmarks/reliability                              all promises, into results/reliability.json
    python benchmarks/reliability crash_states disk            these only; the others' figures stay as they are stored
    python benchmarks/reliability --minutes 9 --state FOLDER   stops in time; the same command goes on
    python benchmarks/reliability --every 50 --no-store        a slice

How far each came is kept in FOLDER/reliability.json, and forgotten when src/ or the harness has changed since: no figure mixes
two versions of the code. Ends with status 1 where a promise did not hold, 75 where the time was up before the end.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import record  # noqa: E402

from reliability import PROMISES  # noqa: E402
from reliability.frame import Budget  # noqa: E402
from reliability.table import write_tables  # noqa: E402

RESULT = record.RESULTS / "reliability.json"
TIME_IS_UP = 75


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help=f"of {', '.join(PROMISES)}; default: all")
    parser.add_argument("--state", type=Path, default=record.ROOT / "build" / "reliability", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one case in N")
    parser.add_argument("--no-store", action="store_true")
    asked = parser.parse_args()
    unknown = set(asked.promises) - set(PROMISES)
    if unknown:
        parser.error(f"no such promise: {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}")
    names = asked.promises or list(PROMISES)
    deadline = time.monotonic() + asked.minutes * 60
    states = States(asked.state / "reliability.json")
    found = {name: carry_on(name, states, deadline, asked.every) for name in names}
    if asked.every == 1 and not asked.no_store and all(result["finished"] for result in found.values()):
        store(found)
    if not all(result["finished"] for result in found.values()):
        print("the time is up; the same command goes on")
        return TIME_IS_UP
    return int(any(result["held"] < result["tried"] for result in found.values()))


def carry_on(name: str, states: States, deadline: float, every: int) -> dict[str, Any]:
    module = importlib.import_module(f"reliability.{name}")
    key = f"{name}/every-{every}"
    state = states.get(key, version(name))
    if not state.get("finished"):
        left = max(0.0, deadline - time.monotonic())
        budget = Budget(left, every, state, lambda now: states.put(key, version(name), now))
        state = module.check(budget)
        states.put(key, version(name), state)
    word = "finished" if state["finished"] else "to be continued"
    print(f"{name}: {state['held']:,} of {state['tried']:,} held, {state['seconds']:.0f} s, {word}", flush=True)
    for failure in state["failures"]:
        print(f"  {failure['case']}: {failure['seen']}")
    for what, why in state["skipped"].items():
        print(f"  not tried: {what}: {why}")
    return state


class States:
    """How far each promise came, by name and version of the code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str, version: str) -> dict[str, Any]:
        kept = self._read().get(key, {})
        return kept["state"] if kept.get("version") == version else {}

    def put(self, key: str, version: str, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps({**self._read(), key: {"version": version, "state": state}}, indent=2))
        aside.replace(self.path)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


def version(name: str) -> str:
    """Of all that decides a figure: the product, the frame and the harness."""
    paths = [*(record.ROOT / "src").rglob("*.py"), BENCHMARKS / "reliability" / "frame.py"]
    paths.append(BENCHMARKS / "reliability" / f"{name}.py")
    hashed = hashlib.sha256()
    for path in sorted(paths):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def store(found: dict[str, dict[str, Any]]) -> None:
    """Beside the promises that were not asked for now; each has its own provenance."""
    stored = json.loads(RESULT.read_text())["promises"] if RESULT.exists() else {}
    for name, result in found.items():
        told = {key: value for key, value in result.items() if key not in ("finished", "position", "notes")}
        stored[name] = {**told, **result["notes"], "provenance": record.provenance()}
    RESULT.write_text(
        json.dumps({"promises": {name: stored[name] for name in PROMISES if name in stored}}, indent=2) + "\n"
    )
    print(f"wrote {RESULT.relative_to(record.ROOT)}")
    write_tables(stored)


if __name__ == "__main__":
    sys.exit(main())
