"""The train stage: validation, best weights, early stopping, checkpoints, what is not finite, what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import LORA, WORSENING, small_training

from tunesmith.errors import DataError, ModelError, StoppedError, TrialPruned
from tunesmith.recipe.tree import EarlyStopping, Train
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.durable import hash_file
from tunesmith.runs.events import Event
from tunesmith.runs.store import sealed
from tunesmith.stages.train.checkpoint import TrainState
from tunesmith.stages.train.guards import note_non_finite, note_validation


def checkpoint_steps(workspace: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (workspace / "artifacts" / "checkpoint" / "abc").glob("step-*"))


# ------------------------------------------------------------------------------------------------ best and stopping


def test_the_best_weights_become_the_result(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(
        tmp_path, tiny_model_dir, [*WORSENING, "train.evaluate_every=1", "train.keep_checkpoints=2"]
    )
    result = training.train()
    losses = training.values("validation/loss")
    best = min(losses, key=losses.__getitem__)  # type: ignore[arg-type]
    assert 1 < best < 12, "the test needs a best step in the middle"
    assert result.notes["result_step"] == result.notes["best_step"] == best
    assert checkpoint_steps(tmp_path) == [best, 11, 12], "the newest two, besides the best"
    stored = load_file(tmp_path / "artifacts" / "checkpoint" / "abc" / f"step-{best:08d}" / "model.safetensors")
    made = load_file(result.path / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in stored.items())


def test_keep_last_takes_the_last_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = [
        *WORSENING,
        "train.evaluate_every=1",
        "train.keep=last",
        "train.save_every=12",
        "train.keep_checkpoints=1",
    ]
    training = small_training(tmp_path, tiny_model_dir, settings)
    result = training.train()
    assert (result.notes["best_step"], result.notes["result_step"]) == (3, 12)
    assert checkpoint_steps(tmp_path) == [12], "the best is not saved for its own sake"


def test_early_stopping_stops_after_its_patience_and_says_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = [*WORSENING, "train.evaluate_every=1", "train.early_stopping={patience: 2}"]
    training = small_training(tmp_path, tiny_model_dir, settings)
    result = training.train()
    assert result.notes["stopped_early"]
    assert (result.notes["steps"], result.notes["result_step"]) == (5, 3)
    assert training.values("train/stopped_early") == {5: 5}
    again = training.again()
    again.run.listeners.append(again.heard.append)
    again.run.store.folder("Model", "abc").rename(tmp_path / "away")
    assert again.train().notes["steps"] == 5, "stopped is stopped, after a resume as well"
    assert "train/loss" not in {event.name for event in again.heard}


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stops_at", "best"),
    [
        ([5, 4, 4.5, 3, 3.5, 3.6], 2, 0.0, 6, 4),
        ([5, 4, 3, 2], 1, 0.0, None, 4),
        ([5, 4.9, 4.8, 4.7], 2, 0.5, 3, 3),
        ([5, float("nan"), float("nan"), 4], 3, 0.0, None, 4),
        ([float("nan"), float("nan")], 2, 0.0, 2, None),
    ],
)
def test_patience_counts_validations_without_a_real_gain(
    losses: list[float], patience: int, min_delta: float, stops_at: int | None, best: int | None
) -> None:
    state, stopped = TrainState(), None
    train = Train(early_stopping=EarlyStopping(patience=patience, min_delta=min_delta))
    for step, loss in enumerate(losses, 1):
        state.step = step
        note_validation(state, {"loss": loss}, train)
        if state.stopped_by:
            stopped = step
            break
    assert (stopped, state.best_step) == (stops_at, best)


def test_without_validation_rows_the_last_weights_count_and_that_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, num_validation=0)
    assert training.train().notes["result_step"] == 8
    assert training.values("validation/loss") == {}
    (said,) = training.values("train/no_validation").values()
    assert "last weights" in said


def test_about_ten_validations_and_as_many_saves_by_default(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["train.max_steps=25", LORA])
    training.train()
    assert list(training.values("validation/loss")) == [*range(2, 25, 2), 25]
    assert set(training.values("checkpoint/saved")) <= {*range(2, 25, 2), 25}


def test_a_trial_that_is_given_up_leaves_at_its_validation_and_saves_nothing_more(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["train.evaluate_every=2", LORA])

    def give_up(event: Event) -> None:
        if event.name == "validation/loss" and event.step == 4:
            training.run.stop_for(TrialPruned("TUN-006", "others are better"))

    training.run.listeners.append(give_up)
    with pytest.raises(TrialPruned, match="others are better"):
        training.train()
    assert max(training.values("train/loss")) == 4
    assert set(training.values("checkpoint/saved")) == {2}


def test_a_stop_for_a_reason_of_our_own_saves_and_raises_the_reason(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["train.evaluate_every=2", LORA])

    def stop(event: Event) -> None:
        if event.name == "validation/loss" and event.step == 4:
            training.run.stop_for(StoppedError("TUN-007", "the time is spent"))

    training.run.listeners.append(stop)
    with pytest.raises(StoppedError, match="the time is spent"):
        training.train()
    assert 4 in training.values("checkpoint/saved")
    again = training.again()
    notes = again.train().notes
    assert [step for step, _ in notes["validations"]] == [2, 4, 6, 8], "the losses before the stop are not forgotten"
    assert notes["planned_steps"] == 8


# ---------------------------------------------------------------------------------------------------- not finite


def test_a_step_that_is_not_finite_is_withheld_and_its_rows_are_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = ["train.max_steps=6", "train.batch_size=5", "train.evaluate_every=6", LORA]
    training = small_training(tmp_path, tiny_model_dir, settings, bad_rows=1)
    result = training.train()
    (step,) = result.notes["skipped"]
    ((told_at, rows),) = training.values("train/nonfinite").items()
    assert told_at == step
    assert 30 in rows
    assert len(rows) == 5
    losses = training.values("train/loss")
    assert not torch.isfinite(torch.tensor(losses[step])), "told as it was, not hidden in a mean"
    assert all(torch.isfinite(torch.tensor(value)) for told, value in losses.items() if told != step)
    for value in load_file(result.path / "adapter_model.safetensors").values():
        assert torch.isfinite(value).all()


def test_training_stops_after_three_such_steps_in_a_row(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["train.batch_size=28"], bad_rows=4)
    with pytest.raises(ModelError, match=r"(?s)TRN-002 rows .*not finite in steps 1 to 3.*lower train\.learning_rate"):
        training.train()
    assert len(training.values("train/nonfinite")) == 3


def test_withheld_steps_that_are_not_neighbours_do_not_stop() -> None:
    state = TrainState()
    for step in (1, 2, 4, 5, 7):
        note_non_finite(state, step, [step])
    assert state.skipped == [1, 2, 4, 5, 7]


# ------------------------------------------------------------------------------------------------ what it refuses


def test_rows_with_nothing_to_learn_are_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, num_train=0)
    with pytest.raises(DataError, match=r"TRN-005 data: 0 training rows, and no token of them is learned"):
        training.train()


def test_token_ids_beyond_the_embedding_are_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir)
    tokens = training.inputs["dataset"].path / "tokens.npy"
    data = bytearray(tokens.read_bytes())
    data[-4:] = (9999).to_bytes(4, "little")
    tokens.write_bytes(data)
    with pytest.raises(ModelError, match=r"TRN-007 model\.base: the rows hold token id 9999, and the model has \d+"):
        training.train()


def test_a_checkpoint_with_a_nan_is_never_written(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tunesmith.stages.train.checkpoint import Checkpoints

    training = small_training(tmp_path, tiny_model_dir)
    checkpoints = Checkpoints(training.run, keep=2)
    with pytest.raises(ModelError, match="TRN-001 train: step 4: b holds a value that is not finite"):
        checkpoints.save(TrainState(step=4), {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, {})
    assert checkpoints.steps() == []


# -------------------------------------------------------------------------------------------------- what it makes


def test_full_fine_tuning_makes_a_complete_model_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = small_training(tmp_path, tiny_model_dir).train()
    assert result.kind == "Model"
    assert {path.name for path in tiny_model_dir.iterdir()} <= {path.name for path in result.path.iterdir()}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(result.path), AutoTokenizer.from_pretrained(result.path)
    assert model.config.use_cache
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model_dir).chat_template


def test_the_result_says_what_it_was_made_with(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [LORA, "train.micro_batch=auto"])
    training.run.write_plan({"choices": {"micro_batch": 3, "gradient_checkpointing": True}})
    result = training.train()
    assert result.kind == "Adapter"
    notes = result.notes
    assert (notes["micro_batch"], notes["gradient_checkpointing"]) == (3, True), "as the plan chose"
    assert (notes["precision"], notes["attention"], notes["threads"], notes["processes"]) == ("fp32", "sdpa", 1, 1)
    assert notes["steps"] == 8
    assert notes["tokens"] == sum(
        Dataset(training.inputs["dataset"].path).lengths()[example]
        for step in range(1, 9)
        for example in steps_of(training)[step]
    )
    assert set(result.manifest["producer"]) >= {"stage", "version", "recipe", "inputs", "base"}


def steps_of(training: object) -> dict[int, list[int]]:
    from tunesmith.stages.train.batches import Order

    recipe = training.recipe  # type: ignore[attr-defined]
    order = Order.of(training.dataset.split("train"), recipe.seed, recipe.train)  # type: ignore[attr-defined]
    return {number: order.step(number) for number in range(1, order.num_steps + 1)}


def test_every_step_is_told_with_loss_rate_norm_time_and_speed(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [LORA])
    training.train()
    for name in ("loss", "learning_rate", "grad_norm", "step_seconds", "tokens_per_second"):
        values = training.values(f"train/{name}")
        assert list(values) == list(range(1, 9)), name
        assert all(isinstance(value, (int, float)) and value >= 0 for value in values.values())
    assert next(iter(training.values("train/peak_memory").values())) > 0
    assert training.values("train/steps") == {None: 8}


def test_the_probe_measures_the_longest_rows_and_leaves_no_gradient(tiny_model_dir: Path, tmp_path: Path) -> None:
    chosen = small_training(tmp_path / "chosen", tiny_model_dir, ["train.micro_batch=auto", LORA])
    chosen.run.write_plan({"choices": {"micro_batch": 2}})
    given = small_training(tmp_path / "given", tiny_model_dir, ["train.micro_batch=2", LORA])
    one, two = (training.train().path / "adapter_model.safetensors" for training in (chosen, given))
    assert one.read_bytes() == two.read_bytes()
    assert chosen.values("probe/micro_batch") == {None: 2}
    assert chosen.values("probe/seconds")[None] > 0
    assert given.values("probe/micro_batch") == {}, "what the user wrote is not second-guessed"


def test_other_threads_at_a_resume_are_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [LORA])
    training.train()
    state = tmp_path / "artifacts" / "checkpoint" / "abc" / "step-00000008" / "state.json"
    manifest = state.with_name("manifest.json")
    text = state.read_text().replace('"threads": 1', '"threads": 7')
    told = json.loads(manifest.read_bytes())
    del told["sha256"]
    state.write_text(text)
    told["files"]["state.json"]["sha256"] = hash_file(state)
    manifest.write_bytes(sealed(told))
    again = training.again()
    again.train()
    (said,) = again.values("train/threads_changed").values()
    assert "from 7 to 1" in said


def test_bf16_on_a_cpu_trains_with_fp32_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["model.precision=bf16", "train.max_steps=3"])
    result = training.train()
    assert result.notes["precision"] == "bf16"
    assert {value.dtype for value in load_file(result.path / "model.safetensors").values()} == {torch.float32}
    exact = small_training(tmp_path / "fp32", tiny_model_dir, ["train.max_steps=3"])
    exact.train()
    for step, loss in exact.values("train/loss").items():
        assert training.values("train/loss")[step] == pytest.approx(loss, abs=0.05)
        assert training.values("train/loss")[step] != loss


def test_the_stage_is_light_to_ask(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, importlib; from tunesmith.stages.train import INFO; "
        "module, name = INFO.externals.split(':'); getattr(importlib.import_module(module), name); "
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
