"""The command line's contract: exit statuses, what goes to which stream, JSON for programs, help that teaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from tunesmith import api, errors
from tunesmith.cli import VERBS, group, main
from tunesmith.cli.options import StageLines

ROOT = Path(__file__).parents[2]
FAMILIES = {
    errors.UsageError: 2, errors.GateError: 3, errors.RecipeError: 64, errors.DataError: 65, errors.QuestionError: 65,
    errors.ModelError: 66, errors.FileError: 74, errors.StoppedError: 75,
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands are called in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rows(here: Path) -> Path:
    with (here / "rows.jsonl").open("w") as file:
        for number in range(40):
            asked = f"Please repeat the number {number} and then say the word done, thank you."
            file.write(json.dumps({"prompt": asked, "completion": f"{number} done"}) + "\n")
    (here / "recipe.yaml").write_text("data: {sources: rows.jsonl, split: {test: 0.2}}\n")
    return here


def status(*arguments: str) -> int:
    """The exit status of `tunesmith ARGUMENTS`, in this process."""
    try:
        main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


# ------------------------------------------------------------------------------------------------------- exit statuses


@pytest.mark.parametrize(("family", "expected"), FAMILIES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_each_family_of_errors_has_its_exit_status(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: Any, expected: int
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise family("XYZ-001", "it is off", where="here", expected="better", fix="mend it")

    monkeypatch.setattr(api, "run", fail)
    assert status("run") == expected
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "XYZ-001 here: it is off\n  expected: better\n  try: mend it\n")
    assert status("run", "--json") == expected
    found = json.loads(capsys.readouterr().out)
    assert (found["error"], found["exit_status"], found["problems"][0]["fix"]) == ("XYZ-001", expected, "mend it")


@pytest.mark.parametrize("family", errors.TunesmithError.__subclasses__(), ids=lambda family: family.__name__)
def test_no_family_is_forgotten(family: type) -> None:
    assert family in FAMILIES or family is errors.InterruptedRun


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (errors.InterruptedRun(2, "stopped"), 130),
        (errors.InterruptedRun(15, "stopped"), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_signals_end_with_the_status_a_shell_knows(
    rows: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: int
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(api, "run", stop)
    assert status("run") == expected


def test_a_bug_keeps_its_traceback_and_a_mistake_has_none(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "run", lambda *arguments, **options: 1 / 0)
    assert status("run") == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert "this is a bug of ours" in told


@pytest.mark.parametrize(
    ("arguments", "expected", "told"),
    [
        ([], 2, "A first run:"),
        (["--help"], 0, "A first run:"),
        (["run", "--nonsense"], 2, "No such option '--nonsense'"),
        (["run", "bad.yaml"], 64, "RCP-008 lr"),
        (["check", "gone.yaml"], 74, "RCP-001"),
        (["run", "."], 2, "RCP-015 . is a folder"),
        (["plan", "recipe.yaml", "--set", "model.base=./none"], 66, "MDL-001"),
        (["report"], 2, "is no workspace"),
    ],
)
def test_statuses_of_the_real_process(rows: Path, arguments: list[str], expected: int, told: str) -> None:
    (rows / "bad.yaml").write_text("data: {sources: rows.jsonl}\nlr: 3\n")
    done = call(rows, *arguments)
    assert done.returncode == expected, done.stderr
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_gone_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -c 'from tunesmith.cli import main; main()' explain | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("name ")
    assert done.stderr == ""


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *arguments], cwd=folder, env=environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


# ----------------------------------------------------------------------------------------------------- which recipe


def test_without_a_recipe_the_one_of_this_folder_is_taken(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("plan", "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"]["peak_memory"]["value"] > 0


def test_a_wrong_folder_is_answered_with_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("run") == 2
    told = capsys.readouterr().err
    assert f"CLI-006 no RECIPE is given, and {here} holds no recipe.yaml" in told
    assert "tunesmith init ROWS.jsonl" in told
    (here / "tickets.yaml").write_text("data: {sources: rows.jsonl}\n")
    assert status("run") == 2
    assert "try: tunesmith run tickets.yaml" in capsys.readouterr().err
    assert status("check", "ticket.yaml") == 74
    assert "did you mean tickets.yaml?" in capsys.readouterr().err
    assert status("chat", "latest") == 2
    assert "go to the folder where `tunesmith run` was called" in capsys.readouterr().err


def test_rows_in_place_of_a_recipe_are_answered(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("run", "rows.jsonl") == 2
    assert "tunesmith init rows.jsonl looks at it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        ("train.epochs", 2, "RCP-006"),
        ("train.epochs=[", 2, "RCP-007"),
        ("data.sources.5.path=x", 2, "RCP-017 --set data.sources.5.path: the list has 1 item"),
        ("train.epochs.more=1", 64, "RCP-011 train.epochs"),
        ("train.epoch=1", 64, "RCP-008 train.epoch (--set): no such key"),
        ("train.epochs=many", 64, "RCP-011 train.epochs (--set): is 'many'"),
        ("adapter={type: full, rank: 8}", 64, "RCP-018 adapter.rank: adapter is 'full', which has no rank"),
        ("train.optimizer.momentum=0.9", 64, "train.optimizer is 'adamw', which has no momentum"),
        ("adapter=lorra", 64, "RCP-010 adapter (--set): is 'lorra'"),
        ("train=3", 64, "expected: keys and values: epochs"),
        ("data.sources=[]", 64, "RCP-011 data.sources (--set): is []"),
    ],
)
def test_mistakes_in_set_are_answered(
    rows: Path, capsys: pytest.CaptureFixture[str], given: str, expected: int, told: str
) -> None:
    assert status("plan", "--set", given) == expected
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n  try: ") == 1, "one mistake, one problem"


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("data.sources.0.fields.prompt=q", "data.sources.0.fields", {"prompt": "q"}),
        ("data.sources.0.split=train", "data.sources.0.split", "train"),
        ("data.sources.1.path=/b.jsonl", "data.sources.1.path", "/b.jsonl"),
        ("adapter.rank=4", "adapter.rank", 4),
        ("train.schedule.warmup=0.5", "train.schedule.warmup", 0.5),
        ("train.early_stopping.patience=2", "train.early_stopping.patience", 2),
        ("train.optimizer.type=sgd", "train.optimizer.type", "sgd"),
    ],
)
def test_set_reaches_into_shorthands(given: str, key: str, value: Any) -> None:
    from tunesmith.recipe import parse_recipe

    assert parse_recipe("data: {sources: rows.jsonl}\nadapter: lora\n", [given]).value(key) == value


# ---------------------------------------------------------------------------------------------- streams, quiet, JSON


def test_progress_goes_to_standard_error_and_quiet_is_quiet(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("prepare") == 0
    told = capsys.readouterr()
    assert "  prepare   done in" in told.err
    assert "rows encoded" in told.err, "the console tracker"
    assert told.out.startswith("run run-")
    assert status("prepare", "--quiet", "--set", "data.split.test=0.3") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "run run-" in told.out
    assert status("prepare", "--json", "--set", "data.split.test=0.25") == 0
    told = capsys.readouterr()
    assert told.err == ""
    facts = json.loads(told.out)
    assert facts["stages"]["prepare"]["status"] == "done"
    assert status("prepare", "--json", "--set", "data.split.test=0.25") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["did_nothing"]
    assert again["run"] == facts["run"], "quiet or not, it is the same recipe and the same run"


def test_programs_get_one_json_object(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("prepare", "--quiet") == 0
    capsys.readouterr()
    expected = {
        ("check", "--json"): "facts", ("plan", "--json"): "figures", ("report", "--json"): "page", ("doctor", "--json"): "hardware",
        ("explain", "train.epochs", "--json"): "value", ("explain", "rows.jsonl:7", "--json"): "status",
        ("explain", "--schema"): "properties", ("init", "rows.jsonl", "-o", "new.yaml", "--json"): "files",
    }  # fmt: skip
    for arguments, key in expected.items():
        assert status(*arguments) == 0, arguments
        assert key in json.loads(capsys.readouterr().out), arguments
    assert status("runs", "--json") == 0
    assert [run["finished"] for run in json.loads(capsys.readouterr().out)] == [["prepare"]]
    assert status("plan", "--nonsense", "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_status"] == 2


def test_doctor_names_each_optional_part_with_its_version_or_what_brings_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (distributions, brought) in api.OPTIONAL.items():
        if "[" in brought:
            wanted = " ".join(extras[brought.removeprefix("tunesmith[").rstrip("]")])
            assert any(distribution in wanted for distribution in distributions), f"{brought} does not bring {name}"
    here_now = {"optuna": "5.0.0", "mlflow-skinny": "3.17.2"}
    monkeypatch.setattr(api, "_version", here_now.get)
    assert status("doctor") == 0
    told = capsys.readouterr().out.splitlines()
    assert "optional parts: optuna 5.0.0, mlflow 3.17.2" in told
    (absent,) = [line for line in told if line.startswith("  not installed: ")]
    for part in (
        "deepspeed (pip install 'tunesmith[deepspeed]')",
        "wandb (pip install 'tunesmith[track]')",
        "vllm (pip install vllm)",
    ):
        assert part in absent
    assert "optuna" not in absent


def test_export_takes_a_run_in_a_recipes_place(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run was given by --set is its own: nothing else is trained and exported in its place."""
    assert status("prepare", "--quiet", "--set", "seed=5") == 0
    run = api.open_run("latest")
    seen: list[tuple[Any, Any]] = []

    def carried(recipe: Any, *, workspace: Any, until: str, **options: Any) -> None:
        seen.append((recipe, Path(workspace).absolute()))
        raise errors.StoppedError("RUN-999", "far enough")

    monkeypatch.setattr(api, "run", carried)
    for target in ("latest", run.id, run.id[:6], str(run.path)):
        assert status("export", target) == 75
    assert seen == [(run.recipe, Path("tunesmith-work").absolute())] * 4
    assert {recipe.seed for recipe, _ in seen} == {5}
    assert status("export", "recipe.yaml") == 75
    assert seen[-1][0] == Path("recipe.yaml")
    capsys.readouterr()
    assert status("export", "no-such-run") == 2
    assert "RUN-008" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(rows)
    assert status("export", "latest", "--set", "seed=6") == 64
    assert "CLI-004" in capsys.readouterr().err


def test_an_endpoint_that_is_ready_says_so_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(target: str, *, on_ready: Any, on_phase: Any, token: str | None, **options: Any) -> None:
        on_phase("loading")
        endpoint = SimpleNamespace(name="desk", url="http://127.0.0.1:8000/v1", token=token or "made")
        on_ready(endpoint, None if token else here / "serve.token")

    monkeypatch.setattr(api, "serve", serve)
    assert status("serve", "latest", "--json") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("\n") == 1
    found = json.loads(told.out)
    assert (found["url"], found["model"], found["token"], found["pid"]) == (
        "http://127.0.0.1:8000/v1",
        "desk",
        "made",
        os.getpid(),
    )
    assert status("serve", "latest", "--json", "--token", "of my own") == 0
    assert "of my own" not in capsys.readouterr().out, "a token that was given is known, and is not shown"


def test_lines_on_a_terminal_write_over_the_progress_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = StageLines()
    assert not lines.is_terminal
    for lines.is_terminal in (False, True):
        lines("train", "started")
        lines("train", "done")
        told = capsys.readouterr().err
        assert told.endswith("\n")
        assert told.startswith("\r\x1b[2K  train     done" if lines.is_terminal else "  train     done in")


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_each_option_in_a_line_and_shows_examples(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    assert command.help is not None
    examples = [line.strip() for line in command.help.partition("Examples:")[2].splitlines()]
    assert sum(line.startswith(f"tunesmith {verb}") for line in examples) >= 1
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith("."), option.name
            assert len(option.help) <= 105, f"{option.name}: one clear line"


def test_examples_in_the_help_are_commands_that_exist() -> None:
    from tunesmith.recipe import parse_recipe

    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        assert command.help is not None
        for line in command.help.splitlines():
            words = line.strip().split("   ")[0].split()
            if words[:1] == ["tunesmith"]:
                given = [word for word in words[2:] if word.startswith("--")]
                known = {
                    name
                    for parameter in group.get_command(click.Context(group), words[1]).params
                    for name in parameter.opts
                }  # type: ignore[union-attr]
                assert set(given) <= known, line
                overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
                assert parse_recipe("data: {sources: rows.jsonl}", overrides)
