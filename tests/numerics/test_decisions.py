"""What validations and callbacks decide is the same after any resume and for any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from gloo import GlooPair
from safetensors.torch import load_file
from small_training import Small, small_training

from tunesmith.errors import RecipeError
from tunesmith.runs.events import Event

OWN = """
def shortness(expected, answer, item):
    return 1 / (1 + len(answer))

class StopsAtFive:
    def on_step(self, facts):
        return "stop" if facts.step == 5 else None

class FailsAtTwo:
    def on_step(self, facts):
        return 1 / (facts.step - 2) and None
"""
SETTINGS = [
    "train.learning_rate=0.03", "train.schedule={type: plateau, warmup: 0, patience: 0, factor: 0.7}", "train.max_steps=9",
    "train.evaluate_every=2", "train.save_every=3", "train.best_metric=OWN:shortness",
    "train.early_stopping={metric: loss, patience: 9}", "train.validation.max_items=5", "train.validation.max_new_tokens=5",
]  # fmt: skip


class Killed(BaseException):
    """Passes every handler, as SIGKILL would."""


def decided(workspace: Path, own: Path, model: Path, *settings: str) -> Small:
    named = [setting.replace("OWN", str(own)) for setting in (*SETTINGS, *settings)]
    return small_training(workspace, model, named).allow()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_rates_answers_and_noise_go_on_as_if_nothing_had_happened(
    tiny_model_dir: Path, tmp_path: Path, own: Path
) -> None:
    straight = decided(tmp_path / "straight", own, tiny_model_dir, "train.gradient_noise=on")
    expected = straight.train()
    killed = decided(tmp_path / "killed", own, tiny_model_dir, "train.gradient_noise=on")
    for step in (5, 8):

        def kill(event: Event, at: int = step) -> None:
            if (event.name, event.step) == ("train/grad_norm", at):
                raise Killed

        killed.run.listeners.append(kill)
        with pytest.raises(Killed):
            killed.train()
        killed = killed.again()
    found = killed.train()
    assert (found.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    for name in ("train/learning_rate", "validation/own.py:shortness", "train/gradient_noise_scale", "train/best"):
        assert killed.values(name) == straight.values(name) != {}, name
    assert len(set(straight.values("train/learning_rate").values())) > 2, "the rate fell on the way"
    assert found.notes["best_value"] == expected.notes["best_value"]


def test_two_processes_decide_as_one(gloo_pair: GlooPair, tiny_model_dir: Path, tmp_path: Path, own: Path) -> None:
    settings = ("train.optimizer={type: sgd}", "train.callbacks=[OWN:StopsAtFive]", "train.gradient_noise=on")
    one = decided(tmp_path / "one", own, tiny_model_dir, *settings)
    alone = one.train()
    two = decided(tmp_path / "two", own, tiny_model_dir, *settings)
    folder, nothing = gloo_pair.call("gradients:train_stage", workspace=str(tmp_path / "two"), stage_key="abc")
    assert nothing is None
    assert alone.notes["steps"] == 5
    assert list(two.values("train/loss")) == [1, 2, 3, 4, 5], "the first process's callback stops both"
    assert two.values("validation/own.py:shortness") == pytest.approx(one.values("validation/own.py:shortness"))
    assert set(two.values("train/learning_rate").values()) == set(one.values("train/learning_rate").values())
    assert all(value > 0 for value in two.values("train/gradient_noise_scale").values())
    together = load_file(Path(folder) / "model.safetensors")
    for name, value in load_file(alone.path / "model.safetensors").items():
        assert float((together[name] - value).abs().max()) <= 1e-5, name


def outcome_of_stage(workspace: str) -> str:
    """What the stage came to in this process: the error's code, or "" when it left in good order."""
    from gradients import train_stage

    try:
        train_stage(workspace, "abc")
    except RecipeError as error:
        return error.code
    return ""


def test_when_the_callback_fails_both_save_and_leave(
    gloo_pair: GlooPair, tiny_model_dir: Path, tmp_path: Path, own: Path
) -> None:
    small = decided(tmp_path / "two", own, tiny_model_dir, "train.callbacks=[OWN:FailsAtTwo]")
    assert gloo_pair.call("test_decisions:outcome_of_stage", workspace=str(tmp_path / "two")) == ["TRN-052", ""]
    assert list(small.values("checkpoint/saved")) == [2]
