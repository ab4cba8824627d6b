"""Optimizers by their names: the rule itself, the keys that reach it, its state saved and restored bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.recipe.tree import Train
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.optimizer import expected_state, make_optimizer

TYPES = ("adamw", "adamw_8bit", "lion", "lion_8bit", "adafactor", "sgd")
RATE = 1e-2


def make_engine(kind: str, **keys: Any) -> LocalEngine:
    """128 x 64 weights, large enough for 8-bit state, and a bias."""
    torch.manual_seed(0)
    engine = LocalEngine(None)
    train = Train(optimizer={"type": kind, **keys}, learning_rate=RATE)
    engine.wrap(nn.Linear(64, 128), lambda parameters: make_optimizer(parameters, train))
    return engine


def steps(engine: LocalEngine, first: int, last: int) -> None:
    """Updates with gradients that follow from the step's number alone."""
    for number in range(first, last + 1):
        draw = torch.Generator().manual_seed(number)
        for _, parameter in engine.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        assert engine.step(torch.tensor(1.0)).finite


def weights(engine: LocalEngine) -> torch.Tensor:
    return engine.whole_parameters()["weight"]


def state_bytes(engine: LocalEngine) -> int:
    return sum(
        value.numel() * value.element_size()
        for name, value in engine.gather_state().items()
        if value.ndim and not name.startswith("qmap")
    )


@pytest.mark.parametrize("kind", TYPES)
def test_a_restored_state_goes_on_bit_for_bit(kind: str) -> None:
    keys = {"momentum": 0.9} if kind == "sgd" else {}
    straight, stopped = make_engine(kind, **keys), make_engine(kind, **keys)
    start = weights(straight)
    steps(straight, 1, 6)
    steps(stopped, 1, 3)
    resumed = make_engine(kind, **keys)
    saved = stopped.gather_state()
    resumed.load_state(stopped.whole_parameters(), saved)
    again = resumed.gather_state()
    assert saved
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in saved.items())
    steps(resumed, 4, 6)
    assert torch.equal(weights(resumed), weights(straight))
    assert not torch.equal(weights(straight), start)
    without = make_engine(kind, **keys)
    without.load_state(stopped.whole_parameters(), None)
    steps(without, 4, 6)
    assert not torch.equal(weights(without), weights(straight)), "the state matters"


@pytest.mark.parametrize("kind", TYPES)
def test_state_takes_the_room_that_the_plan_and_the_probe_count_with(kind: str) -> None:
    engine = make_engine(kind)
    steps(engine, 1, 1)
    train = Train(optimizer={"type": kind})
    # The bias is too small for 8 bits; Adafactor keeps rows and columns, which the plan counts as nothing.
    slack = (64 + 128 + 128) * 8
    assert abs(state_bytes(engine) - expected_state(engine.parameters, train)) <= slack


@pytest.mark.parametrize(("kind", "slots"), [("adamw_8bit", 2), ("lion_8bit", 1)])
def test_eight_bit_state_really_is_bytes(kind: str, slots: int) -> None:
    engine = make_engine(kind)
    steps(engine, 1, 2)
    state = engine.gather_state()
    for slot in range(1, slots + 1):
        assert state[f"state{slot}.weight"].dtype == torch.uint8
        assert state[f"absmax{slot}.weight"].shape == (128 * 64 // 256,)
        assert len(state[f"state{slot}.weight"].unique()) > 16, "and they hold something"
        assert state[f"state{slot}.bias"].dtype == torch.float32, "small tensors keep fp32"


def test_adamw_in_eight_bits_follows_adamw() -> None:
    exact, packed = make_engine("adamw"), make_engine("adamw_8bit")
    start = weights(exact)
    for engine in (exact, packed):
        steps(engine, 1, 5)
    one, other = weights(exact) - start, weights(packed) - start
    assert not torch.equal(one, other)
    assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_lion_is_the_sign_of_an_average() -> None:
    """Chen et al. 2023 (arXiv 2302.06675), algorithm 2."""
    engine = make_engine("lion", beta1=0.8, beta2=0.95, weight_decay=0.1)
    expected, average = weights(engine), torch.zeros(128, 64)
    steps(engine, 1, 3)
    for number in range(1, 4):
        gradient = torch.randn(128, 64, generator=torch.Generator().manual_seed(number))
        direction = (0.8 * average + 0.2 * gradient).sign()
        expected = expected * (1 - RATE * 0.1) - RATE * direction
        average = 0.95 * average + 0.05 * gradient
    torch.testing.assert_close(weights(engine), expected, atol=1e-6, rtol=1e-6)


def test_adafactor_keeps_a_row_and_a_column() -> None:
    """Shazeer and Stern 2018 (arXiv 1804.04235), algorithm 4 without momentum."""
    engine = make_engine("adafactor", beta2_decay=-0.5)
    expected, rows, columns = weights(engine), torch.zeros(128, 1), torch.zeros(1, 64)
    steps(engine, 1, 2)
    for number in (1, 2):
        gradient = torch.randn(128, 64, generator=torch.Generator().manual_seed(number))
        decay = 1 - number**-0.5
        rows = decay * rows + (1 - decay) * gradient.square().mean(1, keepdim=True)
        columns = decay * columns + (1 - decay) * gradient.square().mean(0, keepdim=True)
        update = gradient / (rows @ columns / rows.mean()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        size = max(1e-3, expected.square().mean().sqrt().item())
        expected = expected - min(RATE, 1 / math.sqrt(number)) * size * update
    torch.testing.assert_close(weights(engine), expected, atol=1e-6, rtol=1e-4)
    state = engine.gather_state()
    assert state["row_var.weight"].shape == (128, 1)
    assert state["col_var.weight"].shape == (1, 64)


@pytest.mark.parametrize("kind", TYPES)
def test_matrices_are_decayed_and_biases_are_not(kind: str) -> None:
    decayed, plain = make_engine(kind, weight_decay=0.5), make_engine(kind)
    for engine in (decayed, plain):
        steps(engine, 1, 1)
    assert weights(decayed).norm() < weights(plain).norm()
    assert torch.equal(decayed.whole_parameters()["bias"], plain.whole_parameters()["bias"])


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("adamw_8bit", "beta1", 0.5), ("adamw_8bit", "beta2", 0.9), ("adamw_8bit", "epsilon", 1e-2),
     ("lion_8bit", "beta1", 0.5), ("lion_8bit", "beta2", 0.9), ("adafactor", "beta2_decay", -0.3)],
)  # fmt: skip
def test_each_key_reaches_the_rule(kind: str, key: str, value: float) -> None:
    changed, plain = make_engine(kind, **{key: value}), make_engine(kind)
    for engine in (changed, plain):
        steps(engine, 1, 3)
    assert not torch.equal(weights(changed), weights(plain))
