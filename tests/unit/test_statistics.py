"""Intervals and paired gains against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.scoring import statistics
from tunesmith.scoring.statistics import (
    _bootstrap_mean,
    bootstrap,
    interval,
    paired_gain,
    perplexity_gain,
    perplexity_interval,
    smallest_decisive_n,
    wilson,
)


def test_shares_get_the_interval_of_wilson() -> None:
    found = interval([1] * 8 + [0] * 2, 0.95)
    # z = 1.959964: middle (0.8 + z^2/20) / (1 + z^2/10), half z / (1 + z^2/10) * sqrt(0.016 + z^2/400)
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.490162, abs=1e-6)
    assert found.high == pytest.approx(0.943318, abs=1e-6)


def test_all_right_is_not_certain() -> None:
    found = interval([1.0] * 10, 0.95)
    assert found.high == 1.0
    assert found.low == pytest.approx(0.722467, abs=1e-6)  # n / (n + z^2)


def test_the_bootstrap_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 400)
    found = interval(values, 0.95)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.003)
    assert found.high == pytest.approx(values.mean() + half, abs=0.003)


def test_no_value_gives_no_number() -> None:
    assert math.isnan(interval([], 0.95).value)
    assert math.isnan(paired_gain([], [], 0.95, 0).low)


def test_a_gain_is_paired() -> None:
    # Hard and easy items differ much, the gain on each is the same: pairing leaves no doubt, unpaired samples would.
    base = np.array([0.0, 0.5, 0.9] * 10)
    found = paired_gain(base, base + 0.05, 0.95, seed=3)
    assert found.value == pytest.approx(0.05)
    assert found.low == pytest.approx(0.05)
    assert found.high == pytest.approx(0.05)


def test_a_gain_is_near_its_normal_interval_and_the_same_for_the_same_seed() -> None:
    base, tuned = [0.0] * 60 + [1.0] * 40, [1.0] * 30 + [0.0] * 30 + [0.0] * 10 + [1.0] * 30
    found = paired_gain(base, tuned, 0.95, seed=5)
    half = 1.96 * math.sqrt((0.4 - 0.2**2) / 100)  # 30 up, 10 down of 100: mean 0.2, mean square 0.4
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - half, abs=0.011)
    assert found.high == pytest.approx(0.2 + half, abs=0.011)
    assert paired_gain(base, tuned, 0.95, seed=5) == found
    assert paired_gain(base, tuned, 0.99, seed=5).low < found.low


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n, 0.95)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_gain_of_shares_is_near_the_published_one() -> None:
    # Agresti, Categorical Data Analysis, prime minister's approval: 794 both, 150 lost, 86 won, 570 neither; the change
    # is -0.04, its large-sample interval -0.060 to -0.020.
    base = [1] * 794 + [1] * 150 + [0] * 86 + [0] * 570
    tuned = [1] * 794 + [0] * 150 + [1] * 86 + [0] * 570
    found = paired_gain(base, tuned, 0.95, seed=0)
    assert found.value == pytest.approx(-0.04)
    assert (found.low, found.high) == (pytest.approx(-0.060, abs=0.002), pytest.approx(-0.020, abs=0.002))
    assert (found.n, found.changed) == (1600, 236)


def test_all_items_fixed_is_not_certain() -> None:
    found = paired_gain([0.0] * 20, [1.0] * 20, 0.95, seed=0)
    # both Wilson intervals have width 0.1611, and the gain's is their square sum
    assert found.low == pytest.approx(1 - math.sqrt(2) * 0.161125, abs=1e-4)
    assert found.high == 1.0


@pytest.mark.parametrize("kind", ["shares", "scores", "perplexity"])
def test_an_interval_holds_the_truth_as_often_as_it_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 % intervals of drawn data sets; the count of those that hold is within 3.5 standard errors, or above."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    draw, held, repeats, n = np.random.default_rng(7), 0, 250, 30
    for seed in range(repeats):
        hard = draw.uniform(0, 1, n)  # what base and tuned share: some items are hard for both
        if kind == "perplexity":
            weight = draw.integers(5, 30, n).astype(float)
            base = (1.2 + 0.3 * hard) * weight
            gain = perplexity_gain(base, base - weight * draw.normal(0.3, 0.2, n), weight, 0.8, seed)
            truth = math.exp(1.35) - math.exp(1.05)
        elif kind == "shares":
            base, tuned = (
                (hard < 0.3).astype(float),
                (draw.uniform(0, 1, n) < np.where(hard < 0.3, 0.9, 0.4)).astype(float),
            )
            gain, truth = paired_gain(base, tuned, 0.8, seed), 0.3 * 0.9 + 0.7 * 0.4 - 0.3
        else:
            base = hard
            gain, truth = paired_gain(base, hard + draw.normal(0.1, 0.2, n), 0.8, seed), 0.1
        held += gain.low <= truth <= gain.high
    assert held / repeats >= 0.8 - 3.5 * math.sqrt(0.8 * 0.2 / repeats)
    assert held / repeats <= 0.93, "nor are they so wide that they say nothing"


def test_few_values_are_resampled_by_their_counts_with_the_same_result() -> None:
    values = np.random.default_rng(3).choice([-0.5, 0.0, 0.25, 1.0], 300)
    few, many = _bootstrap_mean(values, 0.95, 1), bootstrap(lambda index: values[index].mean(1), 300, 0.95, 1)
    assert few == pytest.approx(many, abs=0.004)


def test_fewer_items_than_a_sign_test_needs_decide_nothing() -> None:
    assert smallest_decisive_n(0.95) == 6  # 2 * 0.5^6 = 0.031 <= 0.05 < 0.0625 = 2 * 0.5^5
    assert smallest_decisive_n(0.99) == 8
    assert smallest_decisive_n(0.75) == 3


def test_the_detectable_gain_shrinks_with_the_root_of_the_items() -> None:
    # standard deviation 0.50252, z 1.95996 + 0.84162
    found = paired_gain([0.0] * 100, [0.0, 1.0] * 50, 0.95, 0)
    assert found.detectable == pytest.approx(2.80158 * 0.502519 / 10, abs=1e-5)
    assert paired_gain([0.0] * 400, [0.0, 1.0] * 200, 0.95, 0).detectable == pytest.approx(
        found.detectable / 2, rel=0.01
    )


def test_shares_show_no_gain_below_the_smallest_number_of_changed_items() -> None:
    assert paired_gain([0.0] * 60, [0.0] * 60, 0.95, 0).detectable == pytest.approx(6 / 60)
    assert math.isnan(paired_gain([0.2, 0.4], [0.2, 0.4], 0.95, 0).detectable), "nothing differs: nothing can be said"


def test_perplexity_of_rows_is_weighted_by_token() -> None:
    nll, tokens = np.array([10.0, 90.0]), np.array([10.0, 30.0])
    assert perplexity_interval(nll, tokens, 0.95, 0).value == pytest.approx(math.exp(100 / 40))
    gain = perplexity_gain(nll, nll / 2, tokens, 0.95, 0)
    assert gain.value == pytest.approx(math.exp(2.5) - math.exp(1.25))
    assert gain.low == pytest.approx(math.exp(1) - math.exp(0.5), rel=1e-6)  # both rows are the short one
    assert gain.high == pytest.approx(math.exp(3) - math.exp(1.5), rel=1e-6)


def test_perplexity_without_a_number_is_none_of_them() -> None:
    nothing, some = np.zeros(3), np.array([5.0, 6.0, 7.0])
    assert perplexity_interval(nothing, nothing, 0.95, 0).n == 0
    assert perplexity_gain(nothing, nothing, nothing, 0.95, 0).n == 0
    broken = np.array([5.0, math.nan, 7.0])
    assert math.isnan(perplexity_interval(broken, some, 0.95, 0).value)
    assert math.isnan(perplexity_gain(some, broken, some, 0.95, 0).low)
    with_an_empty_row = perplexity_gain(np.array([4.0, 0.0]), np.array([2.0, 0.0]), np.array([2.0, 0.0]), 0.95, 0)
    assert (with_an_empty_row.n, with_an_empty_row.changed) == (1, 1)
    assert perplexity_interval(some * 1e6, some, 0.95, 0).value > 1e100, "hopeless, and still no overflow"
