"""Training by two real processes: what they make, whose error is shown, how a stop and a kill end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tunesmith import launch
from tunesmith.errors import DataError, InterruptedRun, StoppedError
from tunesmith.recipe import parse_recipe
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

ENTRY = """
import os, signal, time
from tunesmith.errors import DataError

def reduce(run):
    import torch
    import torch.distributed as distributed
    distributed.init_process_group("gloo")
    ranks = torch.tensor([float(distributed.get_rank() + 1)])
    distributed.all_reduce(ranks)
    distributed.destroy_process_group()
    return f"{ranks.item():.0f} with {os.environ['OMP_NUM_THREADS']} thread"

def run(spec, inputs, run):
    rank, word = int(os.environ["RANK"]), spec.name
    text = reduce(run) if word == "reduce" else word
    if word == "fail" and rank == 1:
        raise DataError("DAT-999", "row 7 has nothing to learn", where="rows.jsonl:7", fix="mend it")
    if word == "kill" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    run.record("train", "train/loss", 0.5, step=1)
    while word != "reduce" and not run.stopping:
        time.sleep(0.02)
    if run.stopping:
        time.sleep(1.0 if rank == 0 else 0.0)  # rank 0 saves while the other has left
        run.record("train", "checkpoint/saved", 1, step=1)
        run.leave("after step 1")
    if rank == 0:
        with run.store.create("Adapter", run.stage_key, producer={"stage": "train"}) as draft:
            (draft.path / "text").write_text(text + inputs["dataset"].id)
    from tunesmith.runs.store import Artifact
    return {"model": draft.artifact if rank == 0 else Artifact("Adapter", run.stage_key, run.path, {})}
"""


WORDS = ("reduce", "fail", "kill", "stop", "orphan")
LAUNCHER = """
import sys
from tunesmith import launch
from tunesmith.runs.run import Run
run = Run.open(sys.argv[1])
run.stage_key = "f00d"
launch.train(run.recipe, run, {"dataset": run.store.find("Dataset", "abc")}, 2, entry="launched_entry")
"""


@dataclass
class Ended:
    """How a launch ended: what it made or raised, and the events its listeners heard."""

    run: Run
    heard: list[str] = field(default_factory=list)
    outputs: dict[str, Artifact] = field(default_factory=dict)
    error: BaseException | None = None


def make_run(word: str, workspace: Path) -> Run:
    spec = parse_recipe(f"name: {word}\ndata: {{sources: rows.jsonl}}\ntrain: {{threads: 1, processes: 2}}")
    run = Run.open_or_create(workspace, spec)
    run.stage_key = "f00d"
    with run.store.create("Dataset", "abc", producer={}) as draft:
        (draft.path / "tokens").write_text("tokens")
    run.record("run", "run/started", word)
    return run


def wait_for_training(run: Run) -> None:
    deadline = time.monotonic() + 60
    while not any(event.name == "train/loss" for event in run.events()):
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.05)


def carry_out(word: str, workspace: Path) -> Ended:
    """Launches two processes that do what the word says."""
    run = make_run(word, workspace)
    if word == "orphan":  # a launcher of its own, killed in the middle
        launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run.path)])
        wait_for_training(run)
        launcher.kill()
        launcher.wait()
        return Ended(run)
    ended = Ended(run)
    run.listeners.append(lambda event: ended.heard.append(event.name))
    if word == "stop":
        threading.Thread(target=lambda: (wait_for_training(run), run.stop(signal.SIGTERM)), daemon=True).start()
    inputs = {"dataset": run.store.find("Dataset", "abc")}
    try:
        ended.outputs = launch.train(run.recipe, run, inputs, 2, entry="launched_entry")  # type: ignore[arg-type]
    except Exception as error:
        ended.error = error
    return ended


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All launches, side by side: most of their time is the import of torch by torchrun."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "launched_entry.py").write_text(ENTRY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        with ThreadPoolExecutor(len(WORDS)) as pool:
            jobs = {word: pool.submit(carry_out, word, folder / word) for word in WORDS}
            yield {word: job.result() for word, job in jobs.items()}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("word", WORDS)
def test_no_process_is_left_behind(ended: dict[str, Ended], word: str) -> None:
    pids = [int(path.read_text()) for path in (ended[word].run.path / "launch").glob("rank-*.pid")]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a training process was left behind"
        time.sleep(0.05)


def test_two_processes_make_one_artifact_and_one_of_them_tells(ended: dict[str, Ended]) -> None:
    one = ended["reduce"]
    assert one.error is None
    assert (one.outputs["model"].path / "text").read_text() == "3 with 1 threadabc"
    assert one.heard == ["train/loss"]
    assert [event.name for event in one.run.events()] == ["run/started", "train/loss"]


def test_the_error_of_the_failing_rank_is_raised_with_its_exit_status(ended: dict[str, Ended]) -> None:
    error = ended["fail"].error
    assert isinstance(error, DataError)
    assert str(error).startswith("DAT-999 rows.jsonl:7: row 7 has nothing to learn")
    assert "try: mend it" in str(error)
    assert error.exit_status == 65


def test_a_killed_process_is_told_by_rank_and_ends_the_others(ended: dict[str, Ended]) -> None:
    error = ended["kill"].error
    assert isinstance(error, StoppedError)
    assert "RUN-031" in str(error)
    assert "the training process of rank 1 was killed by SIGKILL" in str(error)


def test_a_stop_reaches_all_processes_and_waits_for_the_one_that_saves(ended: dict[str, Ended]) -> None:
    error = ended["stop"].error
    assert isinstance(error, InterruptedRun)
    assert error.exit_status == 143
    assert "checkpoint/saved" in ended["stop"].heard
