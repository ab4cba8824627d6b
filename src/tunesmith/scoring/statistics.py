"""How sure a score is: intervals, paired gains, and the smallest gain that the items could have shown. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
RESAMPLE_CHUNK = 2**22  # drawn indices held at once: 32 MiB
FEW_VALUES = 64  # so many distinct values are resampled by their counts, which is the same and much faster
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
    """How much better tuned is than base over the same n items; positive is better, whatever the metric.

    changed: items that are not the same for both. detectable: the true gain that n items with such differences would
    show in four of five repetitions; nan where nothing can be said of it.
    """

    value: float
    low: float
    high: float
    n: int
    changed: int
    detectable: float


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, 0)
NO_GAIN = Gain(math.nan, math.nan, math.nan, 0, 0, math.nan)


# ----------------------------------------------------------------------------------------------------- means of scores


def interval(values: Sequence[float] | np.ndarray, confidence: float, seed: int = 0) -> Interval:
    """The mean of `values` and its interval: Wilson's where all are 0 or 1, else the percentile bootstrap.

    Returns nan for no value at all.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return NO_INTERVAL
    if _are_shares(values):
        return wilson(int(values.sum()), len(values), confidence)
    low, high, _ = _bootstrap_mean(values, confidence, seed)
    return Interval(float(values.mean()), low, high, len(values))


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Score interval of a share (E. B. Wilson, 1927): holds its promise near 0 and 1, where bootstrap does not."""
    z = _z(confidence)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def paired_gain(
    base: Sequence[float] | np.ndarray, tuned: Sequence[float] | np.ndarray, confidence: float, seed: int
) -> Gain:
    """Mean of tuned - base over the same items, with its interval: Newcombe's where all scores are 0 or 1, else the
    percentile interval of a paired bootstrap (10,000 resamples).

    Pairing takes out how hard the items are: only what changed on the same item counts. The same seed gives the same
    interval. Returns nan for no item.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    assert base.shape == tuned.shape, (base.shape, tuned.shape)
    difference = tuned - base
    n = len(difference)
    if n == 0:
        return NO_GAIN
    changed = int(np.count_nonzero(difference))
    if _are_shares(base) and _are_shares(tuned):
        low, high = newcombe(base > 0.5, tuned > 0.5, confidence)
        error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
        # Fewer changed items than a sign test needs show nothing, however many did not change.
        detectable = max(_detectable(error, confidence), smallest_decisive_n(confidence) / n)
    else:
        low, high, error = _bootstrap_mean(difference, confidence, seed)
        detectable = _detectable(error, confidence) if error else math.nan
    return Gain(float(difference.mean()), low, high, n, changed, detectable)


def newcombe(base_N: np.ndarray, tuned_N: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two shares of the same items (bool [N]), tuned - base.

    Made of Wilson's intervals of both shares, so that it keeps its promise where a share is 0 or 1 and where a
    bootstrap of equal differences has no width. Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 2635-2650,
    method 10.
    """
    n = len(base_N)
    both, neither = int((base_N & tuned_N).sum()), int((~base_N & ~tuned_N).sum())
    fixed, broken = int((~base_N & tuned_N).sum()), int((base_N & ~tuned_N).sum())
    before, after = wilson(both + broken, n, confidence), wilson(both + fixed, n, confidence)
    margins = (both + broken) * (neither + fixed) * (both + fixed) * (neither + broken)
    agreement = both * neither - fixed * broken
    if agreement > 0:
        agreement = max(0.0, agreement - n / 2)
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def width(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    gain = after.value - before.value
    low = gain - width(after.value - after.low, before.high - before.value)
    high = gain + width(after.high - after.value, before.value - before.low)
    return low, high


def smallest_decisive_n(confidence: float) -> int:
    """Fewest changed items that could ever show a gain: below it even n wins out of n are chance (two-sided sign test)."""
    return math.ceil(round(math.log2(2 / (1 - confidence)), 9))


# ---------------------------------------------------------------------------------------------------------- perplexity


def perplexity_interval(nll_N: np.ndarray, weight_N: np.ndarray, confidence: float, seed: int) -> Interval:
    """Perplexity over rows with its bootstrap interval; rows are resampled whole, so long rows keep their weight.

    nll_N, weight_N: summed nats and summed weights of the learned tokens of each row. Returns nan for no row with a
    learned token, and where a loss is not finite.
    """
    learned = weight_N > 0
    nll_N, weight_N = nll_N[learned], weight_N[learned]
    if len(nll_N) == 0:
        return NO_INTERVAL
    if not np.isfinite(nll_N).all():
        return Interval(math.nan, math.nan, math.nan, len(nll_N))
    low, high, _ = bootstrap(lambda i: _exp(nll_N[i].sum(1) / weight_N[i].sum(1)), len(nll_N), confidence, seed)
    return Interval(float(_exp(nll_N.sum() / weight_N.sum())), low, high, len(nll_N))


def perplexity_gain(
    base_N: np.ndarray, tuned_N: np.ndarray, weight_N: np.ndarray, confidence: float, seed: int
) -> Gain:
    """Base perplexity minus tuned perplexity over the same rows (positive: tuned is better), paired by row.

    Arguments as in `perplexity_interval`; nan in the same cases.
    """
    learned = weight_N > 0
    base_N, tuned_N, weight_N = base_N[learned], tuned_N[learned], weight_N[learned]
    n, changed = len(weight_N), int(np.count_nonzero(base_N != tuned_N))
    if n == 0:
        return NO_GAIN
    if not (np.isfinite(base_N).all() and np.isfinite(tuned_N).all()):
        return Gain(math.nan, math.nan, math.nan, n, changed, math.nan)

    def difference(base: np.ndarray, tuned: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
        total = weight.sum(axis)
        return _exp(base.sum(axis) / total) - _exp(tuned.sum(axis) / total)

    low, high, error = bootstrap(lambda i: difference(base_N[i], tuned_N[i], weight_N[i], 1), n, confidence, seed)
    detectable = _detectable(error, confidence) if error else math.nan
    return Gain(float(difference(base_N, tuned_N, weight_N, 0)), low, high, n, changed, detectable)


def _exp(mean_nll: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(mean_nll, 300.0))  # 1e130 instead of an overflow, here or in its square


# ------------------------------------------------------------------------------------------------------------ the means


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """(low, high) of the percentile interval of a statistic over n items, and its standard error.

    statistic: given indices [R, n] of R resamples, returns float [R].
    """
    random = np.random.default_rng(seed)
    rows = max(1, RESAMPLE_CHUNK // n)
    found = []
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        found.append(statistic(random.integers(0, n, size=(count, n), dtype=np.int64)))
    return _percentiles(np.concatenate(found), confidence)


def _bootstrap_mean(values_N: np.ndarray, confidence: float, seed: int) -> tuple[float, float, float]:
    """`bootstrap` of the mean."""
    distinct, counts = np.unique(values_N, return_counts=True)
    n = len(values_N)
    if len(distinct) > FEW_VALUES:
        return bootstrap(lambda index_RN: values_N[index_RN].mean(1), n, confidence, seed)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, RESAMPLES)
    return _percentiles(drawn @ distinct / n, confidence)


def _percentiles(found_R: np.ndarray, confidence: float) -> tuple[float, float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found_R, [tail, 1 - tail])
    return float(low), float(high), float(found_R.std())


def _detectable(standard_error: float, confidence: float) -> float:
    """(z of confidence + z of power) x standard error: the normal approximation of a test with power 0.8."""
    return (_z(confidence) + NormalDist().inv_cdf(POWER)) * standard_error


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _are_shares(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
