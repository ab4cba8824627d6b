"""The chunked loss: that of whole logits, with its gradients, while the logits of a micro-batch never exist at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradients import BATCH, step_gradients
from small_training import fill_dataset
from test_gradients import assert_close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.modeling.forward import collate, learned_nll
from tunesmith.modeling.load import load_model
from tunesmith.modeling.loss import chunked_cross_entropy, weighted_cross_entropy
from tunesmith.planner import activations
from tunesmith.planner.activations import loss_chunk
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train import objectives

K, D, V = 50, 24, 900


def inputs(bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    head = nn.Linear(D, V, bias=bias)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.5, generator=draw)
    hidden_KD = torch.randn(K, D, generator=draw).to(dtype).requires_grad_()
    targets_K = torch.randint(V, (K,), generator=draw)
    weights_K = torch.tensor([0.0, 0.5, 1.0, 3.0])[torch.randint(4, (K,), generator=draw)]
    return hidden_KD, head, targets_K, weights_K


def gradients(loss: Tensor, hidden_KD: Tensor, head: nn.Linear) -> dict[str, Tensor]:
    (0.37 * loss).backward()
    return {"loss": loss.detach(), "hidden": hidden_KD.grad, **{n: p.grad for n, p in head.named_parameters()}}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 25, 64])
def test_chunks_change_neither_loss_nor_gradient(chunk: int, bias: bool) -> None:
    hidden_KD, head, targets_K, weights_K = inputs(bias)
    expected = gradients(weighted_cross_entropy(head(hidden_KD), targets_K, weights_K), hidden_KD, head)
    hidden_KD, head, targets_K, weights_K = inputs(bias)
    found = gradients(chunked_cross_entropy(hidden_KD, head, targets_K, weights_K, chunk), hidden_KD, head)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-6 * float(value.abs().max()), rtol=1e-5)


def test_below_fp32_the_gradients_are_as_near_to_the_true_ones_as_those_of_whole_logits() -> None:
    """Each against fp32: full training under autocast, with fp32 weights."""
    hidden_KD, head, targets_K, weights_K = inputs()
    true = gradients(weighted_cross_entropy(head(hidden_KD), targets_K, weights_K), hidden_KD, head)
    errors = {}
    for name in ("whole", "chunked"):
        hidden_KD, head, targets_K, weights_K = inputs()
        with torch.autocast("cpu", torch.bfloat16):
            if name == "whole":
                loss = weighted_cross_entropy(head(hidden_KD).float(), targets_K, weights_K)
            else:
                loss = chunked_cross_entropy(hidden_KD, head, targets_K, weights_K, 16)
        found = gradients(loss, hidden_KD, head)
        assert found["weight"].dtype == torch.float32
        errors[name] = {key: float((found[key] - true[key]).norm() / true[key].norm()) for key in true}
    for key, error in errors["chunked"].items():
        assert error <= 1.5 * errors["whole"][key] + 1e-4, (key, errors)


def test_a_frozen_output_layer_gets_no_gradient_and_makes_none() -> None:
    hidden_KD, head, targets_K, weights_K = inputs()
    head.requires_grad_(False)
    with Largest() as seen:
        chunked_cross_entropy(hidden_KD, head, targets_K, weights_K, 8).backward()
    assert head.weight.grad is None
    assert hidden_KD.grad.abs().max() > 0
    assert seen.numbers < V * D, "nothing as large as the weights is made"


def test_nothing_to_learn_is_a_loss_of_zero_with_gradients() -> None:
    hidden_KD, head, targets_K, weights_K = inputs()
    loss = chunked_cross_entropy(hidden_KD[:0], head, targets_K[:0], weights_K[:0], 8)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(head.weight.grad.abs().max()) == 0.0


def test_a_loss_goes_backward_once() -> None:
    hidden_KD, head, targets_K, weights_K = inputs()
    loss = chunked_cross_entropy(hidden_KD, head, targets_K, weights_K, 8)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="goes backward once"):
        loss.backward()


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation makes; views of what is there do not count."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        there = {part.untyped_storage().data_ptr() for part in arguments if isinstance(part, Tensor)}
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in there:
                self.numbers = max(self.numbers, tensor.numel())
        return out


# ---------------------------------------------------------------------------------------------------- in the train stage


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return Dataset(folder)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_step_has_the_gradients_of_whole_logits(
    tiny_model_dir: Path, dataset: Dataset, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset.folder, "adapter": adapter, "micro_batch": BATCH}
    monkeypatch.setattr(objectives, "learned_hidden", lambda model, batch: None)
    whole = step_gradients(**settings)
    monkeypatch.undo()
    called = []
    inner = objectives.chunked_cross_entropy
    monkeypatch.setattr(objectives, "chunk_of", lambda vocabulary, device: 9)
    monkeypatch.setattr(
        objectives, "chunked_cross_entropy", lambda *told: called.append((len(told[2]), told[-1])) or inner(*told)
    )
    assert_close(step_gradients(**settings), whole)
    assert called
    assert all(learned > chunk for learned, chunk in called), "several chunks"


def test_validation_losses_exist_by_chunks_too(
    tiny_model_dir: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model_dir, device=torch.device("cpu"))
    batch = collate(dataset, list(range(12)))
    whole_K = learned_nll(model, batch).detach()
    monkeypatch.setitem(activations.LOGITS_AT_ONCE, True, 1)  # chunks of 64
    assert len(whole_K) > 64
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: rows.append(len(out)))
    with torch.no_grad():
        parts_K = learned_nll(model, batch)
    torch.testing.assert_close(parts_K, whole_K, atol=1e-6, rtol=1e-5)
    assert sum(rows) == len(whole_K)
    assert max(rows) == 64


@pytest.mark.parametrize(("vocabulary", "on_cpu"), [(400, True), (16_384, True), (151_936, True), (128_256, False)])
def test_a_chunk_is_bounded_in_memory_and_not_too_small(vocabulary: int, on_cpu: bool) -> None:
    chunk = loss_chunk(vocabulary, on_cpu=on_cpu)
    assert 64 <= chunk <= 4096
    assert chunk % 64 == 0
    assert chunk == 64 or chunk * vocabulary <= activations.LOGITS_AT_ONCE[on_cpu]
