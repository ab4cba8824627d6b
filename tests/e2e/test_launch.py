"""Training by two real processes: what they make, whose error is shown, how a stop and a kill end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith import launch
from tunesmith.errors import DataError, InterruptedRun, StoppedError
from tunesmith.recipe import parse_recipe
from tunesmith.runs.run import Run

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


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Run, Callable[[], dict]]]:
    """A Run whose two processes do what its name says, and the function that launches them."""
    (tmp_path / "launched_entry.py").write_text(ENTRY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def prepare(word: str) -> tuple[Run, Callable[[], dict]]:
        spec = parse_recipe(f"name: {word}\ndata: {{sources: rows.jsonl}}\ntrain: {{threads: 1, processes: 2}}")
        run = Run.open_or_create(tmp_path / "work", spec)
        run.stage_key = "f00d"
        with run.store.create("Dataset", "abc", producer={}) as draft:
            (draft.path / "tokens").write_text("tokens")
        run.record("run", "run/started", word)
        return run, lambda: launch.train(spec, run, {"dataset": draft.artifact}, 2, entry="launched_entry")  # type: ignore[dict-item]

    return prepare


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(run: Run) -> None:
    pids = [int(path.read_text()) for path in (run.path / "launch").glob("rank-*.pid")]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a training process was left behind"
        time.sleep(0.05)


def test_two_processes_make_one_artifact_and_one_of_them_tells(start: Callable) -> None:
    run, train = start("reduce")
    heard = []
    run.listeners.append(heard.append)
    (model,) = train().values()
    assert (model.path / "text").read_text() == "3 with 1 threadabc"
    assert [event.name for event in heard] == ["train/loss"]
    assert [event.name for event in run.events()] == ["run/started", "train/loss"]
    wait_until_gone(run)


def test_the_error_of_the_failing_rank_is_raised_with_its_exit_status(start: Callable) -> None:
    run, train = start("fail")
    with pytest.raises(
        DataError, match=r"(?s)DAT-999 rows\.jsonl:7: row 7 has nothing to learn.*try: mend it"
    ) as caught:
        train()
    assert caught.value.exit_status == 65
    wait_until_gone(run)


def test_a_killed_process_is_told_by_rank_and_ends_the_others(start: Callable) -> None:
    run, train = start("kill")
    with pytest.raises(StoppedError, match="RUN-031 .*training process of rank 1 was killed by SIGKILL"):
        train()
    wait_until_gone(run)


def test_a_stop_reaches_all_processes_and_waits_for_the_one_that_saves(start: Callable) -> None:
    run, train = start("stop")

    def stop_when_training() -> None:
        while not any(event.name == "train/loss" for event in run.events()):
            time.sleep(0.05)
        run.stop(signal.SIGTERM)

    threading.Thread(target=stop_when_training, daemon=True).start()
    with pytest.raises(InterruptedRun, match="RUN-001 stopped by SIGTERM") as caught:
        train()
    assert caught.value.exit_status == 143
    assert "checkpoint/saved" in [event.name for event in run.events()]
    wait_until_gone(run)
