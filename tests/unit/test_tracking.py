"""What trackers are told: each number of each step once, whatever was killed when; names, summaries, checks, secrets."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import QuestionError, RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.tree import Track
from tunesmith.runs.events import Event, read_events
from tunesmith.runs.run import Run
from tunesmith.tracking import Sinks, check
from tunesmith.tracking.facts import Point, RunFacts, Summary, clean, flat, summary
from tunesmith.tracking.feed import Feed
from tunesmith.tracking.files import MetricsFile
from tunesmith.tracking.state import TrackerState, without_secrets

LEAST = "name: small\ndata: {sources: rows.jsonl}\n"


def make_run(workspace: Path, text: str = "") -> Run:
    return Run.open_or_create(workspace, parse_recipe(LEAST + text))


# ------------------------------------------------------------------------------------------- each number once


class Memory:
    """A tracker in memory. kind: "anew" writes all of it again each session (TensorBoard, W&B offline); "keeps" cannot take
    back (MLflow, Trackio); "rising" neither takes back nor adds to a step that a session has left behind (W&B online)."""

    def __init__(self, kind: str) -> None:
        self.kind, self.holds_last_step = kind, kind == "rising"
        self.stored: list[Point] = []
        self.start = 0

    def open(self, facts: RunFacts) -> str:
        self.start = max((found.step for found in self.stored), default=-1) + 1
        if self.kind == "anew":
            self.stored = []
        return "in memory"

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        if self.kind == "rising":
            return lambda found: found.step < self.start
        known = {(found.name, found.step) for found in self.stored}
        return lambda found: (found.name, found.step) in known

    def log(self, points: list[Point]) -> None:
        for found in points:
            if self.kind == "rising":
                assert found.step >= max(self.start, *(other.step for other in self.stored), 0), "it would be dropped"
            self.stored.append(found)

    def close(self, summary: Summary) -> None:
        """Nothing more."""


class Training:
    """Tells events as the train stage does: steps, a validation every third step, a checkpoint every fourth."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.saved = self.validated = 0

    def begin(self) -> Run:
        run = make_run(self.workspace)
        run.record("run", "run/started", "again")
        return run

    def go_on(self, run: Run, until: int, stop_before_validation: bool) -> None:
        """From the last checkpoint to `until`; a stop saves what it has, unvalidated if it came before that."""
        step = self.saved
        if step:
            run.record("train", "train/resumed", step)
        validated = self.validated
        while True:
            if step and step % 3 == 0 and step > validated and not (stop_before_validation and step == until):
                run.record("train", "validation/loss", 100 * step + run.attempt, step=step)
                validated = step
            if step and (step % 4 == 0 or (stop_before_validation and step == until)):
                self.saved, self.validated = step, validated
            if step == until:
                return
            step += 1
            run.record_step("train", step, {"train/loss": (10 * step, ""), "train/step_seconds": (run.attempt, "s")})


@pytest.mark.parametrize("kind", ["anew", "keeps", "rising"])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_killed_when_each_number_of_each_step_is_told_once(tmp_path: Path, kind: str, seed: int) -> None:
    draw = random.Random(seed)
    tracker, training, last = Memory(kind), Training(tmp_path), 20
    for attempt in range(1, 6):
        is_last = attempt == 5
        until = last if is_last else draw.randint(training.saved, last)
        run = training.begin()
        tracker.open(None)  # type: ignore[arg-type]
        feed = Feed(tracker, run.path, attempt)
        # The feed looks at any moment: before it starts, in the middle, not at all before the kill.
        looks = draw.choice([[], [0.5], [0.2, 0.9]])
        for place in looks:
            run.listeners.append(lambda event, place=place, feed=feed: draw.random() < place and feed.turn())
        training.go_on(run, until, stop_before_validation=not is_last and draw.random() < 0.5)
        if is_last:
            feed.turn("done")
        elif draw.random() < 0.7:  # else the feed is killed as well
            feed.turn(draw.choice(["killed", "stopped"]))
    told = [(found.name, found.step) for found in tracker.stored]
    expected = [("train/loss", step) for step in range(1, last + 1)]
    expected += [("train/step_seconds", step) for step in range(1, last + 1)]
    expected += [("validation/loss", step) for step in range(3, last + 1, 3)]
    assert sorted(told) == sorted(expected)
    if kind == "anew":
        truth = {(e.name, e.step): e.value for e in read_events(run.path / "events.jsonl") if e.step is not None}
        assert {(found.name, found.step): found.value for found in tracker.stored} == truth, "of the last attempt"


def test_a_run_that_only_evaluates_tells_what_training_told_before(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.go_on(training.begin(), 5, stop_before_validation=False)
    run = training.begin()
    run.record("train", "stage/reused", "abc")
    tracker = Memory("keeps")
    feed = Feed(tracker, run.path, 2)
    feed.turn()
    assert max(found.step for found in tracker.stored) == 5


# ------------------------------------------------------------------------------------------------ words and numbers


def test_a_summary_holds_the_scores_of_the_weights_that_were_taken(tmp_path: Path) -> None:
    def told(stage: str, name: str, value: object, step: int | None = None) -> Event:
        return Event(0.0, 1, stage, step, name, value, "")

    events = [
        told("train", "train/loss", 0.5, step=9), told("train", "train/result_step", 6), told("train", "stage/seconds", 3.5),
        told("prepare", "stage/seconds", 1.5), told("train", "train/nonfinite", [3, 4], step=2),
        told("evaluate", "evaluate/own.py:judge", {"part": "test (1)", "base": 0.25, "tuned": 0.5, "gain": {"value": 0.25}}),
        told("evaluate", "evaluate/gate", "ship"), told("train", "train/peak_memory", float("nan")),
    ]  # fmt: skip
    found = summary(events, "done", tmp_path, {})
    assert found.step == 6
    assert found.texts == {"evaluate/gate": "ship"}
    scores = {"base": 0.25, "tuned": 0.5, "gain/value": 0.25}
    assert found.numbers == {
        "train/result_step": 6, "train/seconds": 3.5, "prepare/seconds": 1.5,
        **{f"evaluate/own.py_judge/test _1_/{name}": value for name, value in scores.items()},
    }  # fmt: skip


def test_names_and_settings_become_what_every_tracker_takes() -> None:
    assert clean("validation/own.py:judge") == "validation/own.py_judge"
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_a_step_that_was_redone_stands_once_in_the_table(tmp_path: Path) -> None:
    for attempt, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        run = make_run(tmp_path)
        run.listeners.append(MetricsFile(run.path))
        for step in steps:
            run.record("train", "train/loss", attempt * 10, step=step)
    with (run.path / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5, "while it works lines are only added"
    MetricsFile(run.path).close("done")
    with (run.path / "metrics.csv").open() as file:
        rows = [(row["attempt"], row["step"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("1", "1", "10"), ("1", "2", "10"), ("2", "3", "20"), ("2", "4", "20")]


# -------------------------------------------------------------------------------------------- before anything runs


def track(text: str) -> Track:
    return parse_recipe(f"{LEAST}track: {text}").track


def test_a_list_a_word_and_sections_all_read_naturally() -> None:
    assert track("[console, wandb]").to == ("console", "wandb")
    assert track("mlflow").to == ("mlflow",)
    found = track("{wandb: {project: support, mode: offline}, tensorboard: {}}")
    assert found.to == ("console", "files", "wandb", "tensorboard")
    assert (found.wandb.project, found.wandb.mode) == ("support", "offline")
    both = parse_recipe(f"{LEAST}track: [wandb]", ["track.wandb.mode=offline"]).track
    assert (both.to, both.wandb.mode) == (("wandb",), "offline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[console, comet]", r"RCP-011 track\.to\.1: is 'comet'\n  expected: .*tensorboard"),
        (
            "{to: [console], wandb: {project: x}}",
            r"RCP-051 track\.wandb \(line \d+\): has settings, and wandb is not in track\.to",
        ),
        (
            "{wandb: {url: 'https://me:pa55word@host/'}}",
            r"RCP-052 track\.wandb\.url \(line \d+\): https://\*\*\*@host/ holds a name",
        ),
        (
            "{mlflow: {uri: 'http://me:pa55word@host/'}}",
            r"RCP-052 track\.mlflow\.uri \(line \d+\): .*\n.*\n.*MLFLOW_TRACKING_PASSWORD",
        ),
        (
            "{mlflow: {uri: ./mlruns}}",
            r"RCP-053 track\.mlflow\.uri \(line \d+\): is '\./mlruns'.*\n.*\n.*sqlite:///mlflow\.db",
        ),
    ],
)
def test_what_cannot_work_is_said_with_the_recipe(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        track(text)
    assert "pa55word" not in str(caught.value)


def test_a_tracker_that_is_not_installed_is_answered_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tunesmith.tracking import preflight

    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name in ("trackio", "alembic") else object())
    check(track("[console, tensorboard]"))
    with pytest.raises(RecipeError, match=r'(?s)trackio is not installed.*pip install "tunesmith\[track\]"'):
        check(track("[trackio]"))
    with pytest.raises(RecipeError, match=r"TRK-001 .*mlflow is not installed .no module alembic"):
        check(track("[mlflow]"))
    check(track("{mlflow: {uri: 'http://host:5000'}}"))


def test_wandb_online_without_a_key_is_answered_not_prompted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith import api

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    recipe = parse_recipe(LEAST + "track: [wandb]")
    with pytest.raises(QuestionError, match=r"(?s)TRK-002 .*WANDB_API_KEY.*track\.wandb\.mode=offline") as caught:
        api.train(recipe, workspace=tmp_path / "work")
    assert caught.value.exit_status == 65
    assert not (tmp_path / "work").exists(), "nothing was begun"
    check(track("{wandb: {mode: offline}}"))
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password 0123456789\n")
    check(track("{wandb: {url: 'https://wandb.example.org'}}"))
    with pytest.raises(QuestionError, match="TRK-002"):
        check(track("[wandb]"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    check(track("[wandb]"))


# ------------------------------------------------------------------------------------------------ sinks and secrets


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "track: [files]")
    (run.path / "metrics.csv").symlink_to("/dev/full")  # writing to it says: no space left on device
    heard: list[str] = []
    sinks = Sinks(run.recipe.track.to, run)
    run.listeners += [sinks, lambda event: heard.append(event.name)]
    for step in (1, 2, 3):
        run.record("train", "train/loss", 0.5, step=step)
    sinks.close("done")
    assert heard == ["train/loss"] * 3
    told = capsys.readouterr().err
    assert told.count("tracker MetricsFile failed and is left out") == 1
    assert "No space left" in told


def test_what_is_kept_of_an_error_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-1234567")
    monkeypatch.setenv("SOME_PASSWORD", "abc")  # too short to tell from a word
    said = without_secrets("401 for https://me:pw@host/api with tok-1234567 and abc")
    assert said == "401 for https://***@host/api with *** and abc"


def test_a_state_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    state = TrackerState(run.path, "wandb")
    key = state.key()
    assert TrackerState(run.path, "wandb").key() == key
    state.path.write_text('{"key": "abc')
    assert len(TrackerState(run.path, "wandb").key()) == 12
    assert not state.is_behind
    run.record("run", "run/started", "x")
    assert state.is_behind


def test_tracking_changes_no_stage_and_makes_a_run_of_its_own(tmp_path: Path) -> None:
    from tunesmith.runner.stages import STAGES, load_stages

    for stage in load_stages(STAGES, "serve"):
        assert not any(key.startswith("track") for key in stage.info.keys), stage.info.name


def test_the_last_count_of_a_step_is_told_before_the_next_begins(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.tracking.console import Console

    console = Console(every_s=60)
    counts = (
        ("rows_read", 240),
        ("rows_read", 8142),
        ("rows_read", 8982),
        ("rows_judged", 8982),
        ("note", "8,440 used"),
    )
    for name, value in counts:
        console(
            Event(time=0.0, attempt=1, stage="prepare", step=None, name=f"prepare/{name}", value=value, unit="rows")
        )
    told = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[1] for line in told] == [
        "240 rows read", "8,982 rows read", "8,982 rows judged", "8,440 used",
    ]  # fmt: skip
