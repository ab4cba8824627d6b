"""Limits, repeats, weights and temperature: how often an epoch sees each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from columns import chat, part, recipe

from tunesmith.stages.prepare.sets.mixture import Mixed, mix

SIZES = (100, 400, 0)


def mixed(sources: str, *overrides: str, sizes: tuple[int, ...] = SIZES, held_out: int = 0, first: int = 0) -> Mixed:
    """Of sources with so many training rows; `held_out` rows of the first source are test rows."""
    rows = [chat(f"{source} {n}", "a", source) for source, size in enumerate(sizes) for n in range(first, first + size)]
    facts = part(rows)
    splits = np.zeros(len(rows), np.int8)
    splits[:held_out] = 2
    return mix(facts, splits, np.ones(len(rows), bool), recipe(f"{{sources: [{sources}]}}", overrides))


def epoch(found: Mixed) -> list[int]:
    return [share["epoch"] for share in found.shares]


THREE = "{path: a}, {path: b}, {path: c}"


def test_nothing_asked_leaves_every_row_once() -> None:
    found = mixed(THREE)
    assert set(found.copies.tolist()) == {1}
    assert not len(found.verdicts)
    assert epoch(found) == [100, 400, 0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.mixture.temperature=2",), [167, 333]),  # 10 : 20
        (("data.mixture.temperature=infinite",), [250, 250]),
        (("data.mixture={temperature: infinite, rows: fewest}",), [100, 100]),
        (("data.mixture={temperature: infinite, rows: most}",), [400, 400]),
        (("data.mixture={temperature: infinite, rows: 60}",), [30, 30]),
        (("data.mixture.rows=1000",), [200, 800]),
        (("data.sources.0.weight=4",), [250, 250]),
        (("data.sources.0.weight=3", "data.mixture.temperature=infinite"), [375, 125]),
        (("data.sources.0.repeat=2.5",), [250, 400]),
        (("data.sources.1.repeat=0.5",), [100, 200]),
        (("data.sources.1.limit=30",), [100, 30]),
        (("data.sources.1.limit=30", "data.sources.1.repeat=3"), [100, 90]),
    ],
)
def test_shares_are_as_asked(overrides: tuple[str, ...], expected: list[int]) -> None:
    found = mixed(THREE, *overrides)
    assert epoch(found)[:2] == expected
    assert int(found.copies.sum()) == sum(expected)


def test_no_row_is_seen_more_than_once_more_often_than_another_of_its_source() -> None:
    copies = mixed(THREE, "data.sources.0.repeat=2.5").copies[:100]
    assert sorted(set(copies.tolist())) == [2, 3]
    assert (copies == 3).sum() == 50


def test_rows_that_are_left_out_say_why() -> None:
    found = mixed(THREE, "data.sources.1.limit=30", "data.sources.0.repeat=0.5")
    lines = found.verdicts.to_pylist()
    assert len(lines) == 50 + 370
    assert {line["rule"] for line in lines} == {"mixture"}
    told = {(line["detail"], line["threshold"]) for line in lines}
    assert told == {("share of the source", 0.5), ("limit of the source", 30.0)}
    assert [line["row"] for line in lines] == np.flatnonzero(found.copies == 0).tolist()


def test_held_out_rows_are_seen_once_and_count_in_no_share() -> None:
    found = mixed(THREE, "data.sources.0.repeat=3", held_out=20)
    assert set(found.copies[:20].tolist()) == {1}
    assert epoch(found)[0] == 240


def test_a_limit_goes_by_hash_not_by_place() -> None:
    """A row's neighbours change, rows before it come in: who is taken hardly moves."""

    def taken(first: int) -> set[Any]:
        facts = part([chat(f"q {number}", "a") for number in range(first, 1000)])
        used = np.ones(facts.num_rows, bool)
        found = mix(facts, np.zeros(facts.num_rows, np.int8), used, recipe("{sources: [{path: a, limit: 100}]}"))
        return set(facts.column("key").filter(pa.array(found.copies > 0)).to_pylist())

    assert len(taken(0)) == len(taken(100)) == 100
    assert len(taken(0) & taken(100)) >= 80
    places = np.flatnonzero(mixed("{path: a, limit: 20}", sizes=(1000,)).copies)
    assert places.max() > 500, "not the first ones"


def test_another_seed_takes_others_the_same_seed_the_same() -> None:
    once, again, other = (mixed(THREE, "data.sources.1.limit=30", f"seed={seed}").copies for seed in (1, 1, 2))
    assert once.tolist() == again.tolist() != other.tolist()


def test_rows_that_are_gone_take_no_part() -> None:
    facts = part([chat(f"q {number}", "a") for number in range(10)])
    used = np.arange(10) % 2 == 0
    found = mix(facts, np.zeros(10, np.int8), used, recipe("{sources: [{path: a, limit: 3, repeat: 2}]}"))
    assert found.copies[~used].tolist() == [0] * 5
    assert sorted(found.copies[used].tolist()) == [0, 0, 2, 2, 2]
    assert len(found.verdicts) == 2
    assert mix(facts, np.zeros(10, np.int8), np.zeros(10, bool), recipe("{sources: [a]}")).copies.sum() == 0
