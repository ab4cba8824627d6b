"""The run folder: the same recipe goes on in it, a changed one names its parent, one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import FileError, InterruptedRun, StoppedError, UsageError
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.runs.events import Event
from tunesmith.runs.run import Run, list_runs


def recipe(text: str = "") -> Recipe:
    return parse_recipe(f"name: desk\ndata: {{sources: rows.jsonl}}\n{text}", folder=Path("/data"))


def test_the_same_recipe_goes_on_in_the_same_run_as_a_new_attempt(tmp_path: Path) -> None:
    first = Run.open_or_create(tmp_path, recipe())
    assert (first.attempt, first.parent) == (1, None)
    first.record("train", "train/loss", 0.5, step=1)
    second = Run.open_or_create(tmp_path, recipe())
    assert (second.id, second.attempt) == (first.id, 2)
    assert first.id.startswith("desk-")
    assert Run.open(first.path).recipe.hash() == recipe().hash()


def test_a_changed_recipe_is_a_new_run_that_names_its_parent_and_the_keys(tmp_path: Path) -> None:
    first = Run.open_or_create(tmp_path, recipe())
    Run.open_or_create(tmp_path, parse_recipe("name: other\ndata: {sources: rows.jsonl}\n"))
    second = Run.open_or_create(tmp_path, recipe("train: {learning_rate: 1.0e-3}"))
    assert second.id != first.id
    assert second.parent == {"run": first.id, "changed": {"train.learning_rate": [0.0002, 0.001]}}
    assert {run.id for run in list_runs(tmp_path)} >= {first.id, second.id}


def test_runs_open_by_id_by_its_start_by_folder_and_by_latest(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    for name in (run.id, run.id[:7], "latest", run.path, str(run.path)):
        assert Run.open(name, tmp_path).path.resolve() == run.path.resolve()
    Run.open_or_create(tmp_path, recipe("seed: 3"))
    with pytest.raises(UsageError, match="RUN-008 2 runs begin with 'desk'"):
        Run.open("desk", tmp_path)
    run.set_outputs("prepare", {})
    assert Run.open("desk", tmp_path).id == run.id, "the other one finished nothing"
    with pytest.raises(UsageError, match=f"RUN-008 there is no run 'nope'.*{run.id}".replace("*", "(?s:.)*")):
        Run.open("nope", tmp_path)
    with pytest.raises(UsageError, match=r"(?s)empty is no workspace.*go to the folder"):
        Run.open("latest", tmp_path / "empty")


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    script = (
        "import sys; from pathlib import Path; from tunesmith.runs.run import Run\n"
        "run = Run(Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
        "with run.lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(StoppedError, match=rf"RUN-010 run {run.id} is being worked on by process {holder.pid} on"),
        run.lock(),
    ):
        pass
    holder.kill()  # killed, not asked: the lock must go with the process
    holder.communicate()
    with run.lock():
        pass


def test_a_failing_listener_is_dropped_and_the_event_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ConnectionError("tracker is down")

    run.listeners = [broken, heard.append]
    run.record("train", "train/loss", 1.0, step=1, unit="nats")
    run.record("train", "train/loss", 0.5, step=2, unit="nats")
    assert [event.value for event in heard] == [1.0, 0.5] == [event.value for event in run.events()]
    assert capsys.readouterr().err.count("tracker broken failed and is left out") == 1


def test_a_process_that_is_not_the_writer_writes_nothing(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    run.is_writer = False
    run.record("train", "train/loss", 1.0, step=1)
    run.write_plan({"figures": {}})
    assert (run.events(), run.plan) == ([], None)


def test_outputs_are_remembered_and_forgotten_when_damaged(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    assert run.outputs("train") is None
    with run.store.create("Adapter", "abc", producer={}) as draft:
        (draft.path / "weights").write_text("weights")
    assert draft.artifact is not None
    run.set_outputs("train", {"model": draft.artifact})
    again = Run.open(run.path)
    assert again.outputs("train") == {"model": draft.artifact}
    (draft.artifact.path / "weights").write_text("")
    assert again.outputs("train") is None


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_leaving_after_a_signal_has_its_exit_status(tmp_path: Path, signum: int, status: int) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    assert not run.stopping
    run.stop(signum)
    assert run.stopping
    with pytest.raises(
        InterruptedRun, match=r"RUN-001 stopped by SIG.* after step 3; everything finished is saved"
    ) as caught:
        run.leave("after step 3")
    assert caught.value.exit_status == status


def test_a_file_that_was_edited_to_no_json_is_named(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, recipe())
    (run.path / "plan.json").write_text("{ a: 1")
    with pytest.raises(FileError, match=r"RUN-009 .*plan\.json cannot be read"):
        _ = run.plan


def test_a_recipe_of_another_version_is_no_obstacle_for_a_new_run(tmp_path: Path) -> None:
    old = Run.open_or_create(tmp_path, recipe())
    (old.path / "recipe.json").write_text('{"name": "desk", "a_key_of_the_future": 1}')
    assert Run.open_or_create(tmp_path, recipe("seed: 3")).parent is None
