"""Training by several processes: starts torchrun, passes signals on, hands events to the listeners, tells who failed.

    launcher (this process) -> agent (torchrun) -> one worker per rank

The agent has a session of its own, so that Ctrl-C on the terminal reaches the launcher only; the launcher passes it on to
the workers. They note how they ended in <run>/launch/rank-N.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import errors
from tunesmith.errors import Problem, RecipeError, StoppedError, TunesmithError
from tunesmith.runs import durable
from tunesmith.runs.events import Tail
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

POLL_S = 0.2
LOG_LINES = 15


def train(
    spec: Recipe,
    run: Run,
    inputs: Mapping[str, Artifact],
    processes: int,
    *,
    entry: str = "tunesmith.stages.train.run",
) -> dict[str, Artifact]:
    """Runs `entry`'s run(spec, inputs, run) in `processes` processes (gloo on CPUs, nccl on GPUs); returns its outputs.

    Raises what the first failing rank raised; InterruptedRun when the run was asked to stop and has saved;
    StoppedError RUN-031 when a process was killed from outside, for want of memory say.
    """
    _check_devices(processes)
    folder = run.path / "launch"
    durable.remove_folder(folder)
    request = {
        "entry": entry,
        "attempt": run.attempt,
        "stage_key": run.stage_key,
        "inputs": {name: [artifact.kind, artifact.id] for name, artifact in inputs.items()},
    }
    durable.write_json(folder / "request.json", request)
    log = folder / "workers.log"
    command = [sys.executable, "-m", "tunesmith.launch.agent", str(run.path), str(processes), str(os.getpid())]
    tail = Tail(run.path / "events.jsonl")
    with log.open("wb") as file:
        agent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(spec, processes),
        )
    try:
        _follow(agent, run, tail, folder)
    finally:
        if agent.poll() is None:
            agent.kill()  # its workers notice and go as well
        agent.wait()
    return _outputs(run, folder, processes, agent.returncode)


def _check_devices(processes: int) -> None:
    from tunesmith.planner import hardware

    gpus = len(hardware.detect().gpus)
    if gpus and processes > gpus:
        raise RecipeError(
            "RUN-032",
            f"train.processes={processes}, and this machine has {gpus} GPU{'s' * (gpus > 1)}",
            where="train.processes",
            expected="one process per GPU at most",
            fix=f"--set train.processes={gpus}",
        )


def _environment(spec: Recipe, processes: int) -> dict[str, str]:
    """This process's environment with the threads per process; bits depend on them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // processes) if spec.train.threads == "auto" else spec.train.threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # The processes share one machine: its loopback always works, the name of the host may not resolve.
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    return environment


def _follow(agent: subprocess.Popen[bytes], run: Run, tail: Tail, folder: Path) -> None:
    """Until the agent ends: events go to the listeners, a stop goes to each worker once."""
    told: set[int] = set()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(POLL_S)
        for event in tail.read():
            run.tell(event)
        if agent.returncode is not None:
            return
        if run.stopping:
            for pid in _pids(folder) - told:
                _ask_to_stop(pid, run)
                told.add(pid)


def _pids(folder: Path) -> set[int]:
    return {int(path.read_text()) for path in folder.glob("rank-*.pid")}


def _ask_to_stop(pid: int, run: Run) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just finished
        os.kill(pid, run.stop_signal or signal.SIGTERM)


# ------------------------------------------------------------------------------------------------------- the outcome


def _outputs(run: Run, folder: Path, processes: int, status: int) -> dict[str, Artifact]:
    """What rank 0 made, or the error of the rank that failed first."""
    ends = {
        rank: json.loads(path.read_bytes()) for rank in range(processes) if (path := _end_of(folder, rank)).exists()
    }
    first = ends.get(0, {"end": "none"})
    if (
        first["end"] == "stopped" and run.stopping
    ):  # rank 0 has saved; that others stumbled over its leaving is no matter
        run.leave("in training")
    if first["end"] == "done" and status == 0:
        return {name: _artifact(run, kind, id) for name, (kind, id) in first["outputs"].items()}
    killed = _killed(folder, ends)
    if killed:  # the others fail because it is gone
        raise _killed_error(folder, *killed)
    failed = [(end["time"], rank) for rank, end in ends.items() if end["end"] in ("failed", "crashed")]
    if failed:
        _, rank = min(failed)
        raise _cause(rank, ends[rank])
    if first["end"] == "stopped":  # asked by a signal that reached the workers and not this process
        run.stop(first["signal"])
        run.leave("in training")
    raise RuntimeError(f"the training processes left with status {status} and no word:\n{_last_lines(folder)}")


def _cause(rank: int, end: Mapping[str, Any]) -> Exception:
    """The error as the worker raised it: same family, so same exit status; a bug as a bug, with its traceback."""
    if end["end"] == "crashed":
        return RuntimeError(f"the training process of rank {rank} crashed:\n{end['traceback']}")
    family: type[TunesmithError] = getattr(errors, end["family"])
    told = end["error"]
    return family(told["error"], told["what"], problems=[Problem(**problem) for problem in told["problems"]])


def _end_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _artifact(run: Run, kind: str, id: str) -> Artifact:
    artifact = run.store.find(kind, id)
    assert artifact is not None, f"rank 0 said it made {kind} {id}; it is not in the store"
    return artifact


def _killed(folder: Path, ends: Mapping[int, Any]) -> tuple[int, int] | None:
    """(rank, signal) of a process that died by a signal, without a last word."""
    try:
        failures = json.loads((folder / "failures.json").read_bytes())
    except FileNotFoundError:
        return None
    for rank, status in failures.items():
        if status < 0 and int(rank) not in ends:
            return int(rank), -status
    return None


def _killed_error(folder: Path, rank: int, signum: int) -> StoppedError:
    name = signal.Signals(signum).name
    return StoppedError(
        "RUN-031",
        f"the training process of rank {rank} was killed by {name}"
        + (", as the system does when memory runs out" if signum == signal.SIGKILL else ""),
        where=str(folder / "workers.log"),
        expected="processes that live until training ends",
        fix="run the same command again: it goes on from the last checkpoint; "
        "if memory ran out: --set train.micro_batch=1 or fewer train.processes",
    )


def _last_lines(folder: Path) -> str:
    return "\n".join((folder / "workers.log").read_text(errors="replace").splitlines()[-LOG_LINES:])
