"""Events: one reader for all; a redone step is told once; a torn line costs itself only."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.runs.events import Event, Tail, read_events, read_lines


def line(attempt: int, step: int | None, value: object, name: str = "train/loss") -> str:
    return Event(1.0, attempt, "train", step, name, value, "nats").to_line() + "\n"


def values(path: Path) -> list[object]:
    return [event.value for event in read_events(path)]


def test_of_a_step_told_twice_the_last_attempt_counts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1, 1, "a1") + line(1, 2, "a2") + line(1, 3, "a3") + line(2, 2, "b2") + line(2, 3, "b3"))
    assert values(path) == ["a1", "b2", "b3"]
    assert len(read_lines(path)) == 5


def test_within_one_attempt_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1, 1, "first") + line(1, 1, "second"))
    assert values(path) == ["second"]


def test_events_without_a_step_are_all_kept_of_their_last_attempt(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1, None, 10) + line(2, None, 20) + line(2, None, 30) + line(1, None, 5, "prepare/rows"))
    assert values(path) == [20, 30, 5]


def test_a_torn_last_line_and_a_foreign_line_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        line(1, 1, 0.5) + "not json\n" + '{"json": "but no event"}\n' + line(1, 2, 0.25) + line(1, 3, 1)[:-9]
    )
    assert values(path) == [0.5, 0.25]
    assert read_events(tmp_path / "absent.jsonl") == []


def test_numbers_that_json_does_not_have_survive() -> None:
    event = Event(1.0, 1, "train", 1, "loss", {"a": [math.inf]}, "")
    assert "Infinity" in event.to_line()
    for value in (math.inf, -math.inf):
        again = Event.from_line(Event(1.0, 1, "train", 1, "loss", value, "").to_line())
        assert again is not None
        assert again.value == value
    nan = Event.from_line(Event(1.0, 1, "train", 1, "loss", math.nan, "").to_line())
    assert nan is not None
    assert math.isnan(nan.value)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(plain_values.filter(lambda value: value not in ("NaN", "Infinity", "-Infinity")))
def test_any_plain_value_reads_back_as_written(value: object) -> None:
    again = Event.from_line(Event(1.0, 2, "s", None, "n", value, "u").to_line().encode("utf-8", "backslashreplace"))
    assert again is not None
    assert again.value == value


def test_a_tail_gives_new_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1, 1, "before"))
    tail = Tail(path)
    assert tail.read() == []
    whole = line(1, 3, "three")
    with path.open("a") as file:
        file.write(line(1, 2, "two") + whole[:10])
    assert [event.value for event in tail.read()] == ["two"]
    with path.open("a") as file:
        file.write(whole[10:])
    assert [event.value for event in tail.read()] == ["three"]
