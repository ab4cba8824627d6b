"""Which examples a step sees, and how they are divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.modeling.forward import micro_batches
from tunesmith.recipe.tree import Train
from tunesmith.stages.train.batches import Order, share

EXAMPLES = np.arange(100, 123)  # 23 of them


def all_draws(order: Order) -> list[int]:
    return [example for number in range(1, order.num_steps + 1) for example in order.step(number)]


def test_an_epoch_shows_every_example_once() -> None:
    order = Order.of(EXAMPLES, 1, Train(batch_size=5))
    assert order.num_steps == 5
    assert [len(order.step(number)) for number in range(1, 6)] == [5, 5, 5, 5, 3]
    assert sorted(all_draws(order)) == EXAMPLES.tolist()


def test_each_epoch_has_an_order_of_its_own() -> None:
    draws = all_draws(Order.of(EXAMPLES, 1, Train(batch_size=4, epochs=2.0)))
    first, second = draws[:23], draws[23:]
    assert sorted(first) == sorted(second) == EXAMPLES.tolist()
    assert first != second


def test_a_step_follows_from_seed_and_number_alone() -> None:
    order = Order.of(EXAMPLES, 1, Train(batch_size=4, epochs=3.0))
    straight = [order.step(number) for number in range(1, 10)]
    backwards = [Order.of(EXAMPLES, 1, Train(batch_size=4, epochs=3.0)).step(number) for number in range(9, 0, -1)]
    assert straight == backwards[::-1]
    assert straight != [Order.of(EXAMPLES, 2, Train(batch_size=4, epochs=3.0)).step(number) for number in range(1, 10)]


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [
        ({"epochs": 0.5}, 3),
        ({"max_steps": 2}, 2),
        ({"max_steps": 99}, 6),
        ({"epochs": 0.001}, 1),
        ({"batch_size": 64}, 1),
    ],
)
def test_steps_follow_from_epochs_unless_max_steps_is_less(settings: dict, num_steps: int) -> None:
    order = Order.of(EXAMPLES, 1, Train(**{"batch_size": 4, **settings}))
    assert order.num_steps == num_steps
    assert all(order.step(number) for number in range(1, num_steps + 1))


rows = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@given(rows, st.integers(1, 5))
def test_processes_share_a_step_without_loss_and_about_evenly(lengths: list[int], world_size: int) -> None:
    examples = list(range(len(lengths)))
    parts = [share(examples, np.array(lengths), rank, world_size) for rank in range(world_size)]
    assert sorted(example for part in parts for example in part) == examples
    tokens = [sum(lengths[example] for example in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(lengths)


@given(rows, st.integers(1, 2000))
def test_micro_batches_keep_the_budget_and_lose_nothing(lengths: list[int], budget: int) -> None:
    examples = list(range(len(lengths)))
    groups = micro_batches(examples, np.array(lengths), budget)
    assert sorted(example for group in groups for example in group) == examples
    for group in groups:
        longest = max(lengths[example] for example in group)
        assert len(group) * longest <= budget or len(group) == 1


def test_the_budget_of_k_longest_rows_holds_more_rows_where_they_are_shorter() -> None:
    lengths = np.array([10, 10, 10, 10, 2, 2, 2, 2])
    assert micro_batches(list(range(8)), lengths, 2 * 10) == [[0, 1], [2, 3], [4, 5, 6, 7]]
