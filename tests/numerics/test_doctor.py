"""`doctor --numerics` on a tiny model: everything holds; and what is broken on purpose is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from tunesmith.cli import main
from tunesmith.modeling import packing
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.runner.numerics import numerics
from tunesmith.runner.planning import prepared_dataset
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.loop import Loop

# Two processes start for a quarter of a minute: benchmarks/reliability/numerics.py has them.
HERE = ("micro-batch", "recomputation", "resume", "merge", "evaluation batch", "attention")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Recipe:
    folder = tmp_path_factory.mktemp("doctor")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(60):
            asked = f"Please repeat the number {number} and then say that it is done" + ", please" * (number % 7)
            file.write(json.dumps({"prompt": asked, "completion": f"{number} done" + " indeed" * (number % 5)}) + "\n")
    (folder / "recipe.yaml").write_text(
        f"data: {{sources: rows.jsonl}}\nmodel: {{base: {tiny_model_dir}, template: auto}}\n"
        "adapter: {type: lora, rank: 4, dropout: 0.1}\ntrack: files\n"
    )
    return load_recipe(folder / "recipe.yaml")


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in found["checks"]}


def test_nothing_changes_a_sound_model(recipe: Recipe, tmp_path: Path) -> None:
    found = numerics(recipe, tmp_path, checks=HERE)
    assert found["holds"]
    assert found["rows"] > 20
    told = verdicts(found)
    assert set(told) >= {*HERE[:-1], "attention eager", "attention sdpa"}
    assert set(told.values()) <= {"holds", "unused"}
    by_name = {check["name"]: check for check in found["checks"]}
    assert by_name["resume"]["measured"] == 0.0
    assert "end to end" in by_name["attention sdpa"]["compared"]
    assert not (tmp_path / "artifacts").exists(), "the workspace is left as it is"


def leaky(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Packed documents that see those before them."""
    lengths = options.pop("document_lengths", None)
    whole = None if lengths is None else packing.Documents((sum(lengths.lengths),))
    return packing.packed_attention(module, query, key, value, mask, document_lengths=whole, **options)


def test_what_is_broken_is_named(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Loop.loss
    monkeypatch.setattr(
        Loop, "loss", lambda loop, batch, weights: plain(loop, batch, weights) * (1 + 0.001 * len(batch.examples_E))
    )
    monkeypatch.setattr(LocalEngine, "load_state", lambda engine, weights, state: None)
    work = "tunesmith.stages.train"
    monkeypatch.setattr(
        f"{work}.run.recompute_activations", lambda model: model.get_input_embeddings().weight.data.mul_(1.01)
    )
    monkeypatch.setattr(f"{work}.numerics.merge_adapter", lambda model: model.unload())
    nll = nll_of_many_rows()
    monkeypatch.setattr("tunesmith.scoring.perplexity.learned_nll", nll)
    monkeypatch.setattr(packing, "_is_exact", lambda model: True)
    AttentionInterface.register(packing.PACKED_SDPA, leaky)
    try:
        found = numerics(recipe, tmp_path, checks=HERE)
    finally:
        AttentionInterface.register(packing.PACKED_SDPA, packing.packed_attention)
    told = verdicts(found)
    assert not found["holds"]
    expected = {*HERE[:-1], "attention sdpa"}
    assert {name for name, verdict in told.items() if verdict == "fails"} == expected
    by_name = {check["name"]: check for check in found["checks"]}
    assert all(by_name[name]["fix"] for name in expected)
    assert by_name["attention sdpa"]["note"] == "a document feels its neighbour"


def nll_of_many_rows() -> Any:
    """A loss that depends on how many rows are evaluated together."""
    from tunesmith.modeling.forward import learned_nll

    return lambda model, batch: learned_nll(model, batch) * (1 + 0.001 * batch.ids_BT.shape[0])


def test_the_command_shows_a_table_and_fails_where_something_differs(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checks = [
        {"name": "resume", "compared": "a, and b", "verdict": "fails", "measured": 0.1, "tolerance": 1e-4, "note": "", "fix": "do x"},
        {"name": "merge", "compared": "", "verdict": "not tried", "measured": None, "tolerance": None, "note": "why", "fix": ""},
    ]  # fmt: skip
    told = {"model": "m", "rows": 3, "tokens": 10, "seconds": 1.0, "holds": False, "checks": checks}
    monkeypatch.setattr("tunesmith.runner.numerics.numerics", lambda spec, workspace, on_check: told)
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {sources: rows.jsonl}\n")
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--numerics", str(path)])
    assert left.value.code == 66
    shown = capsys.readouterr().out
    assert "resume changes the result: do x" in shown
    assert "1.0e-01    1.0e-04  fails" in shown
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--numerics", str(path), "--json"])
    assert left.value.code == 66
    assert json.loads(capsys.readouterr().out) == told


def test_rows_that_are_prepared_are_taken_as_they_are(recipe: Recipe, tmp_path: Path) -> None:
    from tunesmith import api

    api.prepare(recipe, workspace=tmp_path, quiet=True)
    assert prepared_dataset(recipe, tmp_path) is not None
    found = numerics(recipe, tmp_path, checks=("evaluation batch",))
    assert verdicts(found) == {"evaluation batch": "holds"}
