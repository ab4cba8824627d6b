"""Recipes: strict, all problems at once, overrides, origins; YAML's traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import FileError, RecipeError, UsageError
from tunesmith.recipe import code_named, difference, load_recipe, parse_recipe
from tunesmith.recipe.keys import did_you_mean

LEAST = "data: {sources: rows.jsonl}\n"


def problems(text: str, *overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    return {problem.where.split(" ")[0]: problem.code for problem in caught.value.problems}


def test_the_least_recipe_has_every_default() -> None:
    recipe = parse_recipe(LEAST)
    assert (recipe.adapter.type, recipe.adapter.rank, recipe.adapter.alpha) == ("lora", 16, 32)
    assert len(recipe.adapter.targets) == 7
    assert recipe.data.filters.length.min_characters == 50
    assert recipe.data.filters.quality.above == 0.7
    assert recipe.data.on_bad_row == "stop"


def test_all_problems_come_at_once_with_their_keys() -> None:
    found = problems(
        LEAST + "lr: 3\nadapter: {type: lorra}\ntrain:\n  batch_size: -3\n  save_every: often\n  epochs: .nan\n",
        "train.epoch=3",
    )
    assert found == {
        "lr": "RCP-008", "train.epoch": "RCP-008", "adapter.type": "RCP-010", "train.batch_size": "RCP-011",
        "train.save_every": "RCP-011", "train.epochs": "RCP-011",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("lr", "train.learning_rate"), ("lora_r", "adapter.rank"), ("data.max_tokns", "data.max_tokens"), ("rank", "adapter.rank"),
     ("train.learning_rte", "train.learning_rate"), ("per_device_train_batch_size", "train.batch_size")],
)  # fmt: skip
def test_a_wrong_key_is_answered_with_the_right_one(wrong: str, meant: str) -> None:
    assert did_you_mean(wrong) == meant


@pytest.mark.parametrize("factor", ["per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps"])
def test_a_factor_of_the_batch_is_not_taken_for_the_batch(factor: str) -> None:
    with pytest.raises(
        RecipeError, match=r"train\.batch_size  \(did you mean this\? the product: per device x accumulation"
    ):
        parse_recipe(LEAST + f"train: {{{factor}: 4}}")


def test_yaml_traps_are_answered_not_swallowed() -> None:
    assert parse_recipe(LEAST + "train: {learning_rate: 1e-4}").train.learning_rate == 1e-4
    assert problems("data: {sources: r.jsonl, on_bad_row: no}") == {"data.on_bad_row": "RCP-011"}
    assert problems(LEAST + "seed: 1\nseed: 2\n") == {"seed": "RCP-002"}
    with pytest.raises(RecipeError, match="RCP-004"):
        parse_recipe("data: {sources: [}")
    with pytest.raises(RecipeError, match="RCP-004"):
        parse_recipe("a: &a [1]\nb: [" + ",".join(["*a"] * 200) + "]")
    with pytest.raises(RecipeError, match="RCP-005"):
        parse_recipe("- a\n- b\n")


def test_overrides_win_and_say_so() -> None:
    recipe = parse_recipe(LEAST + "train: {epochs: 3}", ["train.epochs=4", "adapter=full"])
    assert (recipe.train.epochs, recipe.adapter.type) == (4, "full")
    assert [recipe.origin(key) for key in ("train.epochs", "data.sources", "train.batch_size")] == [
        "--set",
        "file",
        "default",
    ]
    assert recipe.origin("data.filters.quality") == "default"
    assert (
        parse_recipe(LEAST + "data: {}".replace("data: {}", ""), ["data.filters.quality.above=0.5"]).origin(
            "data.filters.quality"
        )
        == "--set"
    )
    with pytest.raises(UsageError, match="RCP-006"):
        parse_recipe(LEAST, ["train.epochs"])


def test_contradictions_are_named() -> None:
    assert problems("data: {sources: r, split: {validation: 0.6, test: 0.5}}") == {"data.split": "RCP-012"}
    assert problems("data: {sources: r, filters: {length: {min_characters: 9, max_characters: 3}}}") == {
        "data.filters.length": "RCP-013"
    }
    assert problems(LEAST + "gate: {metric: rouge_l}") == {"gate.metric": "RCP-014"}


def test_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "data: {sources: [a.jsonl, {path: sub/b.jsonl}]}\nevaluate: {metrics: ['own.py:judge']}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert [source.path for source in recipe.data.sources] == [str(tmp_path / "a.jsonl"), str(tmp_path / "sub/b.jsonl")]
    assert code_named(recipe) == [f"{tmp_path}/own.py:judge"]
    with pytest.raises(FileError, match="RCP-001"):
        load_recipe(tmp_path / "none.yaml")


def test_equal_content_is_equal_and_a_difference_is_named() -> None:
    one, other = parse_recipe(LEAST), parse_recipe(LEAST + "seed: 17\n")
    assert one == other
    assert one.hash() == other.hash()
    assert difference(one, parse_recipe(LEAST + "seed: 18\n")) == {"seed": [17, 18]}


def test_a_dumped_recipe_loads_as_the_same() -> None:
    recipe = parse_recipe(LEAST + "adapter: full\ntrain: {schedule: linear, optimizer: sgd}")
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


def test_bounds_that_judge_nothing_or_leave_nothing_are_said() -> None:
    assert problems(
        "data: {sources: r, filters: {columns: [{column: a}, {column: b, above: 1}], quality: {above: null}}}"
    ) == {
        "data.filters.columns.0": "RCP-022",
        "data.filters.quality": "RCP-022",
    }
    assert problems(
        "data: {sources: r, quality: {type: perplexity, above: 9, below: 3}, filters: {quality: {below: 0.7}}}"
    ) == {
        "data.filters.quality": "RCP-023",
        "data.quality": "RCP-023",
    }
