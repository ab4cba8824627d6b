"""Engines that cannot run are refused by name, before anything is read; a DeepSpeed file is part of the fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunesmith.errors import RecipeError
from tunesmith.planner import hardware
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.stages.train import checks
from tunesmith.stages.train.externals import externals


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("data: {sources: rows.jsonl}", overrides)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Linux machine with DeepSpeed and without a GPU."""
    found = SimpleNamespace(gpus=())
    monkeypatch.setattr(hardware, "detect", lambda: found)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    return found


@pytest.mark.parametrize("engine", ["auto", "ddp", "fsdp", "deepspeed", "{type: deepspeed, zero_stage: 3}"])
def test_what_can_run_is_not_refused(engine: str) -> None:
    checks.check(recipe(f"train.engine={engine}"))


@pytest.mark.parametrize(
    ("code", "overrides", "fix"),
    [
        ("TRN-020", ["train.engine={type: fsdp, cpu_offload: true}"], "--set train.engine.cpu_offload=false"),
        ("TRN-025", ["train.engine=fsdp", "train.optimizer=adafactor"], "--set train.optimizer.type=adamw"),
        ("TRN-025", ["train.engine=deepspeed", "train.optimizer=adamw_8bit"], "--set train.engine.type=ddp"),
        ("TRN-028", ["train.engine=deepspeed", "model.quantisation=nf4"], "--set train.engine.type=fsdp"),
        ("TRN-034", ["train.engine={type: deepspeed, offload_optimizer: cpu}"], "train.engine.offload_optimizer: none"),
    ],
)
def test_what_cannot_run_is_refused_with_the_next_move(code: str, overrides: list[str], fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        checks.check(recipe(*overrides))
    assert caught.value.problems[0].code == code
    assert fix in caught.value.problems[0].fix


def test_a_gpu_allows_offloading(machine: SimpleNamespace) -> None:
    machine.gpus = ("one",)
    checks.check(recipe("train.engine={type: fsdp, cpu_offload: true}"))
    checks.check(recipe("train.engine={type: deepspeed, offload_optimizer: cpu}"))


def test_deepspeed_that_is_not_installed_is_answered_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="TRN-022") as caught:
        checks.check(recipe("train.engine=deepspeed"))
    assert "DS_BUILD_OPS=0 pip install 'tunesmith[deepspeed]'" in str(caught.value)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_deepspeed_elsewhere_than_on_linux_is_refused(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(RecipeError, match=f"TRN-021.*{platform}"):
        checks.check(recipe("train.engine=deepspeed"))


def test_weights_are_offloaded_at_stage_3_only() -> None:
    with pytest.raises(RecipeError, match="RCP-021"):
        recipe("train.engine={type: deepspeed, zero_stage: 2, offload_parameters: cpu}")


def test_the_content_of_a_deepspeed_file_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    spec = parse_recipe(
        "data: {sources: rows.jsonl}", ["train.engine={type: deepspeed, config: ds.json}"], folder=tmp_path
    )
    assert spec.train.engine.config == str(file)  # type: ignore[union-attr]
    told = []
    for content in ('{"steps_per_print": 1}', '{"steps_per_print": 2}', '{"steps_per_print": 1}'):
        file.write_text(content)
        told.append(externals(spec, None)["deepspeed"])  # type: ignore[arg-type]
    assert told[0] == told[2] != told[1]
