"""Intervals and paired gains against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.scoring.statistics import (
    detectable_gain,
    interval,
    paired_gain,
    perplexity_gain,
    perplexity_interval,
    smallest_decisive_n,
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


def test_fewer_items_than_a_sign_test_needs_decide_nothing() -> None:
    assert smallest_decisive_n(0.95) == 6  # 2 * 0.5^6 = 0.031 <= 0.05 < 0.0625 = 2 * 0.5^5
    assert smallest_decisive_n(0.99) == 8
    assert smallest_decisive_n(0.75) == 3


def test_the_detectable_gain_shrinks_with_the_root_of_the_items() -> None:
    base, tuned = [0.0] * 100, [0.0, 1.0] * 50
    # standard deviation 0.50252, z 1.95996 + 0.84162
    assert detectable_gain(base, tuned, 0.95) == pytest.approx(2.80158 * 0.502519 / 10, abs=1e-5)
    assert math.isnan(detectable_gain([0.0], [1.0], 0.95))


def test_perplexity_of_rows_is_weighted_by_token() -> None:
    nll, tokens = np.array([10.0, 90.0]), np.array([10.0, 30.0])
    assert perplexity_interval(nll, tokens, 0.95, 0).value == pytest.approx(math.exp(100 / 40))
    gain = perplexity_gain(nll, nll / 2, tokens, 0.95, 0)
    assert gain.value == pytest.approx(math.exp(2.5) - math.exp(1.25))
    assert gain.low == pytest.approx(math.exp(1) - math.exp(0.5), rel=1e-6)  # both rows are the short one
    assert gain.high == pytest.approx(math.exp(3) - math.exp(1.5), rel=1e-6)
