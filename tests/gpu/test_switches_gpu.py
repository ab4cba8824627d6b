"""Speed switches on a CUDA device: each trains, answers or updates as the plain path does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from held_out import speaker
from small_training import Small, small_training
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tunesmith.modeling.forward import chunk_of
from tunesmith.modeling.load import load_model
from tunesmith.modeling.loss import chunked_cross_entropy, weighted_cross_entropy
from tunesmith.recipe.tree import Train
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import Item
from tunesmith.stages.train.optimizer import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Compilers warn about torch's own modules while they work.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
DEVICE = torch.device("cuda")
PLAIN = ("train.compile=off", "train.kernels=off", "train.max_steps=6", "train.evaluate_every=3")
NEAR = {"fp32": 1e-3, "bf16": 3e-2}  # of a loss: fp32 of kernels that add in another order, 8 bits of mantissa


@pytest.fixture(autouse=True)
def _exact_fp32() -> Iterator[None]:
    """No TF32, whose 10 bits would hide what is compared here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def trained(workspace: Path, model_dir: Path, precision: str, *settings: str) -> tuple[Small, dict[str, Any]]:
    """A short full fine-tuning, and the notes of its result."""
    training = small_training(workspace, model_dir, [*PLAIN, f"model.precision={precision}", *settings])
    return training, training.train().notes


def assert_same_losses(found: Small, plain: Small, precision: str) -> None:
    for name in ("train/loss", "validation/loss"):
        expected = plain.values(name)
        assert found.values(name).keys() == expected.keys() != set()
        for step, value in expected.items():
            assert found.values(name)[step] == pytest.approx(value, rel=NEAR[precision]), (name, step)


@pytest.mark.parametrize("precision", NEAR)
def test_compiled_layers_train_as_eager_ones(tiny_model_dir: Path, tmp_path: Path, precision: str) -> None:
    plain, _ = trained(tmp_path / "plain", tiny_model_dir, precision)
    found, notes = trained(tmp_path / "compiled", tiny_model_dir, precision, "train.compile=regional")
    assert_same_losses(found, plain, precision)
    assert notes["compile"]["seconds"] > 0


@pytest.mark.parametrize("precision", NEAR)
def test_liger_kernels_train_as_transformers_layers(tiny_model_dir: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("liger_kernel")
    plain, told = trained(tmp_path / "plain", tiny_model_dir, precision)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        found, notes = trained(tmp_path / "liger", tiny_model_dir, precision, "train.kernels=liger")
    assert (told["kernels"], notes["kernels"]) == ("torch", "liger")
    ran = {event.key for event in seen.key_averages()}
    assert any("LigerRMSNorm" in name for name in ran), "its norms ran"
    assert any("LigerRope" in name for name in ran), "its rotations ran"
    assert_same_losses(found, plain, precision)


def test_the_fused_optimizer_updates_as_the_plain_one() -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(64, 48, generator=draw), torch.randn(48, generator=draw)]
    gradients = [[torch.randn(value.shape, generator=draw) for value in start] for _ in range(3)]

    def after(fused: bool) -> list[Tensor]:
        weights = [nn.Parameter(value.to(DEVICE, copy=True)) for value in start]
        named = [(f"w{place}", weight) for place, weight in enumerate(weights)]
        optimizer = make_optimizer(named, Train(learning_rate=1e-2))
        assert optimizer.defaults["fused"], "training takes the fused one"
        for group in optimizer.param_groups:
            group["fused"] = fused
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.to(DEVICE)
            optimizer.step()
        return [weight.detach() for weight in weights]

    for fused, plain in zip(after(True), after(False), strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-5)


def test_a_static_cache_gives_the_answers_of_a_dynamic_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(speaker(tmp_path / "speaker", tiny_model_dir), device=DEVICE)
    draw = torch.Generator().manual_seed(0)
    items = [
        Item(row, "test", (), "", torch.randint(5, 256, (length,), generator=draw).tolist())
        for row, length in enumerate([3, 17, 9, 1, 30, 24])
    ]
    nobody = SimpleNamespace(pad_id=0, stop_ids=(), decode=lambda ids: "")
    dynamic, static = (
        generate_greedy(model, nobody, items, max_new_tokens=24, batch_size=4, cache=cache)
        for cache in ("dynamic", "static")
    )
    assert [answer.ids for answer in static] == [answer.ids for answer in dynamic]
    assert all(len(answer.ids) == 24 for answer in static)


@pytest.mark.parametrize("precision", NEAR)
def test_a_chunked_loss_has_the_gradients_of_whole_logits_in_less_memory(precision: str) -> None:
    num_places, hidden, vocabulary = 16_384, 64, 32_000
    assert chunk_of(vocabulary, DEVICE) <= num_places // 4, "several chunks"
    draw = torch.Generator().manual_seed(0)
    start_KD, weight_VD = (
        torch.randn(num_places, hidden, generator=draw),
        torch.randn(vocabulary, hidden, generator=draw),
    )
    targets_K = torch.randint(vocabulary, (num_places,), generator=draw).to(DEVICE)
    weights_K = torch.rand(num_places, generator=draw).to(DEVICE)

    def ran(way: str) -> tuple[list[Tensor], int]:
        head = nn.Linear(hidden, vocabulary, bias=False, device=DEVICE)
        head.weight.data.copy_(weight_VD * 0.1)
        hidden_KD = start_KD.to(DEVICE).requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            if way == "chunked":
                loss = chunked_cross_entropy(hidden_KD, head, targets_K, weights_K, chunk_of(vocabulary, DEVICE))
            else:
                loss = weighted_cross_entropy(head(hidden_KD).float(), targets_K, weights_K)
        (loss / num_places).backward()
        peak = torch.cuda.max_memory_allocated() - before
        return [loss.detach(), hidden_KD.grad, head.weight.grad], peak

    whole, whole_peak = ran("whole")
    chunked, chunked_peak = ran("chunked")
    for found, expected in zip(chunked, whole, strict=True):
        assert (found - expected).norm() <= {"fp32": 1e-4, "bf16": 2e-2}[precision] * expected.norm()
    assert chunked_peak < whole_peak / 2
