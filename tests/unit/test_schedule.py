"""Learning rates by step, and the update rules they go into."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau
from transformers import optimization

from tunesmith.errors import RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.tree import Plateau, Schedule, Sgd, Train
from tunesmith.stages.train.optimizer import load_state_tensors, make_optimizer, state_tensors, trainable
from tunesmith.stages.train.schedule import PlateauState, note_plateau, rate_factor

ADAPTER: TypeAdapter[Any] = TypeAdapter(Schedule)
TYPES = ("cosine", "linear", "constant", "wsd", "inverse_sqrt", "plateau")


def rates(num_steps: int, **settings: object) -> list[float]:
    schedule = ADAPTER.validate_python(settings)
    return [rate_factor(schedule, step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "constant", "warmup": 0}, [1, 1, 1, 1, 1]),
        ({"type": "linear", "warmup": 0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"type": "linear", "warmup": 0, "final": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"type": "cosine", "warmup": 0}, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
        ({"type": "constant", "warmup": 0.6}, [0.25, 0.5, 0.75, 1, 1]),
        ({"type": "constant", "warmup": 3}, [0.25, 0.5, 0.75, 1, 1]),
        ({"type": "linear", "warmup": 0.4}, [1 / 3, 2 / 3, 1, 0.5, 0]),
        ({"type": "linear", "warmup": 2}, [1 / 3, 2 / 3, 1, 0.5, 0]),
        ({"type": "wsd", "warmup": 0, "decay": 0.4}, [1, 1, 1, 0.5, 0]),
        ({"type": "wsd", "warmup": 0, "decay": 2, "final": 0.5}, [1, 1, 1, 0.75, 0.5]),
        ({"type": "wsd", "warmup": 0.4, "decay": 1.0}, [1 / 3, 2 / 3, 1, 0.5, 0]),
        ({"type": "inverse_sqrt", "warmup": 2}, [1 / 3, 2 / 3, 1, math.sqrt(3 / 4), math.sqrt(3 / 5)]),
        ({"type": "inverse_sqrt", "warmup": 0, "timescale": 1}, [1 / math.sqrt(n) for n in range(1, 6)]),
        ({"type": "plateau", "warmup": 2}, [1 / 3, 2 / 3, 1, 1, 1]),
    ],
)
def test_shapes(settings: dict, expected: list[float]) -> None:
    assert rates(5, **settings) == pytest.approx(expected)


@pytest.mark.parametrize("shape", TYPES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0, 7])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
def test_every_rate_is_a_share_of_the_peak_and_the_first_is_not_zero(shape: str, warmup: float, num_steps: int) -> None:
    found = rates(num_steps, type=shape, warmup=warmup)
    assert all(0 <= rate <= 1 for rate in found)
    assert found[0] > 0, "a first step without any rate would be a lost step"


def scheduler_rates(num_steps: int, make: Any) -> list[float]:
    """What a scheduler of torch or transformers has set at its calls 1..num_steps, with a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


N = 23
SAME = {
    "cosine": ({"warmup": 3}, lambda o: optimization.get_cosine_schedule_with_warmup(o, 4, N)),
    "cosine, final": (
        {"type": "cosine", "warmup": 0, "final": 0.1},
        lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup(o, 1, N, min_lr_rate=0.1),
    ),
    "linear": ({"warmup": 3}, lambda o: optimization.get_linear_schedule_with_warmup(o, 4, N)),
    "linear, share": (
        {"type": "linear", "warmup": 0.2},
        lambda o: optimization.get_linear_schedule_with_warmup(o, 6, N),
    ),
    "linear, final": (
        {"type": "linear", "warmup": 0, "final": 0.3},
        lambda o: LambdaLR(o, lambda n: linear_fall(n, end=0.3)),
    ),
    "constant": ({"warmup": 5}, lambda o: optimization.get_constant_schedule_with_warmup(o, 6)),
    "wsd": ({"warmup": 3, "decay": 8}, lambda o: optimization.get_wsd_schedule(o, 4, 8, N, decay_type="linear")),
    "wsd, cosine": (
        {"type": "wsd", "warmup": 0, "decay": 0.5, "shape": "cosine", "final": 0.1},
        lambda o: optimization.get_wsd_schedule(o, 1, 12, N, decay_type="cosine", min_lr_ratio=0.1),
    ),
    "wsd, 1-sqrt": (
        {"type": "wsd", "warmup": 3, "decay": 8, "shape": "1-sqrt"},
        lambda o: optimization.get_wsd_schedule(o, 4, 8, N, decay_type="1-sqrt"),
    ),
    "inverse_sqrt": ({"warmup": 3}, lambda o: optimization.get_inverse_sqrt_schedule(o, 4)),
    "inverse_sqrt, timescale": (
        {"type": "inverse_sqrt", "warmup": 3, "timescale": 9},
        lambda o: optimization.get_inverse_sqrt_schedule(o, 4, timescale=9),
    ),
    "inverse_sqrt, no warm-up": (
        {"type": "inverse_sqrt", "warmup": 0},
        lambda o: optimization.get_inverse_sqrt_schedule(o, 1, timescale=10_000),
    ),
}


def linear_fall(call: int, end: float) -> float:
    """torch's LinearLR from 1 to `end` over N - 1 calls, in closed form, one call later."""
    return 1 + (end - 1) * (call - 1) / (N - 1) if call else 0.0


@pytest.mark.parametrize("name", SAME)
def test_rates_are_those_of_transformers(name: str) -> None:
    """Step n is their call n with one more warm-up step: their first call has no rate at all, ours is not wasted."""
    settings, make = SAME[name]
    assert rates(N, **{"type": name.partition(",")[0], **settings}) == pytest.approx(
        scheduler_rates(N, make), abs=1e-12
    )


def test_a_linear_fall_is_torchs() -> None:
    torchs = scheduler_rates(N - 1, lambda o: LinearLR(o, start_factor=1.0, end_factor=0.3, total_iters=N - 1))
    assert rates(N, type="linear", warmup=0, final=0.3)[1:] == pytest.approx(torchs)


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"patience": 0, "cooldown": 2}, {"patience": 1, "min_gain": 0.1, "final": 0.2}]
)
def test_plateau_falls_when_torchs_does(higher: bool, settings: dict) -> None:
    schedule = Plateau(**settings)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = ReduceLROnPlateau(
        optimizer, mode="max" if higher else "min", factor=schedule.factor, patience=schedule.patience,
        threshold=schedule.min_gain, cooldown=schedule.cooldown, min_lr=schedule.final, eps=0.0,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    state, seen = PlateauState(), []
    for value in (torch.rand(60, generator=draw) + 1).tolist():
        torchs.step(value)
        state = note_plateau(state, schedule, value, higher)
        assert state.factor == optimizer.param_groups[0]["lr"]
        seen.append(state.factor)
    assert len(set(seen)) > 2, "it fell more than once"
    assert note_plateau(PlateauState(), schedule, math.nan, higher).best is None


def test_what_a_schedule_does_not_have_cannot_be_written() -> None:
    with pytest.raises(
        RecipeError, match=r"RCP-018 train\.schedule\.decay: train\.schedule is .cosine., which has no decay"
    ):
        parse_recipe("data: {sources: r.jsonl}", ["train.schedule={type: cosine, decay: 0.1}"])
    with pytest.raises(RecipeError, match=r"RCP-011 train\.schedule\.warmup .*: is 1\.5"):
        parse_recipe("data: {sources: r.jsonl}", ["train.schedule.warmup=1.5"])


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
