"""How often an epoch sees each row: limits, repeats and the shares of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import Mixture, Source
from tunesmith.stages.prepare.sets.signatures import halves
from tunesmith.stages.prepare.sets.splits import TRAIN
from tunesmith.stages.prepare.sets.verdicts import verdicts
from tunesmith.stages.prepare.sets.words import column, mixed


@dataclass(frozen=True)
class Mixed:
    """copies: int32 [N], 0 of a row that is left out. verdicts: VERDICTS of those rows. shares: of each source, see `mix`."""

    copies: np.ndarray
    verdicts: pa.Table
    shares: list[dict[str, float]]


def mix(facts: pa.Table, splits: np.ndarray, used: np.ndarray, spec: Recipe) -> Mixed:
    """Copies of each row in an epoch, the same for any order and any parts of the rows.

    facts: row, source, key of N rows. splits: int8 [N]. used: bool [N], rows that all other rules left.
    A limit takes the rows of a source with the least hashes. Of training rows with w the weight, r = rows * repeat of a
    source and T the temperature, its share is w * r^(1/T) over the sum of all; held-out rows are seen once.
    shares: per source rows (used for training), epoch (rows with their copies), share (of the epoch).
    """
    sources = spec.data.sources
    source = column(facts, "source").to_numpy()
    rank = _hashed(facts, spec.seed)
    copies = used.astype(np.int32)
    for number, settings in enumerate(sources):
        if settings.limit is not None:
            rows = np.flatnonzero(used & (source == number))
            copies[rows[np.argsort(rank[rows], kind="stable")][settings.limit :]] = 0
    limited = used & (copies == 0)
    trained = (copies > 0) & (splits == TRAIN)
    counts = np.bincount(source[trained], minlength=len(sources))
    factors = _factors(counts, sources, spec.data.mixture)
    for number, factor in enumerate(factors):
        rows = np.flatnonzero(trained & (source == number))
        copies[rows] = _spread(rank[rows], factor)
    epoch = np.bincount(source[trained], weights=copies[trained], minlength=len(sources))
    shares = [
        {"rows": int(rows), "epoch": int(seen), "share": float(seen / max(epoch.sum(), 1))}
        for rows, seen in zip(counts, epoch, strict=True)
    ]
    return Mixed(copies, _verdicts(facts, source, limited, trained & (copies == 0), factors, sources), shares)


def _hashed(facts: pa.Table, seed: int) -> np.ndarray:
    """uint64 [N] by which rows are chosen: of content and seed, so that a row's place does not depend on the others."""
    first, second = halves(column(facts, "key"))
    return mixed(first ^ mixed(second + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)))


def _factors(counts: np.ndarray, sources: Sequence[Source], mixture: Mixture) -> np.ndarray:
    """float64 per source: how often each of its training rows is seen on average."""
    has = counts > 0
    sizes = counts * np.array([source.repeat for source in sources])
    power = 0.0 if mixture.temperature == "infinite" else 1 / mixture.temperature
    parts = np.where(has, np.array([source.weight for source in sources]) * np.maximum(sizes, 1e-9) ** power, 0.0)
    if not has.any():
        return np.zeros(len(sources))
    parts /= parts.sum()
    per_row = parts[has] / counts[has]
    total = {"same": sizes.sum(), "fewest": 1 / per_row.max(), "most": 1 / per_row.min()}.get(
        mixture.rows, mixture.rows
    )
    factors = np.zeros(len(sources))
    factors[has] = per_row * float(total)
    near = np.round(factors)
    return np.where(np.abs(factors - near) < 1e-9, near, factors)


def _spread(rank: np.ndarray, factor: float) -> np.ndarray:
    """int32 [n]: the whole part of `factor` for all, one more for the share of rows with the least hashes."""
    copies = np.full(len(rank), int(factor), np.int32)
    more = round((factor - int(factor)) * len(rank))
    copies[np.argsort(rank, kind="stable")[:more]] += 1
    return copies


def _verdicts(
    facts: pa.Table, source: np.ndarray, limited: np.ndarray, unmixed: np.ndarray, factors: np.ndarray,
    sources: Sequence[Source],
) -> pa.Table:  # fmt: skip
    """Rule `mixture`; value: null, threshold: the limit, or how often a row of the source is seen on average."""
    row = column(facts, "row").to_numpy()
    gone = np.flatnonzero(limited | unmixed)
    limits = np.array([np.nan if settings.limit is None else settings.limit for settings in sources], np.float64)
    threshold = np.where(limited[gone], limits[source[gone]], factors[source[gone]])
    details = np.where(limited[gone], "limit of the source", "share of the source")
    return verdicts(row[gone], "mixture", detail=details.tolist(), threshold=threshold)
