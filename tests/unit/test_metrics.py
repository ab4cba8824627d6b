"""Metrics of one answer, and Python code that is only run when the user allowed it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from tunesmith.errors import DataError, QuestionError, RecipeError
from tunesmith.scoring.items import Item
from tunesmith.scoring.metrics import METRICS, Metric, load_metric, score, shown_names

ITEM = Item(row=7, part="unseen rows", messages=({"role": "user", "content": "?"},), expected="", prompt_ids=(1, 2))


@pytest.mark.parametrize(
    ("metric", "expected", "answer", "value"),
    [
        ("exact_match", "yes", " yes\n", 1.0),
        ("exact_match", "yes", "Yes", 0.0),
        ("exact_match", "a  b", "a b", 0.0),
        ("exact_match", "", "", 1.0),
        ("token_f1", "the cat sat", "a cat sat.", 1.0),
        ("token_f1", "one two three", "one four", 0.4),  # precision 1/2, recall 1/3
        ("token_f1", "one one two", "one", 0.5),  # precision 1, recall 1/3
        ("token_f1", "the", "", 1.0),  # no word on either side
        ("token_f1", "cat", "", 0.0),
        ("rouge_l", "a b c d", "a c d", 6 / 7),  # common subsequence of 3: precision 1, recall 3/4
        ("rouge_l", "a b c d", "d c b a", 0.25),
        ("rouge_l", "a b", "", 0.0),
        ("rouge_l", "", " ", 1.0),
        ("json_validity", '{"a": 1, "b": 2}', '{"b": 0, "a": null}', 1.0),
        ("json_validity", '{"a": 1}', '{"a": 1, "b": 2}', 0.0),
        ("json_validity", '{"a": 1}', "[1]", 0.0),
        ("json_validity", "no json", "[1]", 1.0),
        ("json_validity", "no json", "NaN", 0.0),
        ("json_validity", "no json", '{"a": 1', 0.0),
        ("json_validity", "no json", "", 0.0),
        ("json_validity", "no json", "[" * 100_000, 0.0),
        ("json_validity", '{"a": {"b": 1}}', '{"a": {"c": [2]}}', 1.0),  # keys below the top are not compared
        ("json_validity", '{"a": 1}', '{"a": NaN}', 0.0),
        ("json_validity", '{"a": 1}', '{"a": Infinity}', 0.0),
        ("json_validity", '{"a": 1}', '{"a": 1} thanks', 0.0),
        ("json_validity", "[1, 2]", "[]", 1.0),
        ("json_validity", "[1, 2]", '{"a": 1}', 0.0),
        ("json_validity", "42", "true", 1.0),
        ("exact_match", "caf\u00e9", "cafe\u0301", 0.0),  # equal to the eye only: nothing is normalised
        ("exact_match", "\ud800", "\ud800", 1.0),
        ("token_f1", "The Theatre", "theatre", 1.0),  # an article inside a word stays
        ("token_f1", "Größe: 5", "größe 5", 1.0),
        ("token_f1", "3.5", "35", 1.0),  # SQuAD takes punctuation away without a blank
        ("token_f1", "我是人", "我是", 0.8),  # precision 1, recall 2/3
        ("rouge_l", "Привет, мир!", "привет мир", 1.0),
        ("rouge_l", "東京都", "京都", 0.8),
        ("rouge_l", "हिन्दी भाषा", "भाषा", 2 / 3),
        ("rouge_l", "!?", "!?", 1.0),
        ("rouge_l", "!?", "?", 0.0),
        ("rouge_l", "a b", "!", 0.0),
    ],
)
def test_a_metric_gives_the_value_worked_out_by_hand(metric: str, expected: str, answer: str, value: float) -> None:
    assert METRICS[metric](expected, answer, ITEM) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("The cat sat on the mat.", "the cat is on a mat"),
        ("x_y-z 12.5", "X Y 12"),
        ("one two three two", "two one two"),
        ("a", "b"),
    ],
)
def test_rouge_l_on_ascii_is_that_of_the_package(expected: str, answer: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    package = RougeScorer(["rougeL"], use_stemmer=False).score(expected, answer)["rougeL"].fmeasure
    assert METRICS["rouge_l"](expected, answer, ITEM) == pytest.approx(package)


def test_own_metrics_of_files_with_one_name_are_told_apart() -> None:
    asked = ["/a/x/own.py:f", "/b/x/own.py:f", "/b/own.py:f", "/b/other.py:f", "exact_match"]
    assert list(shown_names(asked).values()) == [
        "a/x/own.py:f",
        "b/x/own.py:f",
        "b/own.py:f",
        "other.py:f",
        "exact_match",
    ]


def test_an_unknown_metric_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"EVL-003 .*'exact_matches'(?s:.*)did you mean exact_match\?"):
        load_metric("exact_matches", {})


@pytest.fixture
def own_metric(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("def first_word(expected, answer, item):\n    return float(answer.split()[0] == expected)\n")
    return path


def allowed(name: str) -> dict[str, str]:
    return {name: hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()}


def test_code_that_nobody_allowed_is_not_loaded(own_metric: Path) -> None:
    own_metric.write_text(f"from pathlib import Path\nPath({str(own_metric)!r} + '.ran').touch()\n")
    with pytest.raises(QuestionError, match=r"EVL-004 (?s:.*)--allow-code"):
        load_metric(f"{own_metric}:first_word", {})
    assert not Path(f"{own_metric}.ran").exists()


def test_allowed_code_that_changed_since_is_asked_for_again(own_metric: Path) -> None:
    name = f"{own_metric}:first_word"
    consent = allowed(name)
    own_metric.write_text(own_metric.read_text() + "# changed\n")
    with pytest.raises(QuestionError, match="changed since it was allowed"):
        load_metric(name, consent)


def test_an_allowed_metric_is_loaded_and_shown_without_its_folder(own_metric: Path) -> None:
    name = f"{own_metric}:first_word"
    metric = load_metric(name, allowed(name))
    assert metric.name == "mine.py:first_word"
    assert score(metric, "yes", "yes indeed", ITEM) == 1.0


def test_a_metric_that_fails_is_named_with_the_item_and_the_exception(own_metric: Path) -> None:
    name = f"{own_metric}:first_word"
    with pytest.raises(
        DataError, match=r"EVL-006 .*mine\.py:first_word raised IndexError: .* for row 7 \(unseen rows\)"
    ):
        score(load_metric(name, allowed(name)), "yes", "", ITEM)


def test_a_metric_that_leaves_python_is_answered_like_any_other(own_metric: Path) -> None:
    own_metric.write_text("import sys\ndef first_word(expected, answer, item):\n    sys.exit(0)\n")
    name = f"{own_metric}:first_word"
    with pytest.raises(DataError, match=r"EVL-006 .*raised SystemExit"):
        score(load_metric(name, allowed(name)), "yes", "yes", ITEM)


def test_a_file_of_a_metric_may_hold_dataclasses_and_takes_no_known_name(own_metric: Path) -> None:
    path = own_metric.with_name("json.py")
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Seen:\n    text: str\n"
        "def judge(expected, answer, item):\n    return Seen(answer).text == expected\n"
    )
    name = f"{path}:judge"
    assert score(load_metric(name, allowed(name)), "yes", "yes", ITEM) == 1.0
    import json

    assert json.loads("1") == 1


@pytest.mark.parametrize("value", [1.01, -0.5, math.nan, None, "good"])
def test_a_score_outside_of_zero_to_one_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"EVL-006 .*returned"):
        score(Metric("odd", lambda expected, answer, item: value), "yes", "yes", ITEM)  # type: ignore[arg-type,return-value]


def test_a_file_without_that_function_names_those_it_has(own_metric: Path) -> None:
    name = f"{own_metric}:last_word"
    with pytest.raises(RecipeError, match=r"EVL-005 .*no function 'last_word'(?s:.*)first_word"):
        load_metric(name, allowed(name))


def test_a_file_that_cannot_be_loaded_says_why(own_metric: Path) -> None:
    own_metric.write_text("1 / 0\n")
    name = f"{own_metric}:first_word"
    with pytest.raises(RecipeError, match=r"EVL-005 .*ZeroDivisionError"):
        load_metric(name, allowed(name))
    with pytest.raises(RecipeError, match=r"EVL-005 .*cannot be read"):
        load_metric(f"{own_metric.parent}/none.py:f", {})
