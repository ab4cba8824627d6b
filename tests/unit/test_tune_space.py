"""What a search tries: the space and its defaults, what is unusual, and which trials are given up. No optuna, no torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.planner.ranges import unusual, usual_ranges
from tunesmith.recipe import Recipe, parse_recipe, with_values
from tunesmith.recipe.keys import all_keys
from tunesmith.runner.planning import plan_stage
from tunesmith.runs.run import Run
from tunesmith.tuning.objective import Objective
from tunesmith.tuning.rungs import FULL, RUNGS, rung_value, share_of, why_pruned
from tunesmith.tuning.space import Choices, Span, own_point, points, resolve, size, values_of, warnings

LEAST = "data: {sources: rows.jsonl}\n"
SMALL, LARGE = 3_000_000, 8_000_000_000


def recipe(text: str = "", *overrides: str) -> Recipe:
    return parse_recipe(LEAST + text, overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(text, *overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- the section


def test_nested_keys_overrides_and_dotted_keys_say_the_same() -> None:
    dotted = recipe("tune: {space: {train.learning_rate: {low: 1e-5, high: 1e-3, log: true}}}")
    nested = recipe("tune: {space: {train: {learning_rate: {low: 1e-5, high: 1e-3, log: true}}}}")
    by_override = recipe("", "tune.space.train.learning_rate={low: 1e-5, high: 1e-3, log: true}")
    assert dotted == nested == by_override


@pytest.mark.parametrize(
    ("space", "code", "told"),
    [
        ("{lr: default}", "RCP-040", "train.learning_rate"),
        ("{train.learning_rte: default}", "RCP-040", "train.learning_rate"),
        ("{train.epochs: 3}", "RCP-041", "choices"),
        ("{train.epochs: {low: 1}}", "RCP-041", "high"),
        ("{adapter.rank: {choices: [8, 0]}}", "RCP-042", "0"),
        ("{train.schedule.type: {choices: [cosin]}}", "RCP-042", "cosine"),
        ("{train.epochs: {low: 3, high: 1}}", "RCP-043", "low 3"),
        ("{train.learning_rate: {low: 0, high: 1, log: true}}", "RCP-043", "logarithm"),
        ("{adapter.rank: {low: 1.5, high: 8}}", "RCP-043", "whole"),
        ("{adapter: {low: 1, high: 2}}", "RCP-047", "choices"),
    ],
)
def test_a_mistake_in_the_space_is_told_before_anything_runs(space: str, code: str, told: str) -> None:
    text = refused(f"tune: {{space: {space}}}")
    assert code in text
    assert told in text


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    text = refused("tune:\n  metric: exct\n  trials: null\n  space:\n    lr: default\n")
    assert all(code in text for code in ("RCP-044", "RCP-045", "RCP-040"))
    assert "line 3" in text


def test_a_trial_has_the_recipe_with_its_values_and_no_search() -> None:
    spec = recipe("tune: {trials: 3, space: {adapter: {choices: [lora, full]}}}")
    trial = with_values(spec, {"adapter": "full", "train.learning_rate": 3e-4})
    plain = recipe("adapter: full\ntrain: {learning_rate: 3e-4}")
    assert (trial, trial.hash()) == (plain, plain.hash())
    with pytest.raises(RecipeError, match=r"RCP-011 train\.batch_size"):
        with_values(spec, {"train.batch_size": 0})


def test_paths_among_choices_start_at_the_recipes_folder(tmp_path: Path) -> None:
    spec = parse_recipe(
        LEAST + "tune: {space: {model.base: {choices: [./a, builtin:tunesmith-tiny]}}}", folder=tmp_path
    )
    assert spec.tune.space["model.base"]["choices"] == [str(tmp_path / "a"), "builtin:tunesmith-tiny"]


@pytest.mark.parametrize(
    "key", [key for key in all_keys().values() if key.path.startswith("tune.")], ids=lambda k: k.path
)
def test_no_key_of_the_search_changes_what_a_run_does(key) -> None:
    """They have readers of their own: see the other tests of the search."""
    other = recipe("", f"{key.path}={key.other if key.path != 'tune.space' else '{train.epochs: default}'}")
    assert other != recipe()
    assert with_values(other, {}) == recipe()


# ------------------------------------------------------------------------------------------------- defaults, ranges


@pytest.mark.parametrize(
    ("adapter", "parameters", "low", "high"),
    [
        ("full", LARGE, 1e-5, 5e-4),
        ("lora", LARGE, 1e-4, 2e-3),
        ("full", SMALL, 1e-5, 1e-2),
        ("lora", SMALL, 1e-4, 3e-2),
        ("lora", None, 1e-4, 2e-3),
    ],
)
def test_the_default_range_of_the_rate_follows_adapter_and_size(
    adapter: str, parameters: int | None, low: float, high: float
) -> None:
    spec = recipe(f"adapter: {adapter}")
    space = resolve(spec, parameters, "train")
    assert space["train.learning_rate"] == Span(low, high, log=True)
    assert ("adapter.rank" in space) == (adapter == "lora")


def test_default_stands_for_the_usual_range_and_is_refused_where_there_is_none() -> None:
    spec = recipe("tune: {space: {adapter.alpha: default, train.batch_size: default, train.epochs: default}}")
    space = resolve(spec, LARGE, "train")
    assert space["adapter.alpha"] == Choices.of([8.0, 16.0, 32.0, 64.0])
    assert space["train.epochs"] == Choices.of([1.0, 2.0, 3.0, 4.0])
    spec = recipe(
        "train: {optimizer: sgd}\ntune: {space: {train.learning_rate: default, train.max_grad_norm: default}}"
    )
    with pytest.raises(RecipeError, match=r"(?s)TUN-002 .*learning_rate.*TUN-002 .*max_grad_norm"):
        resolve(spec, LARGE, "train")


def test_a_key_that_no_trial_notices_is_refused() -> None:
    spec = recipe("tune: {space: {gate.min_gain: {low: 0, high: 1}, evaluate.max_new_tokens: {low: 1, high: 9}}}")
    with pytest.raises(RecipeError, match=r"(?s)TUN-001 .*gate.*TUN-001 .*evaluate"):
        resolve(spec, LARGE, "train")
    assert resolve(spec, LARGE, "evaluate")


def test_values_are_whole_where_the_key_is() -> None:
    spec = recipe("tune: {space: {train.batch_size: {low: 4, high: 8}, train.epochs: {low: 1, high: 2}}}")
    space = resolve(spec, LARGE, "train")
    assert space["train.batch_size"] == Span(4, 8, whole=True)
    assert space["train.epochs"] == Span(1, 2)
    assert size(space) is None


def test_points_of_a_space_with_an_end() -> None:
    spec = recipe("tune: {space: {train.batch_size: {low: 4, high: 6}, adapter: {choices: [lora, full, lora]}}}")
    space = resolve(spec, LARGE, "train")
    found = [values_of(space, point) for point in points(space)]
    assert len(found) == size(space) == 6
    assert {"train.batch_size": 5, "adapter": "full"} in found


def test_the_recipes_own_point() -> None:
    space = "tune: {space: {adapter: {choices: [full, lora]}, train.batch_size: {low: 4, high: 32}}}"
    spec = recipe(space)
    assert own_point(spec, resolve(spec, LARGE, "train")) == {"adapter": '"lora"', "train.batch_size": 16}
    spec = recipe(f"train: {{batch_size: 64}}\n{space}")
    assert own_point(spec, resolve(spec, LARGE, "train")) is None


# ----------------------------------------------------------------------------------------------------------- unusual


def config() -> dict:
    """Of a model with 0.1 M parameters."""
    return {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 400,
        "num_attention_heads": 4, "tie_word_embeddings": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("train: {learning_rate: 0.5}", "train.learning_rate", "diverge"),
        ("train: {learning_rate: 1e-6}", "train.learning_rate", "hardly moves"),
        ("adapter: {rank: 2, alpha: 4}", "adapter.rank", "fits in"),
        ("adapter: {rank: 16, alpha: 512}", "adapter.alpha", "scaled up"),
        ("train: {batch_size: 2}", "train.batch_size", "noisy"),
        ("train: {epochs: 40}", "train.epochs", "by heart"),
    ],
)
def test_an_unusual_value_is_told_with_its_reason_until_it_is_acknowledged(text: str, key: str, why: str) -> None:
    (found,) = unusual(recipe(text), config())
    assert found.key == key
    assert why in str(found)
    assert f"accept_unusual: [{key}]" in str(found)
    assert unusual(recipe(f"{text}\naccept_unusual: [{key}]"), config()) == []


def test_usual_values_and_what_has_no_range_are_not_told() -> None:
    assert unusual(recipe(), config()) == []
    assert unusual(recipe("train: {optimizer: sgd, learning_rate: 0.5}"), config()) == []
    assert unusual(recipe("train: {epochs: 100, max_steps: 5}"), config()) == []
    assert refused("accept_unusual: [train.schedule]").count("RCP-011") == 1


def test_a_plain_run_tells_it_once_per_command_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.tracking.sinks import Console

    spec = recipe("train: {learning_rate: 0.5}")
    run = Run.open_or_create(tmp_path, spec)
    run.listeners.append(Console())
    plan_stage("prepare", spec, {}, run)
    plan_stage("train", spec, {}, run)
    (told,) = [event.value for event in run.events() if event.name == "plan/unusual"]
    assert "0.5 is outside" in told
    assert capsys.readouterr().err.count(f"warning: {told}") == 1
    assert run.plan["unusual"][0]["key"] == "train.learning_rate"


def test_the_search_is_warned_about_its_ends_and_about_moving_the_rows() -> None:
    spec = recipe("tune: {space: {train.learning_rate: {low: 1e-4, high: 9.0}, data.max_tokens: {choices: [64, 128]}}}")
    told = warnings(spec, resolve(spec, LARGE, "train"), LARGE)
    assert len(told) == 2
    assert "9 is outside" in told[0]
    assert "data.max_tokens" in told[1]


def test_what_a_search_tries_by_default_is_never_unusual() -> None:
    for adapter in ("lora", "full"):
        for parameters in (SMALL, LARGE):
            spec = recipe(f"adapter: {adapter}")
            keys = "\n".join(f"    {key}: default" for key in usual_ranges(spec, parameters))
            spec = recipe(f"adapter: {adapter}\ntune:\n  space:\n{keys}")
            assert warnings(spec, resolve(spec, parameters, "train"), parameters) == []


# ------------------------------------------------------------------------------------------------- objective, rungs


@pytest.mark.parametrize(
    ("text", "direction", "until"),
    [
        ("", "minimize", "train"),
        ("tune: {metric: exact_match}", "maximize", "evaluate"),
        ("evaluate: {metrics: [perplexity]}\ntune: {metric: perplexity}", "minimize", "evaluate"),
        ("tune: {metric: exact_match, direction: minimize}", "minimize", "evaluate"),
    ],
)
def test_the_objective_and_its_direction(text: str, direction: str, until: str) -> None:
    found = Objective.of(recipe(text))
    assert (found.direction, found.until) == (direction, until)


def test_shares_of_the_steps() -> None:
    assert [share_of(step, 7) for step in (0, 1, 6, 7, 8)] == [0, 142, 857, FULL, FULL]
    assert share_of(9_999_999, 10_000_000) < FULL
    assert RUNGS == (111, 333)


def test_the_value_at_a_rung_is_the_best_up_to_it() -> None:
    curve = {100: 3.0, 200: 5.0, 400: 1.0}
    assert rung_value(curve, 111) == 3.0
    assert rung_value(curve, 333) == 1.0
    assert rung_value({100: 3.0}, 111) is None
    assert rung_value({200: math.inf}, 111) == math.inf


def test_a_trial_is_given_up_at_a_rung_where_it_is_not_in_the_best_third() -> None:
    others = [{200: 1.0, 400: 0.9}, {200: 2.0}]
    assert why_pruned({200: 3.0}, others) == "loss 3.0000 at 20 % of the steps is place 3 of 3, and places 1 to 1 go on"
    assert why_pruned({200: 0.5}, others) is None
    assert why_pruned({200: 3.0}, others[:1]) is None, "two are too few to tell"
    assert why_pruned({200: 0.5, 300: 9.0}, others) is None, "between two rungs nothing is judged"
    assert why_pruned({100: 9.0}, others) is None, "before the first rung nothing is judged"
    assert why_pruned({200: 0.5, FULL: 9.0}, others) is None, "at the end there is nothing to give up"
    assert "not finite" in why_pruned({50: math.inf}, [])


def test_one_validation_may_pass_two_rungs() -> None:
    others = [{500: 1.0}, {500: 2.0}]
    assert "50 %" in why_pruned({500: 3.0}, others)


def test_a_third_goes_on_as_trials_come_in() -> None:
    """Losses in order of arrival: of nine that come worst first each is the best so far; best first, few go on."""
    arriving = [float(n) for n in range(9)]

    def going_on(losses: list[float]) -> list[float]:
        return [loss for n, loss in enumerate(losses) if not why_pruned({200: loss}, [{200: x} for x in losses[:n]])]

    assert going_on(arriving[::-1]) == arriving[::-1]
    assert going_on(arriving) == [0.0, 1.0]
