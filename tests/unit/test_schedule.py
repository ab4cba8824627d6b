"""Learning rates by step, and the update rules they go into."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tunesmith.recipe.tree import Schedule, Sgd, Train
from tunesmith.stages.train.optimizer import load_state_tensors, make_optimizer, state_tensors, trainable
from tunesmith.stages.train.schedule import rate_factor


def rates(num_steps: int, **settings: object) -> list[float]:
    schedule = Schedule(**settings)
    return [rate_factor(schedule, step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "constant", "warmup": 0}, [1, 1, 1, 1, 1]),
        ({"type": "linear", "warmup": 0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"type": "linear", "warmup": 0, "final": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"type": "cosine", "warmup": 0}, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
        ({"type": "constant", "warmup": 0.6}, [0.25, 0.5, 0.75, 1, 1]),
        ({"type": "linear", "warmup": 0.4}, [1 / 3, 2 / 3, 1, 0.5, 0]),
    ],
)
def test_shapes(settings: dict, expected: list[float]) -> None:
    assert rates(5, **settings) == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
def test_every_rate_is_a_share_of_the_peak_and_the_first_is_not_zero(shape: str, warmup: float, num_steps: int) -> None:
    found = rates(num_steps, type=shape, warmup=warmup)
    assert all(0 <= rate <= 1 for rate in found)
    assert found[0] > 0, "a first step without any rate would be a lost step"


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1, bias=False))


@pytest.mark.parametrize("optimizer", [{"type": "adamw", "weight_decay": 0.1}, {"type": "sgd", "weight_decay": 0.1}])
def test_biases_and_norms_are_not_decayed(optimizer: dict) -> None:
    model = small_model()
    made = make_optimizer(trainable(model), Train(optimizer=optimizer, learning_rate=0.5))
    decays = {id(parameter): group["weight_decay"] for group in made.param_groups for parameter in group["params"]}
    found = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.1}


def test_settings_of_the_recipe_reach_the_update_rule() -> None:
    parameters = trainable(small_model())
    recipe = {"type": "adamw", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    adamw = make_optimizer(parameters, Train(optimizer=recipe, learning_rate=0.5)).param_groups[0]
    assert (adamw["betas"], adamw["eps"], adamw["lr"]) == ((0.8, 0.95), 1e-6, 0.5)
    sgd = make_optimizer(parameters, Train(optimizer=Sgd(momentum=0.9), learning_rate=0.5)).param_groups[0]
    assert sgd["momentum"] == 0.9


@pytest.mark.parametrize("optimizer", [{"type": "adamw"}, {"type": "sgd", "momentum": 0.9}])
def test_optimizer_state_survives_bit_for_bit(optimizer: dict) -> None:
    train = Train(optimizer=optimizer, learning_rate=0.1)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def update(model: nn.Module, made: torch.optim.Optimizer) -> None:
        made.zero_grad()
        model(x).square().sum().backward()
        made.step()

    first, second = small_model(), small_model()
    straight, stored = make_optimizer(trainable(first), train), None
    for _ in range(3):
        update(first, straight)
    stored = state_tensors(straight, trainable(first))
    assert len(stored) >= 5
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(trainable(second), train)
    load_state_tensors(resumed, trainable(second), stored)
    update(first, straight)
    update(second, resumed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
