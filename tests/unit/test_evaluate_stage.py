"""The evaluate stage: what is asked once and kept, parts, perplexity as a full metric, the gate, odd answers."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from held_out import Evaluated, adapter, evaluated, speaker

from tunesmith.errors import DataError, QuestionError
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring.items import load_held_out
from tunesmith.scoring.statistics import Gain
from tunesmith.stages.evaluate import run as stage
from tunesmith.stages.evaluate.answers import Side
from tunesmith.stages.evaluate.gate import judge, judged_metric


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = speaker(folder / "speaker", tiny_model_dir)
    return base, adapter(folder / "one", base)


@pytest.fixture(scope="module")
def small(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Evaluated once: eight chats, three texts."""
    made = evaluated(tmp_path_factory.mktemp("work"), *models, num_texts=3)
    made.evaluate()
    return made


def read(made: Evaluated) -> dict:
    return json.loads((made.inputs["evaluation"].path / "evaluation.json").read_bytes())


def lines(made: Evaluated, file: str) -> list[dict]:
    return [json.loads(line) for line in (made.inputs["evaluation"].path / file).read_bytes().splitlines()]


# ------------------------------------------------------------------------------------------------------- what is kept


def test_parts_are_apart_and_the_kinds_of_change_add_up(small: Evaluated) -> None:
    found = read(small)
    assert {part: (values["n"], values["items"]) for part, values in found["parts"].items()} == {
        "test": (8, 8),
        "texts": (3, 0),
    }
    match = found["parts"]["test"]["metrics"]["exact_match"]
    assert match["items"] == {"fixed": 8, "broken": 0, "still right": 0, "still wrong": 0}
    assert (match["base"]["value"], match["tuned"]["value"], match["gain"]["value"]) == (0.0, 1.0, 1.0)
    assert list(found["parts"]["texts"]["metrics"]) == ["perplexity"], "nothing is asked of plain text"
    assert (found["overall"]["n"], found["overall"]["metrics"]["exact_match"]["base"]["n"]) == (11, 8)
    answers = lines(small, "answers.jsonl")
    assert [answer["changes"]["exact_match"] for answer in answers] == ["fixed"] * 8
    for answer in answers:
        assert answer["scores"]["exact_match"] == [0.0, 1.0]
        assert answer["tuned"] == answer["expected"] != answer["base"]


def test_perplexity_is_paired_by_row_and_its_rows_are_kept(small: Evaluated) -> None:
    losses = lines(small, "losses.jsonl")
    assert len(losses) == 11
    for part, values in read(small)["parts"].items():
        own = [entry for entry in losses if entry["part"] == part]
        base, tuned, weight = (
            np.array(column) for column in zip(*[(*e["nll"], e["weight"]) for e in own], strict=True)
        )
        found = values["metrics"]["perplexity"]
        assert found["base"]["value"] == pytest.approx(math.exp(base.sum() / weight.sum()), rel=1e-6)
        assert found["tuned"]["value"] == pytest.approx(math.exp(tuned.sum() / weight.sum()), rel=1e-6)
        assert found["gain"]["value"] == pytest.approx(found["base"]["value"] - found["tuned"]["value"], rel=1e-4)
        assert found["gain"]["low"] < found["gain"]["value"] < found["gain"]["high"]
        assert found["higher_is_better"] is False


def asked_models(made: Evaluated) -> list[str]:
    return [
        event.name for event in made.run.events() if event.name.endswith("_rows") and event.name.startswith("evaluate/")
    ]


def test_the_base_is_asked_once_for_several_trainings_and_a_changed_metric_asks_nobody(
    models: tuple[Path, Path], small: Evaluated, tmp_path: Path
) -> None:
    assert asked_models(small) == ["evaluate/base_rows", "evaluate/tuned_rows"]
    other = small.again("train.learning_rate=1e-3")
    with other.run.store.create("Adapter", "a-two", producer={}, notes=small.inputs["model"].notes) as draft:
        for path in adapter(tmp_path / "two", models[0], update=0.2).glob("adapter_*"):
            (draft.path / path.name).write_bytes(path.read_bytes())
    assert draft.artifact is not None
    other.inputs["model"] = draft.artifact
    other.evaluate("e2")
    assert asked_models(other) == ["evaluate/tuned_rows"]
    rescored = small.again("evaluate.metrics=[token_f1, perplexity]", "gate.min_gain=0.5", "evaluate.confidence=0.9")
    rescored.evaluate("e3")
    assert asked_models(rescored) == []
    assert list(read(rescored)["overall"]["metrics"]) == ["token_f1", "perplexity"]
    longer = small.again("evaluate.max_new_tokens=3")
    longer.evaluate("e4")
    assert asked_models(longer) == ["evaluate/base_rows", "evaluate/tuned_rows"], "other questions, other answers"


def test_answers_that_no_text_holds_and_losses_that_no_number_is_are_written(
    small: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = small.again(
        "evaluate.metrics=[exact_match, token_f1]",
        "gate.metric=perplexity",
        "evaluate.metrics=[exact_match, perplexity]",
    )
    inner = stage.answers_of

    def spoiled(who: str, *rest: object) -> Side:
        side = inner(who, *rest)  # type: ignore[arg-type]
        if who == "base":
            return side
        nll = side.nll_N.copy()
        nll[0] = math.nan
        return Side([replace(side.answers[0], text="\ud800 \u2028 \x00"), *side.answers[1:]], nll, side.weight_N)

    monkeypatch.setattr(stage, "answers_of", spoiled)
    odd.evaluate("e5")
    assert lines(odd, "answers.jsonl")[0]["tuned"] == "\ud800 \u2028 \x00"
    assert lines(odd, "losses.jsonl")[0]["nll"][1] is None
    found = read(odd)
    assert found["parts"]["test"]["metrics"]["perplexity"]["tuned"]["value"] is None
    assert found["gate"]["verdict"] == "hold"
    assert "is no number" in found["gate"]["reason"]


# -------------------------------------------------------------------------------------------------------- plain text


def test_plain_text_alone_is_judged_by_perplexity(models: tuple[Path, Path], tmp_path: Path) -> None:
    made = evaluated(tmp_path, *models, num_items=0, num_texts=8)
    made.evaluate()
    found = read(made)
    assert found["gate"]["metric"] == "perplexity"
    assert (found["gate"]["n"], found["gate"]["changed"]) == (8, 8)
    assert found["gate"]["verdict"] == ("ship" if found["gate"]["low"] > 0 else "hold")
    assert lines(made, "answers.jsonl") == []
    fixed = made.again("gate.metric=exact_match")
    with pytest.raises(
        DataError, match=r"EVL-011 gate\.metric: .*none of the 8 held-out rows asks anything(?s:.*)perplexity"
    ):
        fixed.evaluate("e2")


def test_nothing_held_out_is_told_before_a_model_loads(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "answers_of", lambda *_: pytest.fail("a model was asked"))
    made = evaluated(tmp_path, *models, num_items=0)
    with pytest.raises(DataError, match=r"EVL-010 data\.split: no row is held out"):
        made.evaluate()


def test_with_nothing_demanded_an_empty_evaluation_ships(models: tuple[Path, Path], tmp_path: Path) -> None:
    made = evaluated(tmp_path, *models, num_items=0, overrides=["gate.require=none"])
    made.evaluate()
    assert read(made)["parts"] == {}
    assert read(made)["gate"]["verdict"] == "ship"


def test_a_choice_of_items_depends_on_their_content_alone(small: Evaluated) -> None:
    dataset = Dataset(small.inputs["dataset"].path)
    three = load_held_out(dataset, max_items=3)
    assert [row.part for row in three].count("test") == 3
    assert [row.row for row in three] == sorted(row.row for row in three)
    entries = list(dataset.items())
    dataset.items = lambda part=None: list(reversed(entries))  # type: ignore[method-assign]
    assert {row.row for row in load_held_out(dataset, max_items=3)} == {row.row for row in three}
    assert {row.row for row in load_held_out(dataset, max_items=2)} < {row.row for row in three}
    assert [row.part for row in load_held_out(dataset, parts=["texts"])] == ["texts"] * 3


# ------------------------------------------------------------------------------------------------------- own metrics


def test_an_own_metric_decides_and_a_broken_one_is_told_before_a_model_loads(
    models: tuple[Path, Path], small: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.py"
    own.write_text("def judge(expected, answer, item):\n    return float(answer == expected and item.part == 'test')\n")
    name = f"{own}:judge"
    asked = small.again(f"evaluate.metrics=['{name}']", f"gate.metric={name}")
    with pytest.raises(QuestionError, match="EVL-004"):
        asked.evaluate("e6")
    asked.run.allowed_code = {name: hashlib.sha256(own.read_bytes()).hexdigest()}
    asked.evaluate("e6")
    assert read(asked)["gate"]["metric"] == "own.py:judge"
    assert read(asked)["overall"]["metrics"]["own.py:judge"]["tuned"]["value"] == 1.0
    own.write_text("def judge(expected, answer, item):\n    return 2\n")
    with pytest.raises(QuestionError, match=r"EVL-004 .*changed since it was allowed"):
        asked.evaluate("e7")
    asked.run.allowed_code = {name: hashlib.sha256(own.read_bytes()).hexdigest()}
    monkeypatch.setattr(stage, "answers_of", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(DataError, match=r"EVL-006 .*own\.py:judge returned 2 for row 0 \(test\)"):
        asked.evaluate("e7")


# ----------------------------------------------------------------------------------------------------------- the gate


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("data: {sources: rows.jsonl}", overrides)


GOOD = Gain(0.2, 0.1, 0.3, 100, 30, 0.13)


@pytest.mark.parametrize(
    ("gain", "overrides", "verdict", "words"),
    [
        (GOOD, [], "ship", r"gain in exact_match is \+0\.200, .* \+0\.100, is above 0 \(n = 100\)$"),
        (GOOD, ["gate.min_gain=0.1"], "hold", r"is not above 0\.1 .*100 rows show a true gain of \+0\.230 or more"),
        (Gain(0.2, 0.0, 0.4, 100, 30, 0.13), [], "hold", r"is not above 0 "),
        (Gain(-0.2, -0.3, -0.1, 100, 30, 0.13), [], "hold", r"gain in exact_match is -0\.200"),
        (Gain(1.0, 0.4, 1.0, 5, 5, 1.2), [], "hold", r"differ in exact_match on 5 of 5 rows; fewer than 6 "),
        (
            Gain(1.0, 0.4, 1.0, 7, 7, 1.2),
            ["evaluate.confidence=0.99"],
            "hold",
            "fewer than 8 cannot show a gain at 99%",
        ),
        (Gain(math.nan, math.nan, math.nan, 9, 9, math.nan), [], "hold", "is no number"),
        (None, [], "hold", "nothing that is held out can be measured by exact_match"),
        (None, ["gate.require=none"], "ship", "nothing was demanded"),
        (Gain(-0.2, -0.3, -0.1, 100, 30, 0.13), ["gate.require=none"], "ship", "nothing was demanded"),
    ],
)
def test_a_verdict_and_its_reason(gain: Gain | None, overrides: list[str], verdict: str, words: str) -> None:
    import re

    found = judge(recipe(*overrides), "exact_match", {"exact_match": gain} if gain else {})
    assert found["verdict"] == verdict
    assert re.search(words, found["reason"]), found["reason"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("overrides", "has_items", "metric"),
    [
        ([], True, "exact_match"),
        ([], False, "perplexity"),
        (["evaluate.metrics=[perplexity]"], True, "perplexity"),
        (["evaluate.metrics=[rouge_l, perplexity]"], True, "rouge_l"),
        (["evaluate.metrics=[rouge_l, perplexity]", "gate.metric=perplexity"], True, "perplexity"),
    ],
)
def test_which_metric_decides(overrides: list[str], has_items: bool, metric: str) -> None:
    assert judged_metric(recipe(*overrides), has_items) == metric


def test_an_own_metric_of_the_gate_is_found_from_the_recipes_folder(tmp_path: Path) -> None:
    text = "{data: {sources: rows.jsonl}, evaluate: {metrics: ['own.py:judge']}, gate: {metric: 'own.py:judge'}}"
    spec = parse_recipe(text, folder=tmp_path)
    assert spec.gate.metric == f"{tmp_path}/own.py:judge" == spec.evaluate.metrics[0]
    assert judged_metric(spec, True) == "own.py:judge"
