"""The main job, shortened: raw rows to an evaluated, gated, exported and served model by one command; then again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.runs.dataset import Dataset
from tunesmith.runs.events import read_events

Call = Callable[..., subprocess.CompletedProcess[str]]

SHORT = [
    "--set", "train.max_steps=12", "--set", "train.evaluate_every=6", "--set", "train.threads=1",
    "--set", "evaluate.max_items=6", "--set", "evaluate.max_new_tokens=40", "--set", "serve.parity_items=4",
    "--set", "gate.require=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tunesmith: Call, quickstart_data: Path) -> tuple[Path, Path]:
    """The workspace and the run folder of a finished short quickstart."""
    workspace = quickstart_data / "work"
    tunesmith("run", quickstart_data / "recipe.yaml", "--workspace", workspace, *SHORT)
    runs = sorted((workspace / "runs").iterdir())
    assert len(runs) == 1
    return workspace, runs[0]


def outputs(run: Path, stage: str, name: str) -> Path:
    record = json.loads((run / "outputs.json").read_text())[stage][name]
    return run.parents[1] / "artifacts" / record["kind"].lower() / record["id"]


def test_every_planted_flaw_ends_in_the_ledger_under_its_own_rule(
    finished: tuple[Path, Path], quickstart_data: Path
) -> None:
    planted = json.loads((quickstart_data / "data" / "planted.json").read_text())
    statistics = json.loads((outputs(finished[1], "prepare", "dataset") / "statistics.json").read_text())
    ledger = list(Dataset(outputs(finished[1], "prepare", "dataset")).ledger())
    positions = sum(
        sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
        for path in (quickstart_data / "data").glob("*.jsonl")
    )
    assert len(ledger) == positions, "every source position is in the ledger once"
    assert sum(entry["status"] == "quarantined" for entry in ledger) == planted["malformed"]["count"]
    dropped = {item["rule"]: item["dropped"] for item in statistics["funnel"]}
    assert dropped["quality"] >= planted["low_quality"]["count"] > 0
    assert dropped["leak"] >= planted["leaks"]["count"] > 0


def test_export_is_proven_equal_and_the_endpoint_answers_like_evaluation(finished: tuple[Path, Path]) -> None:
    for stage in ("export", "serve"):
        parity = json.loads((outputs(finished[1], stage, "parity") / "parity.json").read_text())
        assert parity["verdict"] == "equal"
        assert parity["n"] == parity["equal"] > 0


def test_the_report_is_one_file_that_loads_nothing(finished: tuple[Path, Path]) -> None:
    page = (finished[1] / "report.html").read_text()
    for part in ("unseen rows", "unseen wording", "learned", "validation", "How to repeat"):
        assert part in page
    assert 'src="http' not in page
    assert "<link" not in page
    assert "@import" not in page


def test_the_plan_of_prepared_rows_tells_steps_and_time(
    finished: tuple[Path, Path], quickstart_data: Path, tunesmith: Call
) -> None:
    workspace, run = finished
    asked = ("plan", quickstart_data / "recipe.yaml", *SHORT, "--json", "--workspace")
    told = json.loads(tunesmith(*asked, workspace).stdout)
    notes = json.loads((outputs(run, "train", "model") / "manifest.json").read_text())["notes"]
    assert told["figures"]["steps"]["value"] == notes["planned_steps"]
    assert told["figures"]["train_seconds"]["value"] > 0
    assert "steps" not in json.loads(tunesmith(*asked, workspace / "elsewhere").stdout)["figures"]


def test_the_same_recipe_again_does_nothing_and_says_so(
    finished: tuple[Path, Path], tunesmith: Call, quickstart_data: Path
) -> None:
    done = tunesmith("run", quickstart_data / "recipe.yaml", "--workspace", finished[0], *SHORT)
    assert "nothing to do" in (done.stdout + done.stderr).lower()
    assert len(list((finished[0] / "runs").iterdir())) == 1


def test_a_run_is_exported_by_its_name_with_the_overrides_it_was_given(
    finished: tuple[Path, Path], tunesmith: Call, tmp_path: Path
) -> None:
    workspace, run = finished
    done = tunesmith("export", "latest", "--workspace", workspace, "--to", tmp_path / "model")
    assert f"nothing to do: everything is up to date (run {run.name})" in done.stdout
    assert len(list((workspace / "runs").iterdir())) == 1
    delivered = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert delivered == (outputs(run, "export", "export") / "model.safetensors").read_bytes()


def test_an_edited_threshold_encodes_no_row_twice(
    finished: tuple[Path, Path], tunesmith: Call, quickstart_data: Path
) -> None:
    edited = ["--set", "data.filters.quality.above=0.8"]
    tunesmith("prepare", quickstart_data / "recipe.yaml", "--workspace", finished[0], *SHORT, *edited)
    new = next(run for run in (finished[0] / "runs").iterdir() if run != finished[1])
    encoded = [event.value for event in read_events(new / "events.jsonl") if event.name == "prepare/encoded_rows"]
    assert encoded == [0]
    assert outputs(new, "prepare", "tokens") == outputs(finished[1], "prepare", "tokens")
    assert outputs(new, "prepare", "dataset") != outputs(finished[1], "prepare", "dataset")
    parent = json.loads((new / "parent.json").read_text())
    assert parent["run"] == finished[1].name
    assert list(parent["changed"]) == ["data.filters.quality.above"]
