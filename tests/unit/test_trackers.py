"""The real libraries: what a run told, read back by each tracker's own reader; dead servers; secrets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow_server import MlflowServer, wait_until
from small_training import LORA, small_training
from wandb_server import WandbServer

from tunesmith.recipe import parse_recipe
from tunesmith.runs.run import Run
from tunesmith.tracking import Sinks, catch_up, feeder, sinks
from tunesmith.tracking.facts import Point, RunFacts, Summary
from tunesmith.tracking.state import TrackerState

SECRETS = {
    "WANDB_API_KEY": "fake0wandb0key0fake0wandb0key0fake0wandb0",
    "MLFLOW_TRACKING_TOKEN": "fake-mlflow-token-1",
    "HF_TOKEN": "hf_fakefakefakefake",
}
LOCAL = "track: {tensorboard: {}, wandb: {mode: offline, project: p, tags: [baseline]}, mlflow: {}, trackio: {}}"
STEPS = range(1, 13)
REDONE = (9, 10)


def make_run(workspace: Path, text: str) -> Run:
    run = Run.open_or_create(workspace, parse_recipe(f"name: small\ndata: {{sources: rows.jsonl}}\n{text}"))
    run.record("run", "run/started", "small")
    return run


def first_attempt(workspace: Path, text: str) -> Run:
    """Killed after step 10, the last checkpoint being that of step 8."""
    run = make_run(workspace, text)
    for step in range(1, 11):
        run.record_step("train", step, {"train/loss": (1 / step, "nats"), "train/learning_rate": (0.1, "")})
    return run


def second_attempt(workspace: Path, text: str) -> Run:
    """Goes on from step 8; the loss of the redone steps is another one, so that it shows whose is kept."""
    run = make_run(workspace, text)
    run.write_plan({"figures": {"steps": 12}})
    run.write_environment({"cpu": "a processor"})
    run.record("train", "train/resumed", 8)
    for step in range(9, 13):
        run.record_step("train", step, {"train/loss": (1 / step + 7, "nats"), "train/learning_rate": (0.1, "")})
    run.record("train", "validation/loss", 0.25, step=12)
    run.record("train", "train/result_step", 12)
    run.record("evaluate", "evaluate/exact_match", {"part": "test", "base": 0.125, "tuned": 0.5})
    run.record("evaluate", "evaluate/gate", "ship")
    (run.path / "report.html").write_text("<html>the report</html>")
    return run


def loss(step: int, *, last_attempt: bool) -> float:
    return 1 / step + (7 if step > 10 or (last_attempt and step in REDONE) else 0)


def feed(run: Run, name: str, word: str) -> subprocess.CompletedProcess[bytes]:
    """One session of a tracker's own process, as the command starts it."""
    command = [sys.executable, "-P", "-m", "tunesmith.tracking.feed", str(run.path), name, str(run.attempt), "1"]
    return subprocess.run(command, input=word.encode(), capture_output=True, check=True, env={**os.environ, **SECRETS})


def no_secret_below(folder: Path) -> int:
    """Asserts that no file holds a planted secret; returns how many were looked at."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in paths:
        content = path.read_bytes()
        for name, value in SECRETS.items():
            assert value.encode() not in content, f"{path} holds {name}"
    return len(paths)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was killed and went on, told to all trackers that need no server; each session in its real process."""
    workspace = tmp_path_factory.mktemp("told")
    names = ("mlflow", "wandb", "trackio", "tensorboard")
    with ThreadPoolExecutor() as pool:
        run = first_attempt(workspace, LOCAL)
        list(pool.map(lambda name: feed(run, name, ""), names))  # nobody says how it ended
        run = second_attempt(workspace, LOCAL)
        list(pool.map(lambda name: feed(run, name, "done 60\n"), names))
    return run


# ----------------------------------------------------------------------------------------------- read back, all here


def test_tensorboards_own_reader_finds_each_step_once_with_the_last_attempt(told: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = (told.path / "tensorboard").iterdir()
    found = EventAccumulator(str(path.parent)).Reload()
    values = {event.step: event.value for event in found.Scalars("train/loss")}
    assert [event.step for event in found.Scalars("train/loss")] == list(STEPS)
    assert values == pytest.approx({step: loss(step, last_attempt=True) for step in STEPS})
    assert [event.step for event in found.Scalars("validation/loss")] == [12]
    (score,) = found.Scalars("evaluate/exact_match/test/tuned")
    assert (score.step, score.value) == (12, 0.5)
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert texts["evaluate/gate/text_summary"] == "ship"
    assert "| train.learning_rate | 0.0002 |" in texts["recipe/text_summary"]
    assert "a processor" in texts["environment/text_summary"]
    assert '"steps": 12' in texts["plan/text_summary"]
    times = [event.wall_time for event in found.Scalars("train/loss")]
    events = {event.step: event.time for event in told.events() if event.name == "train/loss"}
    assert times == pytest.approx([events[step] for step in STEPS], abs=0.01), "when it was measured, not when told"


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy")  # MLflow's own, with this SQLAlchemy
def test_mlflows_own_client_finds_one_run_with_each_step_once(told: Run) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{told.workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tunesmith")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(STEPS)
    found = {metric.step: metric.value for metric in history}
    assert found == pytest.approx({step: loss(step, last_attempt=False) for step in STEPS}), "told once, so the first"
    (score,) = client.get_metric_history(run.info.run_id, "evaluate/exact_match/test/tuned")
    assert (score.step, score.value) == (12, 0.5)
    assert (run.info.status, run.info.run_name) == ("FINISHED", told.id)
    assert run.data.tags["evaluate/gate"] == "ship"
    assert run.data.params["train.learning_rate"] == "0.0002"
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "recipe.json", "plan.json", "environment.json"}
    assert list((told.workspace / "mlflow-artifacts").rglob("report.html"))


def test_trackios_own_store_holds_one_run_with_each_step_once(told: Run) -> None:
    import json
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(told.workspace / "trackio" / "tunesmith.db")) as store:
        rows = [(step, json.loads(values)) for step, values in store.execute("select step, metrics from metrics")]
        runs = {name for (name,) in store.execute("select distinct run_name from metrics")}
        (config,) = (json.loads(text) for (text,) in store.execute("select config from configs"))
    assert runs == {told.id}
    found = {step: values["train/loss"] for step, values in rows if "train/loss" in values}
    assert Counter(step for step, values in rows if "train/loss" in values) == Counter(STEPS)
    assert found == pytest.approx({step: loss(step, last_attempt=False) for step in STEPS})
    (scores,) = (values for _, values in rows if values.get("end") == "done")
    assert (scores["evaluate/exact_match/test/tuned"], scores["evaluate/gate"]) == (0.5, "ship")
    assert config["train.learning_rate"] == 0.0002


def test_wandbs_own_sync_finds_one_offline_run_with_each_step_once_and_the_last_attempt(
    told: Run, tmp_path: Path
) -> None:
    (offline,) = (told.path / "track" / "wandb").glob("offline-run-*")
    with WandbServer() as server:
        command = [sys.executable, "-m", "wandb", "sync", str(offline)]
        env = {**os.environ, **SECRETS, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)}
        subprocess.run(command, check=True, capture_output=True, env=env, cwd=tmp_path)
    (run,) = server.runs.values()
    assert [row["_step"] for row in run.history] == list(STEPS)
    assert [row["train/loss"] for row in run.history] == pytest.approx([loss(s, last_attempt=True) for s in STEPS])
    assert run.history[-1]["validation/loss"] == 0.25
    assert_wandb_summary(told, run)


def assert_wandb_summary(told: Run, run: object) -> None:
    assert (run.summary["evaluate/gate"], run.summary["evaluate/exact_match/test/tuned"]) == ("ship", 0.5)  # type: ignore[attr-defined]
    assert run.config["train"]["learning_rate"] == 0.0002  # type: ignore[attr-defined]
    assert run.config["environment"]["cpu"] == "a processor"  # type: ignore[attr-defined]
    assert run.config["plan"]["figures"]["steps"] == 12  # type: ignore[attr-defined]
    assert (run.display_name, run.tags) == (told.id, ["baseline"])  # type: ignore[attr-defined]
    assert run.files["report.html"] == b"<html>the report</html>"  # type: ignore[attr-defined]


def test_no_tracker_writes_a_secret(told: Run) -> None:
    assert no_secret_below(told.workspace) > 20
    for name in ("mlflow", "wandb", "trackio", "tensorboard"):
        state = TrackerState(told.path, name)
        assert not state.is_behind
        assert state.known["problem"] == ""


# -------------------------------------------------------------------------------------------------------- servers


def test_wandb_online_goes_on_in_the_same_run_behind_the_servers_last_step(tmp_path: Path) -> None:
    with WandbServer() as server:
        text = f"track: {{wandb: {{url: '{server.url}', project: p, tags: [baseline]}}}}"
        feed(first_attempt(tmp_path, text), "wandb", "")
        (run,) = server.runs.values()
        assert [row["_step"] for row in run.history] == list(range(1, 10)), "step 10 might not be complete"
        assert run.exit_codes == [1]
        told = second_attempt(tmp_path, text)
        feed(told, "wandb", "done 60\n")
        assert list(server.runs.values()) == [run]
    assert [row["_step"] for row in run.history] == list(STEPS)
    assert run.history[9]["train/loss"] == pytest.approx(loss(10, last_attempt=True))
    assert (run.exit_codes[-1], run.sessions) == (0, 2)
    assert_wandb_summary(told, run)
    assert server.authorised, "the key was shown to the server"
    assert no_secret_below(tmp_path) > 8


def test_mlflow_over_http_goes_on_in_the_same_run(tmp_path: Path) -> None:
    with MlflowServer() as server:
        text = f"track: {{mlflow: {{uri: '{server.url}', experiment: e, name: mine, tags: [baseline]}}}}"
        feed(first_attempt(tmp_path, text), "mlflow", "")
        (run,) = server.runs.values()
        assert run.status == "KILLED"
        feed(second_attempt(tmp_path, text), "mlflow", "done 60\n")
        assert list(server.runs.values()) == [run]
    assert sorted(m["step"] for m in run.metrics if m["key"] == "train/loss") == list(STEPS)
    assert (run.status, run.name, run.tags["baseline"], run.tags["evaluate/gate"]) == ("FINISHED", "mine", "", "ship")
    assert run.files["report.html"] == b"<html>the report</html>"
    assert server.experiments == {"e": "1"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits at the end, so that a test waits for a dead server no longer than it must."""
    monkeypatch.setattr(sinks, "DRAIN_S", 1.0)
    monkeypatch.setattr(sinks, "HURRIED_DRAIN_S", 1.0)
    monkeypatch.setattr(feeder, "GRACE_S", 1.0)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@dataclass
class Calls:
    """What this process did that could have waited for a tracker."""

    connections: int = 0
    counting: bool = True

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.counting and event == "socket.connect":
            self.connections += 1


@pytest.fixture
def calls() -> Iterator[Calls]:
    found = Calls()
    sys.addaudithook(found)  # it stays for good, so it is told when to stop counting
    yield found
    found.counting = False


@pytest.mark.usefixtures("quick")
def test_a_server_that_hangs_neither_waits_in_the_training_nor_changes_it(
    tiny_model_dir: Path, tmp_path: Path, calls: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [LORA, "train.max_steps=6"]
    alone = small_training(tmp_path / "alone", tiny_model_dir, settings).train()
    with MlflowServer("hangs") as server:
        urls = [f"track={{wandb: {{url: '{server.url}'}}, mlflow: {{uri: '{server.url}'}}}}"]
        training = small_training(tmp_path / "tracked", tiny_model_dir, [*settings, *urls])
        told = Sinks(training.recipe.track.to, training.run)
        training.run.listeners.append(told)
        result = training.train()
        processes = [feeder.process for feeder in told.feeders]
        assert len(processes) == 2
        assert calls.connections == 0, "nothing of a tracker happens in the process that trains"
        told.close("done")
        assert all(process.poll() is not None for process in processes), "none is left behind"
    assert (result.path / "adapter_model.safetensors").read_bytes() == (
        alone.path / "adapter_model.safetensors"
    ).read_bytes()
    said = capfd.readouterr().err
    for name in ("wandb", "mlflow"):
        assert said.count(f"tracker {name} has been told up to step 0 only") == 1
    assert no_secret_below(tmp_path) > 10


@pytest.mark.usefixtures("quick")
def test_a_server_that_dies_in_the_middle_and_comes_back_has_missed_nothing(tmp_path: Path) -> None:
    with MlflowServer() as server:
        run = make_run(tmp_path, f"track: {{mlflow: {{uri: '{server.url}'}}}}")
        told = Sinks(run.recipe.track.to, run)
        run.listeners.append(told)

        def steps() -> list[int]:
            return sorted(m["step"] for kept in server.runs.values() for m in kept.metrics if m["key"] == "train/loss")

        for step in (1, 2, 3):
            run.record("train", "train/loss", 1.0, step=step)
        wait_until(lambda: steps() == [1, 2, 3])
        server.mode = "refuses"
        asked = len(server.asked)
        for step in (4, 5):
            run.record("train", "train/loss", 1.0, step=step)
        wait_until(lambda: len(server.asked) > asked and TrackerState(run.path, "mlflow").known["problem"])
        told.feeders[0].look()
        server.mode = "well"
        run.record("train", "train/loss", 1.0, step=6)
        wait_until(lambda: steps() == [1, 2, 3, 4, 5, 6])
        told.close("done")
        assert len(server.runs) == 1
    assert TrackerState(run.path, "mlflow").known["problem"] == ""
    assert "503" in (run.path / "track" / "mlflow.log").read_text()


@pytest.mark.usefixtures("quick")
def test_what_nobody_listened_to_goes_out_when_the_same_command_finds_nothing_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MlflowServer()
    url = server.url
    server.server.server_close()  # the port is free again: connections are refused
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//me:pa55word@"))
    run = make_run(tmp_path, "track: [mlflow]")
    told = Sinks(run.recipe.track.to, run)
    run.listeners.append(told)
    for step in (1, 2, 3):
        run.record("train", "train/loss", 1.0, step=step)
    wait_until(lambda: TrackerState(run.path, "mlflow").known["problem"])
    told.close("stopped")
    said = capfd.readouterr().err
    assert "has been told up to step 0 only" in said
    assert "goes out when the same command is run again" in said
    with MlflowServer() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setattr(sinks, "DRAIN_S", 30.0)
        catch_up(run.recipe.track.to, run)
        (kept,) = server.runs.values()
        assert [metric["step"] for metric in kept.metrics if metric["key"] == "train/loss"] == [1, 2, 3]
        asked = len(server.asked)
        catch_up(run.recipe.track.to, run)
        assert len(server.asked) == asked, "nothing is missing any more, so nothing is opened"
    assert not any(b"pa55word" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.usefixtures("quick")
def test_a_second_ctrl_c_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MlflowServer("hangs") as server:
        run = make_run(tmp_path, f"track: {{mlflow: {{uri: '{server.url}'}}}}")
        told = Sinks(run.recipe.track.to, run)
        run.listeners.append(told)
        run.record("train", "train/loss", 1.0, step=1)

        def interrupt(self: object, deadline: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(feeder.Feeder, "wait", interrupt)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            told.close("done")
        assert told.feeders[0].process.poll() is not None
        assert time.monotonic() - started < 20, "it does not wait for the server"


# ------------------------------------------------------------------------------------------------------- full disk


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the writer's own thread
def test_a_tensorboard_folder_that_fills_up_loses_nothing_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.record_writer import RecordWriter

    from tunesmith.tracking.tensorboard import make

    run = make_run(tmp_path, "track: [tensorboard]")
    facts = RunFacts(run.id, "key", run.path, tmp_path, run.recipe, run.recipe.model_dump(mode="json"), 1)
    points = [Point("train/loss", step, float(step), 0.0) for step in range(1, 6)]
    tracker = make(run.recipe)
    tracker.open(facts)
    tracker.log(points[:2])
    write, room = RecordWriter.write, [False]

    def full(self: RecordWriter, data: bytes) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        tracker.log(points[2:])
    with pytest.raises(OSError, match="No space left"):
        tracker.open(facts)
    assert EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("train/loss"), "what was there stays"
    room[0] = True
    tracker.open(facts)
    tracker.log(points)
    tracker.close(Summary("done", 5))
    (path,) = (run.path / "tensorboard").iterdir()
    found = EventAccumulator(str(path.parent)).Reload().Scalars("train/loss")
    assert [event.step for event in found] == [1, 2, 3, 4, 5]


NO_ROOM = """
import sys
from tunesmith.runs.run import Run
from tunesmith.tracking import trackio
from tunesmith.tracking.facts import Point, RunFacts
trackio.STORED_WITHIN_S = 0.7
run = Run.open(sys.argv[1])
tracker = trackio.make(run.recipe)
tracker.open(RunFacts(run.id, "key", run.path, run.workspace, run.recipe, {}, 1))
tracker.log([Point("train/loss", 1, 0.5, 0.0), Point("train/loss", 2, 0.5, 0.0)])
"""


def test_trackio_does_not_pretend_to_have_stored_something(tmp_path: Path) -> None:
    """Its log() only warns, on a stream that nobody reads, when the folder of its store cannot be written."""
    run = make_run(tmp_path, "track: [trackio]")
    (tmp_path / "trackio").write_text("a file in the way of the folder")
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(run.path)], capture_output=True, text=True, check=False)
    assert "RuntimeError: 2 steps did not reach Trackio's store within 0.7 s" in done.stderr
