"""What rows are compared by: words of any script, their runs, MinHash, sketches, boilerplate."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from columns import chat, jaccard, part, random_text, reading, recipe, sign, text

from tunesmith.stages.prepare.sets import words as hashing
from tunesmith.stages.prepare.sets.groups import Sketches, _share, alike, components, similarities
from tunesmith.stages.prepare.sets.signatures import SKETCH, View, Views, boilerplate, made_of, permute, signatures
from tunesmith.stages.prepare.sets.words import words_of

NEAR = recipe(overrides=["data.deduplicate=near", "data.leaks=keep"])
VIEW = Views.of(NEAR).near[0]


def words(*turns: str, unit: str = "words") -> list[list[int]]:
    found = words_of(pa.array(turns, pa.string()), unit)
    return [found.hashes[a:b].tolist() for a, b in zip(found.turns[:-1], found.turns[1:], strict=True)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Where is  my order?", "where IS my\n order!!"),
        ("caf\u00e9 \u201cau lait\u201d", "Cafe\u0301, 'au' lait"),
        ("\uff21\uff22\uff23 \uff11\uff12", "abc 12"),  # full width
        ("\u4f60\u597d\u3002\u4e16\u754c", "\u4f60\u597d \u4e16\u754c"),  # Chinese with its own full stop
        ("one\u2014two\u2026", "one two"),
        ("STRA\u1e9eE", "stra\u00dfe"),
    ],
)
def test_case_blanks_and_punctuation_make_no_other_words(left: str, right: str) -> None:
    first, second = words(left, right)
    assert first == second != []


def test_scripts_without_blanks_have_a_word_per_character() -> None:
    assert [
        len(found)
        for found in words("\u4f60\u597d\u4e16\u754c", "a\u4e2db", "\u0e2a\u0e27\u0e31", "\u043c\u0438\u0440")
    ] == [4, 3, 3, 1]
    assert len(words("to be", unit="characters")[0]) == 4


def test_a_word_is_the_same_wherever_it_stands_and_turns_share_none() -> None:
    first, second, third = words("alpha beta", "beta", "alphabeta")
    assert first[1] == second[0]
    assert len({*first, *third}) == 3
    assert words("") == [[]]
    assert words() == []


def test_hashes_do_not_depend_on_how_a_text_is_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [f"turn {number} says gr\u00fc\u00dfe" for number in range(50)]
    whole = words(*turns)
    monkeypatch.setattr(hashing, "CHUNK", 64)
    assert words(*turns) == whole
    sliced = pa.array(["x", *turns, "y"], pa.string()).slice(1, 50)
    assert words_of(sliced).hashes.tolist() == [word for turn in whole for word in turn]


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_a_run_of_words_has_the_hash_of_its_definition_however_texts_are_cut(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(9)
    found = words_of(pa.array([" ".join(random_text(rng, size)) for size in (3, 40, 0, 1, 16, 90)]))
    spans = hashing.Spans(found.turns[:-1], found.turns[1:])
    hashes = found.hashes.tolist()
    expected, counts = [], []
    for first, end in zip(found.turns[:-1].tolist(), found.turns[1:].tolist(), strict=True):
        runs = range(first, end - length + 1)
        counts.append(len(runs) or int(end > first))
        polynomials = [
            sum(h * hashing._ROOT ** (length - 1 - n) for n, h in enumerate(hashes[r : r + length])) for r in runs
        ]
        expected += hashing.mixed(np.array([value % 2**64 for value in polynomials], np.uint64)).tolist()
        if end > first and not runs:
            expected += hashing.whole(found, hashing.Spans(np.array([first]), np.array([end]))).tolist()
    for block in (1, 50, 1 << 15):
        monkeypatch.setattr(hashing, "BLOCK", block)
        grams, offsets = hashing.grams(found, spans, length)
        assert grams.tolist() == expected
        assert np.diff(offsets).tolist() == counts


def test_a_turn_longer_than_is_looked_at_costs_nothing_but_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "LONGEST", 10)
    assert words("alpha beta gamma") == words("alpha beta delta")


def test_prompt_answer_and_whole_are_the_right_turns() -> None:
    rows = [
        {
            "turns": [
                ("system", "s"),
                ("user", "a b"),
                ("assistant", "c"),
                ("user", "d"),
                ("assistant", "e f"),
                ("user", "g"),
            ]
        },
        {"turns": [("text", "h i")]},
        {"turns": [("user", "j")]},
        {"turns": [("user", "k"), ("assistant", "l"), ("user", "m")], "extra": b'{"answers": []}'},
        {"turns": [("user", "k"), ("assistant", "l")], "extra": b'{"tools":[{"properties":{"answers":{}}}]}'},
        {"turns": [("user", "k"), ("assistant", "l")], "extra": b'{"tools":[],"answers":[{}]}'},
    ]
    table = part(rows)
    found = words_of(table["turns"].combine_chunks().flatten().field("content"))
    names = dict(zip(words("a b c d e f g h i j k l m s")[0], "abcdefghijklms", strict=True))
    spans = hashing.texts(hashing.Turns.of(table), found)

    def read(name: str) -> list[str]:
        both = zip(spans[name].starts, spans[name].ends, strict=True)
        return ["".join(names[word] for word in found.hashes[a:b].tolist()) for a, b in both]

    assert read("prompt") == ["sabcd", "hi", "", "klm", "k", "kl"]
    assert read("answer") == ["ef", "", "", "", "l", ""]
    assert read("both") == ["sabcdefg", "hi", "j", "klm", "kl", "kl"]


def test_rows_that_could_not_be_read_have_no_signature() -> None:
    table = part([chat("a", "b"), chat("c", "d"), chat("e", "f")])
    bad = table.set_column(2, "format", pa.array(["messages", None, "messages"]))
    assert signatures(bad, NEAR).column("row").to_pylist() == [0, 2]
    assert signatures(bad.slice(1, 1), NEAR).num_rows == 0


def test_the_share_of_equal_minima_is_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for shared in (10, 50, 100, 200):
        pool = rng.integers(0, 2**32, 400 - shared, dtype=np.uint32)
        left, right = np.sort(pool[:200]), np.sort(pool[200 - shared :])
        found = permute(np.concatenate([left, right]), np.array([0, 200, 400]))
        errors.append((found[:, 0] == found[:, 1]).mean() - shared / (400 - shared))
    assert max(map(abs, errors)) < 0.1
    assert abs(np.mean(errors)) < 0.05


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 0.95, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = View("both", "words", 5, threshold).bands
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= (0.995 if threshold > 0.1 else 0)


def test_similarity_is_exact_for_texts_that_a_sketch_holds_and_close_for_longer_ones() -> None:
    rng = np.random.default_rng(5)
    rows, pairs = [], []
    for size in (12, 60, 200, 3000):
        words = random_text(rng, size)
        other = list(words)
        for place in rng.integers(0, size, max(size // 40, 1)):
            other[place] = "zebra"
        pairs.append((" ".join(words), " ".join(other)))
        rows += [chat(pairs[-1][0], "same answer to both"), chat(pairs[-1][1], "same answer to both")]
    signed = sign([part(rows[:3]), part(rows[3:], 3)], recipe(overrides=["data.leaks=drop"]))
    view = Views.of(recipe()).near[0]
    assert view.text == "prompt"
    left = np.arange(0, len(rows), 2)
    found = similarities(reading(signed), view, left, left + 1)
    told = [jaccard(*pair, 5) for pair in pairs]
    assert found[:3] == pytest.approx(told[:3], abs=1e-12)
    assert found[3] == pytest.approx(told[3], abs=0.08)
    values, offsets = Sketches.of(reading(signed), view.sketches[0]).take(np.array([1, 3, 7]))
    assert np.diff(offsets).tolist() == [8, 56, SKETCH]
    assert len(values) == offsets[-1]


@pytest.mark.parametrize("times", [3, 400])
def test_a_run_that_a_text_repeats_counts_once(times: int) -> None:
    chorus = "row row row your boat gently down the stream "
    left, right = chorus * times + "merrily we go", chorus * 2 + "merrily we stay"
    signed = sign([part([chat(left, "yes"), chat(right, "yes")])], recipe())
    (found,) = similarities(reading(signed), Views.of(recipe()).near[0], np.array([0]), np.array([1]))
    assert found == pytest.approx(jaccard(left, right, 5), abs=1e-12)


def test_similarity_of_long_texts_of_unequal_length_is_not_biased() -> None:
    rng = np.random.default_rng(6)
    words = random_text(rng, 3500, 10**6)
    rows = [chat(" ".join(words[:2000]), "yes"), chat(" ".join(words), "yes")]
    view = Views.of(recipe()).near[0]
    (found,) = similarities(reading([signatures(part(rows), recipe())]), view, np.array([0]), np.array([1]))
    assert found == pytest.approx(1996 / 3496, abs=0.05)


def test_rows_of_one_band_are_compared_with_each_other_not_only_with_the_first() -> None:
    found = _share(np.array([7, 7, 1, 7, 7, 2]), np.arange(6))
    assert [divmod(int(pair), 6) for pair in found] == [(0, 1), (0, 3), (0, 4), (1, 3), (1, 4), (3, 4)]
    many = _share(np.zeros(1000, np.int64), np.arange(1000))
    assert len(many) < 10 * 1000, "not all with all"


def test_pairs_are_those_at_the_threshold_whatever_the_parts() -> None:
    texts = [text(seed, 40) for seed in range(30)]
    texts += [text(seed, 40, {39: "zebra"}) for seed in range(10)]  # 35 of 37
    texts += [text(seed, 40, {10: "zebra", 20: "zebra", 30: "zebra"}) for seed in range(10, 20)]  # 21 of 51
    rows = [chat(told, "yes") for told in texts]
    told = []
    for size in (50, 7, 1):
        signed = sign([part(rows[at : at + size], at) for at in range(0, 50, size)], recipe())
        found = alike(reading(signed), Views.of(recipe()).near[0], np.ones(50, bool))
        told.append((found.left.tolist(), found.right.tolist(), found.similarity.tolist()))
    assert told[0] == told[1] == told[2]
    assert told[0][:2] == (list(range(10)), list(range(30, 40)))
    assert told[0][2] == pytest.approx([35 / 37] * 10)


def test_what_many_rows_share_makes_them_no_near_duplicates() -> None:
    """A long instruction before a short question: alike by nine words of ten, and yet no twins."""
    instruction = text(99, 100)
    rows = [chat(f"{instruction} {text(seed, 8)}", "yes") for seed in range(40)]
    rows += [
        chat(f"{instruction} {text(3, 8, {7: 'zebra'})}", "yes"),
        chat(instruction, "yes"),
        chat(f"{instruction}?", "no"),
    ]
    spec = recipe(overrides=["data.leaks.near=0.6"])
    tables = [part(rows)]
    view = Views.of(spec).near[0]
    bare = alike(reading([signatures(tables[0], spec)]), view, np.ones(len(rows), bool))
    found = alike(reading(sign(tables, spec)), view, np.ones(len(rows), bool))
    assert len(bare.left) > 100
    assert list(zip(found.left, found.right, strict=True)) == [(3, 40), (41, 42)]


def test_boilerplate_is_counted_once_for_equal_texts() -> None:
    same = [chat(text(1, 30), f"{number}") for number in range(60)]
    assert len(boilerplate([part(same)], recipe(), 60)["prompt/words5/0.8"]) == 0


def test_what_hangs_together_gets_the_first_row_over_long_chains() -> None:
    rng = np.random.default_rng(1)
    order = rng.permutation(1000)
    found = components(2000, order[:-1], order[1:])
    assert set(found[:1000]) == {0}
    assert found[1000:].tolist() == list(range(1000, 2000))
    assert components(3, np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == [0, 1, 2]


def test_answers_with_another_sign_are_two() -> None:
    found = signatures(part([chat("x", "-5"), chat("x", "5"), chat("x", " 5 "), {"turns": [("user", "x")]}]), NEAR)
    answers = found.column("answer").to_pylist()
    assert answers[0] != answers[1] == answers[2]
    assert answers[3] == 0


def test_what_signatures_are_made_of_holds_what_changes_them_and_no_more() -> None:
    table = part([chat(text(1, 30), "yes", 3, meta={"kind": "a"}), chat(text(2, 30), "no", 2)])
    plain = recipe()
    before = signatures(table, plain)
    for written, changes in {
        "seed=3": True,
        "data.sources.3.split=train": True,
        "data.split.stratify=kind": True,
        "data.leaks.near=0.7": True,
        "data.leaks.near=null": True,
        "data.leaks.length=3": True,
        "data.leaks.overlap=0.5": True,
        "data.deduplicate=near": True,
        "data.leaks.against=[x.jsonl]": False,
        "data.sources.0.limit=3": False,
        "data.split.test=0.3": False,
        "data.deduplicate.conflicts=drop": False,
        "data.deduplicate=none": False,
    }.items():
        spec = recipe(overrides=[written])
        assert (made_of(spec) != made_of(plain)) == changes, written
        assert signatures(table, spec).equals(before) != changes, written
