"""`python -m tunesmith.launch.worker RUN_PATH`: one of several training processes. Its end is told in rank-N.json."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tunesmith.errors import EXIT_BUG, FileError, InterruptedRun, TunesmithError
from tunesmith.launch import orphans
from tunesmith.runs import durable
from tunesmith.runs.run import Run


def main(run_path: str) -> int:
    """Opens the Run and the inputs, trains, notes how it ended. Returns the exit status."""
    orphans.leave_with(int(os.environ["TUNESMITH_AGENT"]))
    rank = int(os.environ["RANK"])
    folder = Path(run_path, "launch")
    run = Run.open(run_path)
    # The launcher and torchrun may both ask, and more than once: asking is all that a signal does here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: run.stop(signum))
    durable.write_text(folder / f"rank-{rank}.pid", str(os.getpid()))  # from here on signals are understood
    status, told = _train(run, rank, json.loads((folder / "request.json").read_bytes()))
    durable.write_json(folder / f"rank-{rank}.json", {**told, "time": time.time()})
    return status


def _train(run: Run, rank: int, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    run.attempt, run.stage_key, run.is_writer = request["attempt"], request["stage_key"], rank == 0
    try:
        inputs = {name: _input(run, *place) for name, place in request["inputs"].items()}
        with durable.explain_trouble(run.workspace):
            outputs = importlib.import_module(request["entry"]).run(run.pinned_recipe, inputs, run)
    except InterruptedRun:
        # Status 0: for torchrun a failed process is a reason to stop the others, which may still be saving.
        return 0, {"end": "stopped", "signal": run.stop_signal}
    except TunesmithError as error:
        return error.exit_status, {"end": "failed", "family": type(error).__name__, "error": error.to_json()}
    except BaseException:
        return EXIT_BUG, {"end": "crashed", "traceback": traceback.format_exc()}
    return 0, {"end": "done", "outputs": {name: [artifact.kind, artifact.id] for name, artifact in outputs.items()}}


def _input(run: Run, kind: str, id: str) -> Any:
    artifact = run.store.find(kind, id)
    if artifact is None:
        raise FileError(
            "RUN-030",
            f"{kind} {id} was there when training started and is gone or damaged now",
            expected="an artifact that nobody removes while it is used",
            fix="run the same command again: it is made anew",
        )
    return artifact


if __name__ == "__main__":
    orphans.leave(main(sys.argv[1]))
