"""What a stage's own check refuses is said by `run` as by `check`: by its code, never as a bug of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import RecipeError


def test_run_says_what_the_check_of_a_stage_refuses(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{data: {sources: rows.jsonl}, model: {quantisation: nf4}, adapter: lora, train: {compile: regional}}"
    )
    with pytest.raises(RecipeError, match="TRN-061"):
        tunesmith.run(recipe, workspace=tmp_path / "work")
