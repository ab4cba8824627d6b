"""Duplicates, conflicts, leaks and splits over all rows: who goes, for which twin, in which direction."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from columns import (
    AUTO,
    SPLIT,
    TEST,
    TRAIN,
    VALIDATION,
    chat,
    choose,
    facts_of,
    part,
    reading,
    recipe,
    sign,
    text,
    verdicts,
)  # fmt: skip

from tunesmith.runs.dataset import SPLITS
from tunesmith.stages.prepare.sets.duplicates import conflicts
from tunesmith.stages.prepare.sets.groups import best_of, first_equals
from tunesmith.stages.prepare.sets.select import question, select
from tunesmith.stages.prepare.sets.words import mixed

KEEP = "data.leaks=keep"
NONE = "data.deduplicate=none"


def test_first_equals_names_the_first_row_that_is_equal_in_all_columns() -> None:
    left, right = np.array([5, 1, 5, 1, 5], np.uint64), np.array([0, 0, 0, 1, 0])
    assert first_equals(left, right).tolist() == [0, 1, 0, 3, 0]
    assert first_equals(np.zeros(0, np.int64)).tolist() == []


def test_rows_whose_hashes_collide_are_told_apart() -> None:
    first = np.arange(4, dtype=np.uint64)
    second = mixed(first) ^ np.uint64(9)  # the two fold to one hash
    assert first_equals(first, second).tolist() == [0, 1, 2, 3]
    assert first_equals(np.append(first, first), np.append(second, second)).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_best_scored_stays_and_among_equals_the_first() -> None:
    groups = np.array([0, 0, 0, 3, 3, 5])
    scores = np.array([0.1, 0.9, 0.9, np.nan, -2.0, np.nan])
    assert best_of(groups, scores).tolist() == [1, 1, 1, 4, 4, 5]


# ------------------------------------------------------------------------------------------------------- duplicates


def test_equal_rows_go_but_one_and_never_one_held_out_for_one_trained_on() -> None:
    rows = [chat("q", "a"), chat("q", "a", score=1.0), chat("q", "a", TEST), chat("r", "a"), chat("q", "a", gone=True)]
    found = verdicts(choose(rows, recipe(overrides=[KEEP])))
    assert found == {0: {"rule": "duplicate", "value": None, "detail": None, "threshold": None, "kept_twin": 1}}
    assert not verdicts(choose(rows, recipe(overrides=[KEEP, NONE])))


@pytest.mark.parametrize(("on", "gone"), [("both", {1}), ("prompt", {1, 2}), ("answer", {1, 3})])
def test_near_duplicates_are_looked_for_on_prompt_answer_or_both(on: str, gone: set[int]) -> None:
    asked, said = text(1, 40), text(2, 30)
    rows = [
        chat(asked, said),
        chat(text(1, 40, {39: "zebra"}), text(2, 30, {0: "zebra"})),
        chat(text(1, 40, {38: "zebra"}), text(3, 30)),
        chat(text(4, 40), text(2, 30, {29: "zebra"})),
    ]
    found = verdicts(choose(rows, recipe(overrides=[f"data.deduplicate={{type: near, on: {on}}}", KEEP])))
    assert set(found) == gone
    assert all(line["rule"] == "near_duplicate" and line["kept_twin"] == 0 for line in found.values())
    assert all(0.8 <= line["value"] < 1 and line["threshold"] == 0.8 for line in found.values())


def test_two_questions_about_one_long_passage_are_no_near_duplicates() -> None:
    passage = text(1, 400)
    rows = [chat(f"{passage} Who was it?", "The miller"), chat(f"{passage} When was it?", "In the year 1742")]
    assert not verdicts(choose(rows, recipe(overrides=["data.deduplicate=near", KEEP])))
    assert set(verdicts(choose(rows, recipe(overrides=["data.deduplicate={type: near, on: prompt}", KEEP])))) == {1}


def test_equal_words_are_near_duplicates_however_few() -> None:
    rows = [chat("What is it?", "this", score=0.1), chat("what is it", "that", score=0.2), chat("what is that", "this")]
    found = verdicts(choose(rows, recipe(overrides=["data.deduplicate={type: near, on: prompt}", KEEP])))
    assert {row: (line["rule"], line["value"], line["kept_twin"]) for row, line in found.items()} == {
        0: ("near_duplicate", 1.0, 1)
    }


def test_prompts_alike_whose_answers_hold_no_word_are_near_duplicates() -> None:
    rows = [chat(text(1, 30), "!"), chat(text(1, 30, {29: "zebra"}), "?"), chat(text(2, 30), "...")]
    found = verdicts(choose(rows, recipe(overrides=["data.deduplicate={type: near, on: both}", KEEP])))
    assert set(found) == {1}


def test_what_hangs_together_is_one_group_and_keeps_the_best_scored() -> None:
    """Each is alike to the next one only; the ends are farther apart than the threshold, and the value says so."""
    steps = [{place: "zebra" for place in range(50, 50 + 6 * number, 6)} for number in range(4)]
    gone = [chat(text(seed, 9), "yes", gone=True) for seed in range(10, 19)]
    rows = [chat(text(1, 200, step), "yes", score=float(number == 2)) for number, step in enumerate(steps)]
    rows.append(chat(text(1, 200, steps[1]) + " indeed", "yes", TEST))
    spec = recipe(overrides=["data.deduplicate={type: near, threshold: 0.93}", KEEP])
    assert {row - 9: line["kept_twin"] - 9 for row, line in verdicts(choose([*gone, *rows], spec)).items()} == {
        0: 2,
        1: 2,
        3: 2,
    }
    found = verdicts(choose(rows, spec))
    assert {row: line["kept_twin"] for row, line in found.items()} == {0: 2, 1: 2, 3: 2}
    assert found[0]["value"] < 0.93 <= found[1]["value"]


def test_near_duplicates_do_not_depend_on_parts_nor_on_the_rows_around_them() -> None:
    rng = np.random.default_rng(7)
    rows = []
    for seed in range(60):
        for copy in range(int(rng.integers(1, 4))):
            changed = {int(place): f"z{copy}" for place in rng.integers(0, 60, copy)}
            rows.append(chat(text(seed, 60, changed), f"answer {seed}", int(rng.integers(0, 4)), score=float(copy)))
    spec = recipe(overrides=["data.deduplicate={type: near, threshold: 0.6}", "data.leaks.near=0.6"])
    whole = choose(rows, spec)
    assert len(whole.verdicts) > 20
    for size in (5, 31):
        cut = choose(rows, spec, size=size)
        assert cut.verdicts.equals(whole.verdicts)
        assert cut.splits.tolist() == whole.splits.tolist()


# -------------------------------------------------------------------------------------------------------- conflicts


def test_conflicting_answers_are_told_and_dropped_only_where_asked() -> None:
    rows = [
        chat("What is it?", "yes", score=0.1),
        chat("what is IT?", "no", score=0.9),
        chat("What else?", "yes"),
        chat("What else?", "Yes "),  # says the same
        chat("What is it?", "maybe", TEST),
    ]
    told = choose(rows, recipe(overrides=[KEEP]))
    assert told.told["conflicts"] == {"prompts": 1, "rows": 2, "samples": [[0, 1]]}
    assert not verdicts(told)
    best = verdicts(choose(rows, recipe(overrides=[KEEP, "data.deduplicate={type: exact, conflicts: keep_best}"])))
    assert {row: (line["rule"], line["kept_twin"]) for row, line in best.items()} == {0: ("conflict", 1)}
    all_of_them = verdicts(choose(rows, recipe(overrides=[KEEP, "data.deduplicate={type: exact, conflicts: drop}"])))
    assert {row: line["kept_twin"] for row, line in all_of_them.items()} == {0: None, 1: None}


def test_a_row_without_an_answer_contradicts_nobody() -> None:
    same = np.zeros(3, np.uint64)
    found = conflicts(np.ones(3, bool), (same, same), np.array([0, 7, 7], np.uint64), np.zeros(3), np.zeros(3))
    assert not len(found.rows)


# ------------------------------------------------------------------------------------------------------------ leaks


def leak(train: str, test: str, answer: str = "yes", *, overrides: tuple[str, ...] = ()) -> dict[str, Any] | None:
    rows = [chat(train, answer), chat(test, "no", TEST), chat(text(77, 30), "yes")]
    return verdicts(choose(rows, recipe(overrides=overrides))).get(0)


@pytest.mark.parametrize(
    ("train", "test", "answer", "way", "value"),
    [
        ("What is it?", "What is it?", "no", "content", 1.0),
        ("What is it?", "what  is IT?", "yes", "prompt", 1.0),
        ("What is it?", "What - is it!", "yes", "words", 1.0),
        (text(1, 30), text(1, 30, {29: "zebra"}), "yes", "near", 25 / 27),
    ],
)
def test_a_training_row_that_gives_a_test_row_away_goes(
    train: str, test: str, answer: str, way: str, value: float
) -> None:
    found = leak(train, test, answer)
    assert found is not None
    assert found["value"] == pytest.approx(value)
    assert (found["rule"], found["kept_twin"]) == ("leak", 1)
    assert found["detail"] == f"{way}: train gives test away"
    assert found["threshold"] == (0.8 if way == "near" else None)
    assert leak(train, test, answer, overrides=(KEEP,)) is None


def test_a_leak_by_likeness_can_be_switched_off_and_the_others_stay() -> None:
    assert leak(text(1, 30), text(1, 30, {29: "zebra"}), overrides=("data.leaks.near=null",)) is None
    assert leak("What is it?", "What - is it!", overrides=("data.leaks.near=null",)) is not None


def test_a_short_question_inside_a_long_row_is_found_by_its_runs_of_words() -> None:
    asked = text(5, 20)
    inside = f"{text(6, 200)} {asked} {text(7, 200)}"
    assert leak(inside, asked) is None, "alike it is not"
    found = leak(inside, asked, overrides=("data.leaks={overlap: 0.7}",))
    assert found is not None
    assert found["detail"] == "overlap: train gives test away"
    assert (found["value"], found["threshold"], found["kept_twin"]) == (1.0, 0.7, 1)
    in_the_answer = leak(text(8, 30), asked, f"I quote: {asked}", overrides=("data.leaks={overlap: 0.7}",))
    assert in_the_answer is not None
    half = f"{text(6, 200)} {' '.join(asked.split()[:15])}"
    assert leak(half, asked, overrides=("data.leaks={overlap: 0.7}",)) is None  # three of its eight runs
    assert leak(half, asked, overrides=("data.leaks={overlap: 0.3}",)) is not None
    assert leak(half, "too short a question", overrides=("data.leaks={overlap: 0.3}",)) is None


def test_an_instruction_that_all_test_rows_share_is_no_leak_by_overlap() -> None:
    instruction = text(9, 60)
    rows = [chat(f"{instruction} {text(seed, 20)}", "yes", TEST) for seed in range(100, 130)]
    rows += [chat(f"{instruction} {text(50, 20)}", "yes"), chat(f"{instruction} {text(107, 20)} thanks", "yes")]
    spec = recipe(overrides=["data.leaks={overlap: 0.5, near: null}"])
    assert {row: line["kept_twin"] for row, line in verdicts(choose(rows, spec)).items()} == {31: 7}


def test_directions_are_told_and_validation_gives_way_to_test() -> None:
    rows = [
        chat("q one", "a"),
        chat("q one", "b", VALIDATION),
        chat("q one", "c", TEST),
        chat("q two", "a", VALIDATION),
    ]
    rows.append(chat("q two", "b"))
    chosen = choose(rows, recipe())
    found = verdicts(chosen)
    assert {row: (line["detail"].split(": ")[1], line["kept_twin"]) for row, line in found.items()} == {
        0: ("train gives test away", 2),
        1: ("validation gives test away", 2),
        4: ("train gives validation away", 3),
    }
    assert sum(chosen.told["leaks"].values()) == 3


def test_the_most_alike_held_out_row_is_named() -> None:
    rows = [
        chat(text(1, 60), "a"),
        chat(text(1, 60, {30: "zebra"}), "b", TEST),
        chat(text(1, 60, {59: "zebra"}), "c", TEST),
    ]
    assert verdicts(choose(rows, recipe()))[0]["kept_twin"] == 2


def test_rows_of_other_files_are_watched_for_and_named_by_file_and_line() -> None:
    rows = [chat(text(1, 30), "a"), chat("Who is it?", "b"), chat(text(3, 30), "c"), chat("Who is it?", "b", TEST)]
    bench = [{"turns": [("text", "who is it")]}, {"turns": [("text", text(1, 30, {0: "zebra"}))]}]
    chosen = choose(rows, recipe(overrides=[NONE, "data.leaks.near=0.7"]), watched=bench)
    found = verdicts(chosen)
    assert found[0]["detail"] == "near: train gives data.leaks.against away (bench.jsonl:2)"
    assert found[0]["kept_twin"] is None
    assert found[1]["kept_twin"] == 3, "a row of this run is the surer twin"
    assert set(found) == {0, 1}
    assert len(chosen.splits) == len(rows)


def test_a_check_that_nobody_wrote_asks_before_it_takes_much() -> None:
    rows = [chat(text(seed, 40, {39: "zebra"}), "yes") for seed in range(10)]
    rows += [chat(text(seed, 40), "yes", TEST) for seed in range(10)]
    for written, asks in (([], True), (["data.leaks=drop"], True), (["data.leaks.near=0.8"], False), ([KEEP], False)):
        spec = recipe(overrides=written)
        found = question(spec, choose(rows, spec))
        assert (found is not None) == asks
    asked = question(recipe(), choose(rows, recipe()))
    assert asked is not None
    assert asked.code == "DAT-064"
    assert "10 training rows (100.0%)" in str(asked)
    assert "data.leaks.near=null" in str(asked)
    few = [*rows, *(chat(text(seed, 40), "yes") for seed in range(100, 400))]
    assert question(recipe(), choose(few, recipe())) is None


def test_equal_prompts_are_leaks_even_where_signatures_were_made_without_looking_at_texts() -> None:
    """`check` counts the leaks that a recipe keeps."""
    rows = [chat("What is it?", "a"), chat("what is it?", "b", TEST), chat("Who?", "a"), chat("Who!", "a", TEST)]
    table = part(rows)
    signed = sign([table], recipe(overrides=[NONE, KEEP]))
    strict = recipe(overrides=[NONE, "data.leaks.near=null"])
    assert set(verdicts(select(facts_of(table, rows), strict, reading(signed)))) == {0}


# ----------------------------------------------------------------------------------------------------------- splits


def shares(overrides: list[str]) -> list[str]:
    return ["data.split={validation: 0.2, test: 0.2}", *overrides]


def test_a_row_that_is_alone_is_drawn_by_seed_and_prompt_as_ever() -> None:
    rows = [chat(text(seed, 20), "yes", AUTO) for seed in range(200)]
    spec = recipe(overrides=shares([]))
    expected = []
    for key in part(rows).column("prompt_key").to_pylist():
        digest = blake2b(f"{spec.seed}:{key.hex()}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        expected.append("test" if place < 0.2 else "validation" if place < 0.4 else "train")
    assert [SPLITS[split] for split in choose(rows, spec).splits] == expected
    assert len(set(expected)) == 3


def test_twins_never_straddle_a_split_and_added_rows_move_no_other() -> None:
    rows = [chat(text(seed, 40), "yes", AUTO) for seed in range(100)]
    twins = [chat(text(seed, 40, {39: f"z{copy}"}), "yes", AUTO) for seed in range(50) for copy in range(3)]
    spec = recipe(overrides=shares([]))
    alone = choose(rows, spec).splits
    found = choose([*rows, *twins], spec).splits
    for seed in range(50):
        assert len({found[seed], *found[100 + 3 * seed : 103 + 3 * seed]}) == 1
    assert found[50:100].tolist() == alone[50:].tolist()
    assert len(set(found[100:])) == 3
    straddling = choose([*rows, *twins], recipe(overrides=shares([KEEP]))).splits
    assert any(len({*straddling[100 + 3 * seed : 103 + 3 * seed]}) > 1 for seed in range(50))


def test_the_order_of_rows_moves_none() -> None:
    rows = [chat(text(seed, 40, {39: f"z{copy}"}), "yes", AUTO) for seed in range(60) for copy in range(3)]
    spec = recipe(overrides=shares([]))
    assert choose(rows[::-1], spec).splits[::-1].tolist() == choose(rows, spec).splits.tolist()


def test_equal_prompts_share_a_split_even_where_leaks_are_kept() -> None:
    rows = [chat(f"q {number % 40}", f"a {number}", AUTO) for number in range(200)]
    found = choose(rows, recipe(overrides=shares([KEEP]))).splits
    assert all(len(set(found[number::40])) == 1 for number in range(40))


def test_stratified_splits_hold_out_the_same_share_of_every_kind() -> None:
    kinds = ["common"] * 300 + ["rare"] * 20 + ["single"]
    rows = [chat(text(number, 12), kind, AUTO, meta={"topic": kind}) for number, kind in enumerate(kinds)]
    for by in ("answer", "topic"):
        found = choose(rows, recipe(overrides=shares([f"data.split.stratify={by}"]))).splits
        counts = Counter(zip(kinds, (SPLITS[split] for split in found), strict=True))
        assert [counts["common", split] for split in SPLITS] == [180, 60, 60]
        assert [counts["rare", split] for split in SPLITS] == [12, 4, 4]
        assert counts["single", "train"] == 1
    drawn = Counter(zip(kinds, choose(rows, recipe(overrides=shares([]))).splits.tolist(), strict=True))
    assert drawn["common", 2] != 60 or drawn["rare", 2] != 4


def test_what_a_source_says_is_no_draw() -> None:
    rows = [chat(text(seed, 12), "yes", source) for seed, source in enumerate((TEST, TRAIN, VALIDATION) * 20)]
    assert choose(rows, recipe(SPLIT)).splits.tolist() == [2, 0, 1] * 20
