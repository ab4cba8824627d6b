"""Python code that a recipe names: listed and refused, run with --allow-code, remembered by its hash, refused once it changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tunesmith import api
from tunesmith.errors import QuestionError, TunesmithError

METRIC = "from pathlib import Path\n\n\ndef words(expected, answer, item):\n    Path(r'{mark}').touch()\n    return {value}\n"


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path, chat_rows: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"data: {{sources: {chat_rows}, split: {{validation: 0.1, test: 0.1}}}}\n"
        f"model: {{base: {tiny_model_dir}}}\n"
        "adapter: {type: lora, rank: 2, alpha: 4}\n"
        "train: {max_steps: 1, batch_size: 4}\n"
        "evaluate: {metrics: [mine.py:words], max_new_tokens: 4}\n"
        "gate: {require: none}\ntrack: files\n"
    )
    return path


def write(recipe: Path, value: float) -> str:
    """The metric; it leaves a mark where it runs. Returns the file's hash."""
    path = recipe.parent / "mine.py"
    path.write_text(METRIC.format(mark=recipe.parent / "mark", value=value))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_code_runs_with_consent_alone_and_is_remembered_by_its_hash(recipe: Path) -> None:
    workspace, mark = recipe.parent / "work", recipe.parent / "mark"
    first = write(recipe, 0.5)
    with pytest.raises(QuestionError, match=r"(?s)CLI-005 .*mine\.py:words.*--allow-code") as refused:
        api.evaluate(recipe, workspace=workspace, quiet=True)
    assert refused.value.exit_status == 65
    assert not mark.exists()
    run = api.evaluate(recipe, workspace=workspace, quiet=True, allow_code=True).run
    name = f"{recipe.parent}/mine.py:words"
    assert mark.exists()
    assert run.allowed_code == {name: first}
    scores = json.loads((run.outputs("evaluate")["evaluation"].path / "evaluation.json").read_bytes())
    assert {found["metrics"]["mine.py:words"]["tuned"]["value"] for found in scores["parts"].values()} == {0.5}

    with pytest.raises(QuestionError, match="CLI-005"):  # each command asks
        api.evaluate(recipe, workspace=workspace, quiet=True)
    second = write(recipe, 0.25)
    again = api.evaluate(recipe, workspace=workspace, quiet=True, allow_code=True).run
    assert (again.id, again.allowed_code) == (run.id, {name: second})
    scores = json.loads((again.outputs("evaluate")["evaluation"].path / "evaluation.json").read_bytes())
    assert {found["metrics"]["mine.py:words"]["tuned"]["value"] for found in scores["parts"].values()} == {0.25}


def test_code_that_changes_after_the_consent_does_not_run(recipe: Path) -> None:
    write(recipe, 0.5)

    def change(stage: str, status: str) -> None:
        if (stage, status) == ("train", "done"):
            write(recipe, 1.0)

    with pytest.raises(TunesmithError, match=r"EVL-004 .*changed since it was allowed"):
        api.evaluate(recipe, workspace=recipe.parent / "work", quiet=True, allow_code=True, on_stage=change)
    assert not (recipe.parent / "mark").exists()
