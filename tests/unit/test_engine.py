"""The engine: what is not finite never reaches weights or averages; clipping; the loss scale of fp16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.recipe.tree import Train
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.engines.loss_scale import GROWTH_INTERVAL, START, LossScale
from tunesmith.stages.train.optimizer import make_optimizer


def make_engine(
    optimizer: str = "adamw", max_grad_norm: float | None = None, *, scale_loss: bool = False
) -> LocalEngine:
    torch.manual_seed(0)
    engine = LocalEngine(max_grad_norm)
    train = Train(optimizer={"type": optimizer}, learning_rate=0.1)
    engine.wrap(
        nn.Linear(3, 1),
        lambda parameters: make_optimizer(parameters, train),
        precision="fp16" if scale_loss else "fp32",
    )
    return engine


def loss_of(engine: LocalEngine, factor: float = 1.0) -> torch.Tensor:
    return engine.model(torch.ones(1, 3)).sum() * factor


def everything(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return {**engine.whole_parameters(), **engine.gather_state()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_changes_neither_weights_nor_averages(optimizer: str, bad: float) -> None:
    engine = make_engine(optimizer)
    engine.backward(loss_of(engine))
    assert engine.step(torch.tensor(1.0)).finite
    before = everything(engine)
    engine.backward(loss_of(engine, bad))
    verdict = engine.step(torch.tensor(1.0))
    assert not verdict.finite
    assert not verdict.again
    after = everything(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for _, parameter in engine.parameters), "nor the next step"


def test_a_loss_that_is_not_finite_is_withheld_even_with_finite_gradients() -> None:
    engine = make_engine()
    before = everything(engine)
    engine.backward(loss_of(engine))
    assert not engine.step(torch.tensor(math.nan)).finite
    assert all(torch.equal(value, before[name]) for name, value in everything(engine).items())


def test_gradients_are_scaled_down_to_the_norm_and_told_as_they_were() -> None:
    free, clipped = make_engine("sgd"), make_engine("sgd", max_grad_norm=0.5)
    start = free.whole_parameters()
    for engine in (free, clipped):
        engine.backward(loss_of(engine, 10.0))
        assert engine.step(torch.tensor(1.0)).grad_norm == pytest.approx(20.0)  # 10 * sqrt(4)
    for name, value in start.items():
        moved, wanted = clipped.whole_parameters()[name] - value, (free.whole_parameters()[name] - value) * 0.5 / 20
        torch.testing.assert_close(moved, wanted)


def test_a_small_gradient_is_left_as_it_is() -> None:
    free, clipped = make_engine("sgd"), make_engine("sgd", max_grad_norm=100.0)
    for engine in (free, clipped):
        engine.backward(loss_of(engine))
        engine.step(torch.tensor(1.0))
    assert all(torch.equal(clipped.whole_parameters()[name], value) for name, value in free.whole_parameters().items())


def test_the_loss_scale_changes_no_update() -> None:
    plain, scaled = make_engine(max_grad_norm=0.5), make_engine(max_grad_norm=0.5, scale_loss=True)
    for engine in (plain, scaled):
        for _ in range(3):
            engine.backward(loss_of(engine))
            verdict = engine.step(torch.tensor(1.0))
        assert verdict.grad_norm == pytest.approx(2.0)
    for name, value in plain.whole_parameters().items():
        assert torch.equal(scaled.whole_parameters()[name], value), "a power of two is exact"


def test_an_overflow_is_answered_by_doing_the_step_again_with_a_smaller_scale() -> None:
    engine = make_engine(scale_loss=True)
    before, tries = engine.whole_parameters(), 0
    while True:
        engine.backward(loss_of(engine, 1e16))  # times 65536 its square is beyond float32
        tries += 1
        verdict = engine.step(torch.tensor(1.0))
        if not verdict.again:
            break
        assert all(torch.equal(engine.whole_parameters()[name], value) for name, value in before.items())
    assert verdict.finite
    assert tries > 1
    assert engine.loss_scale is not None
    assert engine.loss_scale.value < START


def test_what_no_scale_can_mend_is_given_up_and_costs_no_scale() -> None:
    engine = make_engine(scale_loss=True)
    for _ in range(30):
        engine.backward(loss_of(engine, math.inf))
        verdict = engine.step(torch.tensor(1.0))
        if not verdict.again:
            break
    assert not verdict.finite
    assert not verdict.again
    assert engine.loss_scale is not None
    assert engine.loss_scale.value == START


def test_the_loss_scale_grows_again_and_is_part_of_the_state() -> None:
    scale = LossScale()
    scale.note_overflow()
    for _ in range(GROWTH_INTERVAL):
        scale.note_finite()
    assert scale.value == START / 2
    engine, other = make_engine(scale_loss=True), make_engine(scale_loss=True)
    assert engine.loss_scale is not None
    assert other.loss_scale is not None
    engine.loss_scale = scale
    other.load_state(engine.whole_parameters(), engine.gather_state())
    assert other.loss_scale.state() == scale.state()


def test_weights_of_another_model_are_refused_by_name() -> None:
    engine = make_engine()
    with pytest.raises(ModelError, match="TRN-006 the checkpoint's weights are not those of this model: weight"):
        engine.load_state({"bias": engine.whole_parameters()["bias"]}, None)
