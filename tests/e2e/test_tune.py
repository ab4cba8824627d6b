"""A search whole, on a tiny model: trials share the prepared rows, some are given up, the best recipe is what was run;
killed, stopped or with two workers it comes to the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith import api
from tunesmith.errors import InterruptedRun, ModelError, RecipeError
from tunesmith.recipe import load_recipe
from tunesmith.runs.events import read_events
from tunesmith.tuning import Result
from tunesmith.tuning.progress import Progress
from tunesmith.tuning.search import Search
from tunesmith.tuning.worker import Worker

pytest.importorskip("optuna")

NUM_ROWS, NUM_TRIALS, NUM_STEPS = 24, 6, 10
RECIPE = """\
name: search
model: {{base: {model}, precision: fp32}}
adapter: {{type: lora, rank: 4}}
data:
  sources: {rows}
  filters: {{length: {{min_characters: 1}}, quality: null}}
  split: {{validation: 0.2, test: 0.2}}
  max_tokens: 128
train: {{epochs: 100, max_steps: {steps}, batch_size: 4, micro_batch: 2, learning_rate: 1.0e-3, evaluate_every: 2, threads: 1}}
evaluate: {{max_new_tokens: 4}}
track: []
tune:
  trials: {trials}
  space:
    train.learning_rate: {{low: 1.0e-5, high: 0.3, log: true}}
    adapter.rank: {{choices: [2, 4, 8]}}
"""


@pytest.fixture(scope="module")
def recipe(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(NUM_ROWS):
            question = {"role": "user", "content": f"Please repeat the number {number}, then say the word done."}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": f"{number} done"}]}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model_dir, rows=folder / "rows.jsonl", steps=NUM_STEPS, trials=NUM_TRIALS))
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path) -> tuple[Result, Path, list[str]]:
    """A search that nobody disturbed: result, workspace, lines of progress."""
    lines: list[str] = []
    workspace = recipe.parent / "straight"
    return api.tune(recipe, workspace=workspace, say=lines.append), workspace, lines


def outcomes(result: Result) -> list[tuple]:
    """All of each trial that does not depend on the clock."""
    names = ("number", "state", "value", "values", "steps", "num_steps", "run", "curve")
    return [tuple(json.dumps(trial[name]) for name in names) for trial in result.trials]


def events(workspace: Path, name: str) -> dict[str, list[Any]]:
    """Values of an event, by run."""
    found = {}
    for run in (workspace / "runs").iterdir():
        found[run.name] = [event.value for event in read_events(run / "events.jsonl") if event.name == name]
    return found


def encoded(workspace: Path) -> int:
    return sum(sum(values) for values in events(workspace, "prepare/encoded_rows").values())


# ---------------------------------------------------------------------------------------------------- undisturbed


def test_the_search_comes_to_its_end_and_gives_bad_trials_up(straight: tuple[Result, Path, list[str]]) -> None:
    result, workspace, lines = straight
    assert [trial["number"] for trial in result.trials] == list(range(NUM_TRIALS))
    complete = [trial for trial in result.trials if trial["state"] == "complete"]
    pruned = [trial for trial in result.trials if trial["state"] == "pruned"]
    assert len(complete) + len(pruned) == NUM_TRIALS
    assert complete
    assert pruned
    assert result.best["value"] == min(trial["value"] for trial in complete)
    for trial in pruned:
        assert trial["steps"] == 2, "the first validation is after a ninth of ten steps; not one step more is done"
        assert "place" in trial["why"]
        (told,) = events(workspace, "stage/pruned")[trial["run"]]
        assert told["error"] == "TUN-006"
    assert any("best so far" in line and "left" in line for line in lines)
    assert sum("given up" in line for line in lines) == len(pruned)


def test_the_recipes_own_values_come_first_in_a_run_that_names_its_parent(
    straight: tuple[Result, Path, list[str]],
) -> None:
    result, workspace, _ = straight
    assert result.trials[0]["values"] == {"train.learning_rate": 1e-3, "adapter.rank": 4}
    base = result.trials[0]["run"]
    for trial in result.trials[1:]:
        parent = json.loads((workspace / "runs" / trial["run"] / "parent.json").read_text())
        assert parent["run"] == base
        assert set(parent["changed"]) <= {"train.learning_rate", "adapter.rank"}


def test_no_row_is_encoded_twice_over_all_trials(straight: tuple[Result, Path, list[str]]) -> None:
    _, workspace, _ = straight
    assert encoded(workspace) == NUM_ROWS
    assert len(events(workspace, "prepare/encoded_rows")) == NUM_TRIALS, "each trial has a run of its own"
    for kind in ("rows", "tokens", "dataset"):
        assert len(list((workspace / "artifacts" / kind).iterdir())) == 1


def test_checkpoints_of_ended_trials_are_gone_and_results_stay(straight: tuple[Result, Path, list[str]]) -> None:
    result, workspace, _ = straight
    assert list((workspace / "artifacts" / "checkpoint").rglob("model.safetensors")) == []
    adapters = list((workspace / "artifacts" / "adapter").glob("*/adapter_model.safetensors"))
    assert len(adapters) == result.counts()["complete"]


def test_the_best_recipe_is_what_the_best_trial_ran(straight: tuple[Result, Path, list[str]]) -> None:
    result, workspace, _ = straight
    text = Path(result.files["best"]).read_text()
    assert "# searched:" in text
    best = load_recipe(result.files["best"])
    stored = api.open_run(result.best["run"], workspace=workspace).recipe
    assert best == stored
    outcome = api.train(result.files["best"], workspace=workspace)
    assert outcome.did_nothing, "what the trial made is taken up"
    assert outcome.run.id == result.best["run"]


def test_the_page_is_one_file_with_every_trial(straight: tuple[Result, Path, list[str]]) -> None:
    result, _, _ = straight
    page = Path(result.files["page"]).read_text()
    assert 'src="' not in page
    assert "<script" not in page
    assert "<link" not in page
    for part in (
        "Values over the trials",
        "What each key does",
        "paths through the space",
        "on the way",
        "Trials",
        "Next",
    ):
        assert part in page
    assert page.count("<tr") == 1 + NUM_TRIALS
    assert all(trial["run"] in page for trial in result.trials)
    assert json.loads(Path(result.files["table"]).read_text())["counts"] == result.counts()


def test_the_same_command_again_begins_nothing(straight: tuple[Result, Path, list[str]], recipe: Path) -> None:
    result, workspace, _ = straight
    before = {path: path.stat().st_size for path in workspace.rglob("events.jsonl")}
    again = api.tune(recipe, workspace=workspace)
    assert outcomes(again) == outcomes(result)
    assert {path: path.stat().st_size for path in workspace.rglob("events.jsonl")} == before


def test_more_trials_go_on_in_the_same_search(straight: tuple[Result, Path, list[str]], recipe: Path) -> None:
    result, workspace, _ = straight
    out = recipe.parent / "more.yaml"
    more = api.tune(recipe, overrides=[f"tune.trials={NUM_TRIALS + 1}"], workspace=workspace, out=out)
    assert more.search == result.search
    assert outcomes(more)[:NUM_TRIALS] == outcomes(result)
    assert len(more.trials) == NUM_TRIALS + 1
    assert out.read_text() == Path(more.files["best"]).read_text()


# ------------------------------------------------------------------------------------------------------- disturbed


def test_a_killed_search_goes_on_with_the_same_command_to_the_same_trials(
    straight: tuple[Result, Path, list[str]], recipe: Path, environment: dict[str, str]
) -> None:
    workspace = recipe.parent / "killed"
    command = [sys.executable, "-m", "tunesmith", "tune", str(recipe), "--workspace", str(workspace)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(workspace.glob("artifacts/checkpoint/*/step-*/manifest.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.kill()
    process.communicate()

    lines: list[str] = []
    result = api.tune(recipe, workspace=workspace, say=lines.append)
    assert outcomes(result) == outcomes(straight[0])
    assert any("goes on" in line for line in lines)
    assert sum(map(len, events(workspace, "train/resumed").values())) == 1, "the trial at work went on, no other did"
    assert encoded(workspace) == NUM_ROWS


def test_two_workers_share_the_study_and_run_no_trial_twice(recipe: Path) -> None:
    workspace = recipe.parent / "crew"
    result = api.tune(recipe, overrides=["tune.trials=4"], workspace=workspace, workers=2)
    assert [trial["number"] for trial in result.trials] == [0, 1, 2, 3]
    assert {trial["state"] for trial in result.trials} <= {"complete", "pruned"}
    assert len({trial["worker"] for trial in result.trials}) == 2
    assert encoded(workspace) == NUM_ROWS
    for trial in result.trials:
        lines = (workspace / "runs" / trial["run"] / "events.jsonl").read_text()
        assert lines.count('"train/steps"') == 1
    assert list((Path(result.folder) / "workers").iterdir()) == []


class _Meddler(Progress):
    """Does something at the first validation of a search."""

    def __init__(self, meddle: Any) -> None:
        super().__init__(1, None, None)
        self.meddle = meddle

    def validated(self, *told: Any) -> None:
        if self.meddle:
            meddle, self.meddle = self.meddle, None
            meddle(self.worker)


def interrupted(recipe: Path, workspace: Path, meddle: Any) -> InterruptedRun | None:
    """A search of one trial in which something happens at the first validation."""
    search = Search(load_recipe(recipe), workspace, frozenset(), None)
    search.prepare(lambda line: None)
    study = search.open_study()
    progress = _Meddler(meddle)
    progress.worker = worker = Worker(search, study, progress, None)
    caught = None
    # A test run that was started in the background ignores Ctrl-C, and so would the search.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        worker.work()
    except InterruptedRun as error:
        caught = error
    finally:
        signal.signal(signal.SIGINT, before)
    states = [trial.state for trial in study.trials()]
    study.close()
    assert states == ["running"], "the trial at work is saved and waits, no other was begun"
    return caught


def test_ctrl_c_and_the_end_of_the_time_save_the_trial_and_the_same_command_goes_on(recipe: Path) -> None:
    workspace = recipe.parent / "stopped"
    caught = interrupted(recipe, workspace, lambda worker: os.kill(os.getpid(), signal.SIGINT))
    assert caught.exit_status == 130
    assert interrupted(recipe, workspace, lambda worker: setattr(worker, "deadline", time.monotonic())) is None

    lines: list[str] = []
    result = api.tune(recipe, overrides=["tune.trials=1", "tune.minutes=1.0e-6"], workspace=workspace, say=lines.append)
    assert result.running == 1
    assert any("the time is spent" in line for line in lines)
    result = api.tune(recipe, overrides=["tune.trials=1", "tune.minutes=9"], workspace=workspace)
    assert result.counts() == {"complete": 1}
    told = (workspace / "runs" / result.trials[0]["run"] / "events.jsonl").read_text()
    assert told.count('"train/resumed"') == 2


# -------------------------------------------------------------------------------------------------- what can go wrong


SPACE = "tune.space={adapter.targets: {choices: [[q_proj], [nonsense]]}}"


def test_a_failed_trial_is_not_the_end_and_the_others_are_all_tried(
    straight: tuple[Result, Path, list[str]], recipe: Path
) -> None:
    result = api.tune(recipe, overrides=[SPACE, "adapter.targets=[q_proj]", "train.max_steps=1"], workspace=straight[1])
    assert [trial["state"] for trial in result.trials] == ["complete", "failed"], "two points, whatever the budget"
    assert "MDL-105" in result.trials[1]["why"]


def test_where_every_trial_fails_the_search_ends_with_what_is_wrong(
    straight: tuple[Result, Path, list[str]], recipe: Path
) -> None:
    space = "tune.space={adapter.targets: {choices: [[a], [b], [c], [d]]}}"
    with pytest.raises(ModelError, match=r"(?s)3 trials failed.*MDL-105"):
        api.tune(recipe, overrides=[space], workspace=straight[1])


def test_a_mistake_in_the_recipe_is_told_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"TUN-001 tune\.space\.gate\.min_gain"):
        api.tune(recipe, overrides=["tune.space={gate.min_gain: {low: 0, high: 1}}"], workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_metric_of_answers_is_asked_on_validation_rows_and_the_best_recipe_on_the_test(
    straight: tuple[Result, Path, list[str]], recipe: Path
) -> None:
    overrides = ["tune.metric=token_f1", "tune.space={train.learning_rate: {choices: [1.0e-3]}}", "tune.keep=best"]
    result = api.tune(recipe, overrides=overrides, workspace=straight[1])
    run = api.open_run(result.best["run"], workspace=straight[1])
    evaluation = json.loads((run.outputs("evaluate")["evaluation"].path / "evaluation.json").read_bytes())
    assert list(evaluation["parts"]) == ["validation"]
    assert result.best["value"] == evaluation["parts"]["validation"]["metrics"]["token_f1"]["tuned"]["value"]
    best = load_recipe(result.files["best"])
    assert best.evaluate.split == "test"
    assert best.model_dump(exclude={"evaluate"}) == run.recipe.model_dump(exclude={"evaluate"})
    assert result.best["reused"], "its training is that of the first search's first trial"


# ------------------------------------------------------------------------------------------------ what the docs say

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tune.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "text", [*BLOCKS, (ROOT / "recipes" / "search.yaml").read_text()], ids=[*map(str, range(len(BLOCKS))), "recipes"]
)
def test_recipes_of_the_docs_are_searched(
    text: str, straight: tuple[Result, Path, list[str]], recipe: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    small = {
        "model.base": tiny_model_dir, "data.sources": recipe.parent / "rows.jsonl", "data.split": "{validation: 0.2, test: 0.2}",
        "tune.trials": 1, "train.max_steps": 1, "train.threads": 1, "track": "[]",
    }  # fmt: skip
    result = api.tune(path, overrides=[f"{key}={value}" for key, value in small.items()], workspace=straight[1])
    assert result.counts() == {"complete": 1}
    assert set(result.space) == set(load_recipe(path, ["data.sources=rows.jsonl"]).tune.space or result.space)
