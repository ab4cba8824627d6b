"""What the command line tells a user to type next can be typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunesmith.cli import group


def test_what_to_type_next_is_there_to_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tunesmith.cli import options

    placed = tmp_path / "bin" / "tunesmith"
    placed.parent.mkdir()
    placed.touch()
    monkeypatch.setattr(options.sys, "executable", str(placed.with_name("python")))
    monkeypatch.setattr(options.shutil, "which", lambda name: "/usr/bin/tunesmith")
    assert options.program() == "tunesmith"
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    assert options.program() == str(placed)
    monkeypatch.chdir(tmp_path)
    assert options.program() == "bin/tunesmith"


def test_explain_takes_recipe_yaml_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{data: {sources: rows.jsonl}, evaluate: {max_new_tokens: 1024}}")
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(group, ["explain", "evaluate.max_new_tokens", "--json"])
    assert json.loads(told.output)["value"] == 1024


def test_the_workspace_is_named_where_it_is_not_the_usual_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tunesmith.cli import options

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "program", lambda: "tunesmith")
    facts = {
        "run": "desk-1", "did_nothing": True, "parent": None, "base_model": None, "scores": None, "gate": None,
        "quantised_base": None, "report": "report.html", "stages": {"serve": {}},
    }  # fmt: skip
    usual = options.outcome_lines({**facts, "workspace": str(tmp_path / options.WORKSPACE)}, 1.0)
    other = options.outcome_lines({**facts, "workspace": str(tmp_path / "work")}, 1.0)
    assert any("tunesmith chat desk-1  " in line for line in usual)
    assert any("tunesmith chat desk-1 --workspace work  " in line for line in other)
    assert any("tunesmith serve desk-1 --workspace work  " in line for line in other)


def test_what_differs_from_the_parent_is_told_key_by_key() -> None:
    from tunesmith.cli import options
    from tunesmith.recipe import difference, parse_recipe

    old = parse_recipe("data: {sources: [{path: a.jsonl, weight: 2}]}", folder=Path("/rows"))
    new = parse_recipe(
        "data: {sources: [{path: a.jsonl}, {path: b.jsonl, fields: {prompt: q}}], filters: {length: null}}\n"
        "train: {early_stopping: {patience: 3}}\nadapter: {targets: [q_proj, v_proj]}",
        folder=Path("/rows"),
    )
    lines = options._parent_lines({"run": "desk-1", "changed": difference(old, new)})
    assert lines[0] == "parent run desk-1, since then:"
    assert lines[2:] == [
        "  data.sources.0.weight: 2.0 -> 1.0",
        "  data.filters.length.min_characters: 50 -> not set",
        "  data.filters.length.max_characters: 10000 -> not set",
        "  data.sources.1.path: not set -> /rows/b.jsonl",
        "  and 4 more",
    ]
    assert lines[1].startswith("  adapter.targets: [q_proj, k_proj")
    assert lines[1].endswith(" -> [q_proj, v_proj]")
    assert options._parent_lines({"run": "desk-1", "changed": {}}) == [
        "parent run desk-1: nothing in the recipe differs"
    ]
    kept = {"data.sources": [[{"path": "a", "name": None}], [{"path": "b"}]]}  # as runs of an older version noted it
    assert (
        options._parent_lines({"run": "r", "changed": kept})[1]
        == "  data.sources: [{path: a, name: not set}] -> [{path: b}]"
    )
