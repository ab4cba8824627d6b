"""Killed or stopped anywhere and started again: the result is that of a straight run, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from small_training import LORA, LORA_DROPOUT, WORSENING, Small, small_training

from tunesmith.errors import FileError, InterruptedRun
from tunesmith.runs.events import Event
from tunesmith.runs.store import Artifact

SETTINGS = ["train.save_every=2", "train.evaluate_every=3", "train.micro_batch=auto", "train.max_steps=7"]
METHODS = {"full": [], "lora": [LORA], "dropout": [LORA_DROPOUT]}


class Killed(BaseException):
    """Passes every handler, as SIGKILL would."""


def weights(artifact: Artifact) -> bytes:
    (path,) = artifact.path.glob("*model.safetensors")
    return path.read_bytes()


def kill_at(training: Small, name: str, step: int | None) -> None:
    def listener(event: Event) -> None:
        if event.name == name and event.step == step:
            raise Killed

    training.run.listeners.append(listener)


def stop_at(training: Small, name: str, step: int) -> None:
    def listener(event: Event) -> None:
        if event.name == name and event.step == step:
            training.run.stop(signal.SIGTERM)

    training.run.listeners.append(listener)


@pytest.fixture(scope="module")
def straight(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, dict]]:
    found = {}
    for name, method in METHODS.items():
        training = small_training(tmp_path_factory.mktemp(name), tiny_model_dir, [*SETTINGS, *method])
        found[name] = weights(training.train()), training.values("train/loss")
    assert len({bits for bits, _ in found.values()}) == 3, "the three methods differ"
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_twice_ends_like_a_straight_one(
    straight: dict, tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, *METHODS[method]])
    for step in (3, 6):
        kill_at(training, "train/grad_norm", step)
        with pytest.raises(Killed):
            training.train()
        training = training.again()
    assert weights(training.train()) == straight[method][0]
    assert training.values("train/loss") == straight[method][1], "each step is told once and with the same loss"
    assert training.values("train/resumed") == {None: 4} or 4 in training.values("train/resumed").values()


@pytest.mark.parametrize(("event", "step"), [("checkpoint/saved", 2), ("validation/loss", 3), ("train/best", 6)])
def test_a_kill_around_a_checkpoint_or_a_validation_costs_nothing(
    straight: dict, tiny_model_dir: Path, tmp_path: Path, event: str, step: int
) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    kill_at(training, event, step)
    with pytest.raises(Killed):
        training.train()
    assert weights(training.again().train()) == straight["lora"][0]


def test_a_stop_saves_the_finished_step_and_goes_on_from_it(
    straight: dict, tiny_model_dir: Path, tmp_path: Path
) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    stop_at(training, "train/loss", 4)  # heard of after step 4, so step 5 is the last one finished
    with pytest.raises(InterruptedRun, match="after step 5 of 7") as caught:
        training.train()
    assert caught.value.exit_status == 143
    again = training.again()
    assert weights(again.train()) == straight["lora"][0]
    assert again.values("train/resumed") == {None: 5}


def test_a_validation_cut_short_by_a_stop_is_made_up_for(straight: dict, tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    stop_at(training, "train/grad_norm", 3)
    training.run.listeners.append(lambda event: None)
    with pytest.raises(InterruptedRun):
        training.train()
    again = training.again()
    assert weights(again.train()) == straight["lora"][0]
    assert sorted(again.values("validation/loss")) == [3, 6, 7]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    straight: dict, tiny_model_dir: Path, tmp_path: Path, name: str
) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    kill_at(training, "train/loss", 7)
    with pytest.raises(Killed):
        training.train()
    newest = sorted((tmp_path / "artifacts" / "checkpoint" / "abc").glob("step-*"))[-1]
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / name).write_bytes(data)
    again = training.again()
    assert weights(again.train()) == straight["lora"][0]
    (damage,) = {event.value for event in again.run.events() if event.name == "artifact/damaged"}
    assert "step-00000006" in damage
    assert name in damage
    assert again.values("train/resumed") == {None: 4}


def test_with_no_sound_checkpoint_training_stops_and_deletes_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    kill_at(training, "train/loss", 7)
    with pytest.raises(Killed):
        training.train()
    folders = sorted((tmp_path / "artifacts" / "checkpoint" / "abc").glob("step-*"))
    for folder in folders:
        (folder / "state.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file() and path.suffix != ".jsonl"}
    with pytest.raises(
        FileError, match=r"(?s)TRN-008 none of the 2 checkpoints .*step-00000006/state.json.*step-00000004"
    ):
        training.again().train()
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_finished_training_whose_result_was_lost_makes_it_again_without_a_step(
    straight: dict, tiny_model_dir: Path, tmp_path: Path
) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*SETTINGS, LORA])
    kill_at(training, "checkpoint/saved", 7)
    with pytest.raises(Killed):
        training.train()
    again = training.again()
    again.run.listeners.append(again.heard.append)
    assert weights(again.train()) == straight["lora"][0]
    assert not [event for event in again.heard if event.name == "train/loss"]


def test_a_lost_best_checkpoint_stops_with_the_key_that_helps(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [*WORSENING, "train.evaluate_every=1"])
    kill_at(training, "train/peak_memory", None)
    with pytest.raises(Killed):
        training.train()
    best, *_ = sorted((tmp_path / "artifacts" / "checkpoint" / "abc").glob("step-*"))
    (best / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"(?s)TRN-004 train\.keep: the best checkpoint \(step 3\).*train\.keep: last"):
        training.again().train()


def test_a_resume_does_not_count_a_validation_twice(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = [*WORSENING, "train.evaluate_every=1", "train.save_every=1", "train.early_stopping={patience: 2}"]
    training = small_training(tmp_path, tiny_model_dir, settings)
    kill_at(training, "train/loss", 5)  # step 4 was the first without a gain
    with pytest.raises(Killed):
        training.train()
    assert training.again().train().notes["steps"] == 5
