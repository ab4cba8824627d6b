"""Adapter dropout: a function of (seed, step, example, module, position)."""

from __future__ import annotations

import pytest
import torch

from tunesmith.modeling.dropout import FunctionalDropout, StepContext

P = 0.3


def masks(
    seed: int = 1, step: int = 1, module: int = 0, examples: tuple[int, ...] = (4, 9), width: int = 6
) -> torch.Tensor:
    context = StepContext(seed)
    context.set(step, torch.tensor(examples))
    return FunctionalDropout(P, module, context).train()(torch.ones(len(examples), width, 50))


def test_the_share_dropped_is_p_and_the_mean_stays() -> None:
    values = masks(examples=tuple(range(200)))
    assert (values == 0).float().mean().item() == pytest.approx(P, abs=0.01)
    assert values.mean().item() == pytest.approx(1.0, abs=0.02)
    assert values.unique().tolist() == pytest.approx([0.0, 1 / (1 - P)])


def test_an_example_keeps_its_mask_in_any_company_and_any_padding() -> None:
    together, alone = masks(), masks(examples=(9,))
    assert torch.equal(together[1], alone[0])
    assert torch.equal(masks(width=9)[:, :6], together)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 2}, {"module": 1}, {"examples": (5, 10)}])
def test_everything_else_draws_another_mask(change: dict) -> None:
    one, other = masks(), masks(**change)
    share_equal = ((one == 0) == (other == 0)).float().mean().item()
    assert share_equal == pytest.approx(P * P + (1 - P) ** 2, abs=0.06), "as independent as two throws of dice"


def test_positions_and_features_are_independent() -> None:
    dropped = (masks(examples=tuple(range(40)), width=50) == 0).float()
    for axis in (0, 1, 2):
        along = dropped.mean(dim=[other for other in (0, 1, 2) if other != axis])
        assert (along - P).abs().max() < 0.08


def test_evaluation_drops_nothing() -> None:
    layer = FunctionalDropout(P, 0, StepContext(1)).eval()
    x = torch.randn(2, 3, 4)
    assert layer(x) is x


def test_large_seeds_and_steps_are_fine() -> None:
    assert 0 < (masks(seed=2**31 - 1, step=10**9, examples=(2**40,)) == 0).float().mean() < 1
