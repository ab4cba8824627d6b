"""Own code between two steps: what it is told, how it stops training, what happens when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_training import LORA, Small, small_training

from tunesmith.errors import QuestionError, RecipeError
from tunesmith.recipe import code_named, parse_recipe
from tunesmith.runs.durable import hash_file
from tunesmith.stages.train.callbacks import Callbacks, Facts
from tunesmith.stages.train.externals import externals

WATCH = """
import json
from pathlib import Path

LOG = Path(__file__).with_suffix(".log")

def note(facts):
    with LOG.open("a") as file:
        told = {name: value for name, value in facts.values.items() if name in ("loss", "perplexity", "steps", "tokens")}
        file.write(json.dumps([facts.moment, facts.step, facts.num_steps, facts.is_best, facts.path, told]) + "\\n")

class StopsAtThree:
    def on_step(self, facts):
        return "stop" if facts.step == 3 else None

class Counts:
    '''Stops when it has been called five times, over all attempts.'''
    def __init__(self):
        self.calls = 0
    def on_step(self, facts):
        self.calls += 1
        return "stop" if self.calls == 5 else None
    def state(self):
        return {"calls": self.calls}
    def load_state(self, state):
        self.calls = state["calls"]

class Forgets(Counts):
    state = None

class FailsOnce:
    def on_step(self, facts):
        mark = LOG.with_suffix(".mark")
        if facts.step == 3 and not mark.exists():
            mark.touch()
            raise KeyError("gone")

class OddAnswer:
    def on_validation(self, facts):
        return True

class StopsTooLate:
    def on_save(self, facts):
        return "stop"

class KeepsALock:
    def on_step(self, facts):
        pass
    def state(self):
        return {"lock": object()}

class NothingToCall:
    pass

number = 3
"""


@pytest.fixture
def watch(tmp_path: Path) -> Path:
    path = tmp_path / "watch.py"
    path.write_text(WATCH)
    return path


def training(tmp_path: Path, model: Path, watch: Path, *names: str, settings: tuple[str, ...] = ()) -> Small:
    named = ", ".join(f"'{watch}:{name}'" for name in names)
    return small_training(
        tmp_path / "work", model, [LORA, "train.save_every=2", "train.evaluate_every=4", f"train.callbacks=[{named}]", *settings]
    ).allow()  # fmt: skip


def test_a_function_is_told_of_every_step_validation_save_and_the_end(
    tiny_model_dir: Path, tmp_path: Path, watch: Path
) -> None:
    small = training(tmp_path, tiny_model_dir, watch, "note")
    result = small.train()
    told = [json.loads(line) for line in watch.with_suffix(".log").read_text().splitlines()]
    assert [entry[1] for entry in told if entry[0] == "step"] == list(range(1, 9))
    assert [entry[1] for entry in told if entry[0] == "validation"] == [4, 8]
    assert [entry[1] for entry in told if entry[0] == "save"] == [2, 4, 6, 8]
    assert {entry[2] for entry in told} == {8}
    losses, validations = small.values("train/loss"), small.values("validation/loss")
    assert {entry[1]: entry[5]["loss"] for entry in told if entry[0] == "step"} == losses
    assert {entry[1]: entry[5]["loss"] for entry in told if entry[0] == "validation"} == validations
    assert next(entry[3] for entry in told if entry[0] == "validation"), "the first validation is the best so far"
    assert all(Path(entry[4]).name == f"step-{entry[1]:08d}" for entry in told if entry[0] == "save")
    assert told[-1] == ["end", 8, 8, False, str(result.path), {"steps": 8}]


def test_stop_ends_training_after_the_step_validated_saved_and_with_a_result(
    tiny_model_dir: Path, tmp_path: Path, watch: Path
) -> None:
    small = training(tmp_path, tiny_model_dir, watch, "note", "StopsAtThree", settings=("train.keep=last",))
    result = small.train()
    assert (result.notes["steps"], result.notes["result_step"], result.notes["stopped_early"]) == (3, 3, True)
    assert result.notes["stopped_by"] == f"{watch}:StopsAtThree"
    assert list(small.values("validation/loss")) == [3], "the weights it stopped at are judged"
    assert 3 in small.values("checkpoint/saved")


class Killed(BaseException):
    """Passes every handler, as SIGKILL would."""


@pytest.mark.parametrize(("name", "steps"), [("Counts", 5), ("Forgets", 7)])
def test_what_a_callback_keeps_travels_with_the_checkpoints(
    tiny_model_dir: Path, tmp_path: Path, watch: Path, name: str, steps: int
) -> None:
    small = training(tmp_path, tiny_model_dir, watch, name)

    def kill(event: object) -> None:
        if (event.name, event.step) == ("train/grad_norm", 4):  # type: ignore[attr-defined]
            raise Killed

    small.run.listeners.append(kill)
    with pytest.raises(Killed):
        small.train()
    assert small.again().train().notes["steps"] == steps


def test_a_callback_that_fails_is_named_with_its_step_after_saving_and_the_same_command_goes_on(
    tiny_model_dir: Path, tmp_path: Path, watch: Path
) -> None:
    small = training(tmp_path, tiny_model_dir, watch, "FailsOnce", settings=("train.save_every=8",))
    with pytest.raises(
        RecipeError,
        match=r"TRN-052 train\.callbacks: .*watch\.py:FailsOnce failed at step 3: KeyError: 'gone' \(line 3\d",
    ):
        small.train()
    assert list(small.values("checkpoint/saved")) == [3]
    again = small.again()
    assert again.train().notes["steps"] == 8
    assert again.values("train/resumed") == {None: 3}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OddAnswer", "TRN-053 train.callbacks: .*OddAnswer answered True at validation 4"),
        ("StopsTooLate", "TRN-053 train.callbacks: .*StopsTooLate answered 'stop' at save 2"),
        ("KeepsALock", "TRN-054 train.callbacks: .*KeepsALock wants to keep what JSON does not hold"),
        ("NothingToCall", "TRN-051 train.callbacks: NothingToCall is neither a function nor"),
        ("number", "TRN-051 train.callbacks: number is neither"),
        ("nowhere", "TRN-051 train.callbacks: .*has no 'nowhere'"),
    ],
)
def test_what_is_off_is_said(tiny_model_dir: Path, tmp_path: Path, watch: Path, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        training(tmp_path, tiny_model_dir, watch, name).train()


def test_only_the_bytes_that_were_allowed_run(watch: Path) -> None:
    name = f"{watch}:note"
    with pytest.raises(QuestionError, match=r"TRN-050 train\.callbacks: .*would run"):
        Callbacks([name], {})
    allowed = {name: hash_file(watch)}
    assert Callbacks([name], allowed).tell(Facts("step", 1, 2)) == ""
    watch.write_text(WATCH + "\n")
    with pytest.raises(QuestionError, match=r"TRN-050 .*changed since it was allowed"):
        Callbacks([name], allowed)
    watch.write_text("import nothing_of_that_name")
    with pytest.raises(RecipeError, match=r"TRN-051 .*fails when it is loaded"):
        Callbacks([name], {name: hash_file(watch)})
    with pytest.raises(RecipeError, match=r"TRN-051 .*cannot be read"):
        Callbacks([f"{watch}.py:note"], {})


def test_its_content_is_part_of_what_training_depends_on(tiny_model_dir: Path, tmp_path: Path, watch: Path) -> None:
    small = training(tmp_path, tiny_model_dir, watch, "note")
    before = externals(small.recipe, small.run)
    watch.write_text(WATCH + "\n")
    small.allow()
    assert externals(small.recipe, small.run) != before


def test_all_code_that_a_recipe_names_is_listed_with_paths_from_its_folder(tmp_path: Path) -> None:
    train = "{callbacks: ['a.py:A'], best_metric: 'b.py:b', early_stopping: {metric: 'c.py:c'}, validation: {metrics: ['d.py:d', 'b.py:b']}}"
    recipe = parse_recipe(
        f"data: {{sources: r.jsonl}}\nevaluate: {{metrics: ['e.py:e', 'a.py:A']}}\ntrain: {train}", folder=tmp_path
    )
    assert code_named(recipe) == [f"{tmp_path}/{name}" for name in ("e.py:e", "a.py:A", "d.py:d", "b.py:b", "c.py:c")]


def test_a_recipe_with_a_callback_asks_first(tmp_path: Path, watch: Path) -> None:
    from tunesmith import api

    recipe = parse_recipe("data: {sources: r.jsonl}", [f"train.callbacks=['{watch}:note']"])
    with pytest.raises(QuestionError, match=r"(?s)CLI-005 .*watch\.py:note.*--allow-code"):
        api.train(recipe, workspace=tmp_path / "work")


def test_the_example_stops_on_a_spike_and_notes_what_was_best(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "watch_loss.py"
    path.write_text((Path(__file__).parents[2] / "examples" / "callbacks" / "watch_loss.py").read_text())
    # The rate rises far beyond what the model can bear, so the loss explodes before the end.
    settings = ("train.learning_rate=3", "train.schedule.warmup=1.0", "train.max_steps=40", "adapter={type: full}")
    small = training(tmp_path, tiny_model_dir, path, "StopOnSpike", "note_best", settings=settings)
    result = small.train()
    losses = small.values("train/loss")
    assert result.notes["stopped_by"] == f"{path}:StopOnSpike"
    assert len(losses) < 40
    assert min(list(losses.values())[-3:]) > 1.5 * min(losses.values())
    noted = [json.loads(line)["step"] for line in path.with_name("best.jsonl").read_text().splitlines()]
    assert noted == list(small.values("train/best"))
