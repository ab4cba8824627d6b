"""docs/main-path.md is true: the functions exist where it says, and each file calls the next one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = re.findall(r"^\d+\. `([\w.]+):([\w.]+)`", (ROOT / "docs" / "main-path.md").read_text(), re.MULTILINE)
ALL = re.findall(r"`(tunesmith[\w.]*):([\w.]+)`", (ROOT / "docs" / "main-path.md").read_text())


def source_of(module: str) -> str:
    path = ROOT / "src" / Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def test_the_page_names_a_path() -> None:
    assert len(PATH) >= 6


@pytest.mark.parametrize(("module", "name"), ALL, ids=lambda value: str(value))
def test_each_function_is_where_the_page_says(module: str, name: str) -> None:
    owner, _, method = name.rpartition(".")
    text = source_of(module)
    if owner:
        text = text[text.index(f"class {owner}") :]
    assert re.search(rf"^\s*def {method}\(", text, re.MULTILINE)


def test_each_step_leads_to_the_next() -> None:
    words = {
        "tunesmith.cli": "import_module(f\"tunesmith.cli.{name}\")", "tunesmith.cli.options": "getattr(api, verb)",
        "tunesmith.api": "execute(", "tunesmith.runner.execute": "stage.run(", "tunesmith.stages.train.run": "Loop(",
        "tunesmith.stages.train.loop": "engine.step(",
    }  # fmt: skip
    for module, _ in PATH[:-1]:
        assert words[module] in source_of(module), f"{module} no longer leads to the next step"
