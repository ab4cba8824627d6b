"""How sure a score is: intervals, paired gains, and the smallest gain that the items could have shown. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
RESAMPLE_CHUNK = 2**22  # drawn indices held at once: 32 MiB
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; n values."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Gain:
    """Tuned minus base over the same items, positive when tuned is better; n pairs."""

    value: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float] | np.ndarray, confidence: float, seed: int = 0) -> Interval:
    """The mean of `values` and its interval: Wilson's where all are 0 or 1, else the percentile bootstrap.

    Returns nan for no value at all.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values), confidence)
    low, high = bootstrap(lambda index_RN: values[index_RN].mean(1), len(values), confidence, seed)
    return Interval(float(values.mean()), low, high, len(values))


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Score interval of a share (E. B. Wilson, 1927): holds its promise near 0 and 1, where bootstrap does not."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def paired_gain(
    base: Sequence[float] | np.ndarray, tuned: Sequence[float] | np.ndarray, confidence: float, seed: int
) -> Gain:
    """Mean of tuned - base over the same items, with the percentile interval of a paired bootstrap (10,000 resamples).

    Pairing takes out how hard the items are: only what changed on the same item counts. The same seed gives the same
    interval. Returns nan for no item.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    assert base.shape == tuned.shape, (base.shape, tuned.shape)
    difference = tuned - base
    if len(difference) == 0:
        return Gain(math.nan, math.nan, math.nan, 0)
    low, high = bootstrap(lambda index_RN: difference[index_RN].mean(1), len(difference), confidence, seed)
    return Gain(float(difference.mean()), low, high, len(difference))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of a statistic over n items.

    statistic: given indices [R, n] of R resamples, returns float [R].
    """
    random = np.random.default_rng(seed)
    rows = max(1, RESAMPLE_CHUNK // n)
    found = []
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        found.append(statistic(random.integers(0, n, size=(count, n), dtype=np.int64)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def smallest_decisive_n(confidence: float) -> int:
    """Fewest items that could ever show a gain: below it even n wins out of n are chance (two-sided sign test)."""
    return math.ceil(round(math.log2(2 / (1 - confidence)), 9))


def detectable_gain(
    base: Sequence[float] | np.ndarray, tuned: Sequence[float] | np.ndarray, confidence: float
) -> float:
    """The true gain that so many items with such differences would show in four of five repetitions (power 0.8).

    Normal approximation: (z of confidence + z of power) x standard deviation of the differences / sqrt(n).
    """
    difference = np.asarray(tuned, np.float64) - np.asarray(base, np.float64)
    if len(difference) < 2:
        return math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(POWER)
    return float(z * difference.std(ddof=1) / math.sqrt(len(difference)))


def perplexity_interval(nll_N: np.ndarray, weight_N: np.ndarray, confidence: float, seed: int) -> Interval:
    """Perplexity over rows with its bootstrap interval; rows are resampled whole, so long rows keep their weight."""
    if weight_N.sum() == 0:
        return Interval(math.nan, math.nan, math.nan, len(weight_N))
    low, high = bootstrap(lambda i: _exp(nll_N[i].sum(1) / weight_N[i].sum(1)), len(nll_N), confidence, seed)
    return Interval(float(_exp(nll_N.sum() / weight_N.sum())), low, high, len(nll_N))


def perplexity_gain(
    base_N: np.ndarray, tuned_N: np.ndarray, weight_N: np.ndarray, confidence: float, seed: int
) -> Gain:
    """Base perplexity minus tuned perplexity over the same rows (positive: tuned is better), paired by row."""
    if weight_N.sum() == 0:
        return Gain(math.nan, math.nan, math.nan, len(weight_N))

    def difference(base: np.ndarray, tuned: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
        return _exp(base.sum(axis) / weight.sum(axis)) - _exp(tuned.sum(axis) / weight.sum(axis))

    low, high = bootstrap(lambda i: difference(base_N[i], tuned_N[i], weight_N[i], 1), len(weight_N), confidence, seed)
    return Gain(float(difference(base_N, tuned_N, weight_N, 0)), low, high, len(weight_N))


def _exp(mean_nll: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(mean_nll, 700.0))  # 1e304 instead of an overflow
