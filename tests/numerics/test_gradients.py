"""What must not change the mathematics of a step: micro-batches, padding, recomputation, processes."""

from __future__ import annotations

from pathlib import Path

import gradients
import pytest
import torch
import torch.nn.functional as F
from gloo import GlooPair
from gradients import BATCH, STEP, make_loop, step_gradients, updated_weights
from small_training import fill_dataset, small_training
from torch import Tensor

from tunesmith.modeling.load import load_model

CASES = [("full", 0.0), ("lora", 0.0), ("lora", 0.1)]


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return folder


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, f"{name} is zero: nothing was compared"
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def naive_gradients(model_dir: Path, loop: object) -> dict[str, Tensor]:
    """One example at a time through the model's own forward pass, unpadded, with weights and shift written out."""
    model = load_model(model_dir, device=gradients.CPU).train()
    examples = loop.order.step(STEP)  # type: ignore[attr-defined]
    nll_sum, weight_sum = torch.zeros(()), 0.0
    for example in examples:
        ids, spans, weights = loop.dataset.sequence(example)  # type: ignore[attr-defined]
        ids_T = torch.tensor(ids, dtype=torch.int64)
        logits_TV = model(input_ids=ids_T[None], attention_mask=torch.ones(1, len(ids_T))).logits[0]
        for (start, end), weight in zip(spans, weights, strict=True):
            for position in range(max(1, start), end):
                nll_sum = nll_sum + weight * F.cross_entropy(logits_TV[position - 1], ids_T[position])
                weight_sum += weight
    loss = nll_sum / weight_sum
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {**found, "loss": loss.detach(), "tokens": torch.tensor(float(sum(loop.lengths[examples])))}  # type: ignore[attr-defined]


def test_gradients_equal_a_naive_computation_without_padding(tiny_model_dir: Path, dataset_dir: Path) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset_dir}
    assert_close(step_gradients(**settings, micro_batch=4), naive_gradients(tiny_model_dir, make_loop(**settings)))


@pytest.mark.parametrize(("adapter", "dropout"), CASES)
def test_micro_batches_change_no_gradient(
    tiny_model_dir: Path, dataset_dir: Path, adapter: str, dropout: float
) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset_dir, "adapter": adapter, "dropout": dropout}
    whole = step_gradients(**settings, micro_batch=BATCH)
    for micro_batch in (1, 2, 4):
        assert_close(step_gradients(**settings, micro_batch=micro_batch), whole)


def test_dropout_does_change_gradients(tiny_model_dir: Path, dataset_dir: Path) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset_dir, "adapter": "lora"}
    without, with_dropout = step_gradients(**settings), step_gradients(**settings, dropout=0.1)
    assert not torch.allclose(without["loss"], with_dropout["loss"], atol=1e-6)


@pytest.mark.parametrize(("adapter", "dropout"), CASES[1:] + CASES[:1])
def test_recomputation_changes_no_gradient(
    tiny_model_dir: Path, dataset_dir: Path, adapter: str, dropout: float
) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset_dir, "adapter": adapter, "dropout": dropout}
    assert_close(step_gradients(**settings, recompute=True), step_gradients(**settings))


@pytest.mark.parametrize(("adapter", "dropout"), CASES)
def test_two_processes_have_the_gradients_of_one(
    gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path, adapter: str, dropout: float
) -> None:
    settings = {
        "model_dir": str(tiny_model_dir),
        "dataset_dir": str(dataset_dir),
        "adapter": adapter,
        "dropout": dropout,
    }
    one = step_gradients(**settings)
    for two in gloo_pair.call("gradients:step_gradients", **settings):
        assert_close(two, one)


def test_two_processes_update_as_one(gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path) -> None:
    settings = {"model_dir": str(tiny_model_dir), "dataset_dir": str(dataset_dir), "micro_batch": 1}
    one = updated_weights(**settings)
    first, second = gloo_pair.call("gradients:updated_weights", **settings)
    assert_close(first, one, tolerance=1e-5)
    assert all(torch.equal(first[name], second[name]) for name in first), "replicas stay equal bit for bit"


def test_the_stage_trains_in_two_processes_as_in_one(gloo_pair: GlooPair, tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    settings = ["train.max_steps=4", "train.evaluate_every=2", "train.micro_batch=auto", "train.optimizer={type: sgd}"]
    one = small_training(tmp_path / "one", tiny_model_dir, settings)
    alone = load_file(one.train().path / "model.safetensors")
    two = small_training(tmp_path / "two", tiny_model_dir, settings)
    folder, nothing = gloo_pair.call("gradients:train_stage", workspace=str(tmp_path / "two"), stage_key="abc")
    assert nothing is None
    together = load_file(Path(folder) / "model.safetensors")
    assert_close(together, alone, tolerance=1e-5)
    for name in ("train/loss", "validation/loss"):
        assert two.values(name).keys() == one.values(name).keys() != set()
        for step, value in one.values(name).items():
            assert two.values(name)[step] == pytest.approx(value, rel=1e-5)
    assert len([event for event in two.run.events() if event.name == "train/loss"]) == 4, "one process tells"
