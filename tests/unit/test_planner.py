"""The plan's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import ModelError
from tunesmith.planner import plan
from tunesmith.planner.hardware import Gpu, Hardware, detect
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe, load_recipe, parse_recipe

LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
RECIPES = Path(__file__).parents[2] / "recipes"
H200 = Hardware(16, 128 << 30, 100 << 30, (Gpu("H200", 141 << 30, 140 << 30, 9.0),))
LAPTOP = Hardware(2, 24 << 30, 20 << 30)


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("data: {sources: rows.jsonl}", overrides)


def test_parameters_are_those_of_the_published_model() -> None:
    shape = Shape.of(LLAMA_8B)
    assert shape.parameters == 8_030_261_248
    assert shape.adapter_parameters(recipe().adapter) == 41_943_040  # type: ignore[arg-type]


def test_parameters_are_those_that_transformers_makes(tiny_model_dir: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_dir / "model.safetensors", "pt") as file:
        real = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert Shape.of(json.loads((tiny_model_dir / "config.json").read_text())).parameters == real


def test_the_plan_divides_what_an_engine_shares_out() -> None:
    def parts(engine: str, processes: int = 2) -> dict[str, float]:
        asked = ["adapter=full", f"train.processes={processes}", f"train.engine={engine}"]
        figures = plan(recipe("train.micro_batch=1", *asked), LLAMA_8B, statistics=None, hardware=H200).figures
        return {name: figures[name].value for name in ("weights", "gradients", "optimizer")}

    whole = parts("ddp")
    assert parts("fsdp", 1) == whole
    for engine, shared in {
        "fsdp": ("weights", "gradients", "optimizer"),
        "{type: deepspeed, zero_stage: 1}": ("optimizer",),
        "deepspeed": ("gradients", "optimizer"),
        "{type: deepspeed, zero_stage: 3}": ("weights", "gradients", "optimizer"),
    }.items():
        for name, value in parts(engine).items():
            block = whole["weights"] / 32 if name == "weights" else 0  # one block is whole while it is at work
            assert value == pytest.approx(whole[name] / 2 + block if name in shared else whole[name]), (engine, name)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_ready_recipe_is_planned(path: Path) -> None:
    figures = plan(load_recipe(path), LLAMA_8B, statistics=None, hardware=H200).figures
    assert figures["peak_memory"].value > 0


def test_more_asked_is_more_planned() -> None:
    def peak(*overrides: str) -> float:
        return (
            plan(recipe("train.micro_batch=2", *overrides), LLAMA_8B, statistics=None, hardware=H200)
            .figures["peak_memory"]
            .value
        )

    assert peak("data.max_tokens=4096") > peak("data.max_tokens=1024")
    assert peak("train.micro_batch=4") > peak()
    assert peak("adapter.rank=64") > peak()
    assert peak("train.gradient_checkpointing=on") < peak("train.gradient_checkpointing=off")


def test_what_does_not_fit_is_refused_with_what_to_change() -> None:
    with pytest.raises(ModelError, match=r"PLN-002(.|\n)*adapter: lora"):
        plan(recipe("adapter=full"), LLAMA_8B, statistics=None, hardware=LAPTOP)
    with pytest.raises(ModelError, match="PLN-001"):
        plan(recipe(), {"model_type": "mystery"}, statistics=None, hardware=LAPTOP)


def test_the_plan_fits_the_memory_it_was_given() -> None:
    made = plan(recipe("train.batch_size=64"), LLAMA_8B, statistics=None, hardware=H200)
    assert made.figures["peak_memory"].value <= 141 << 30
    assert made.choices["precision"] == "bf16"
    assert "peak memory" in made.to_text()
    json.dumps(made.to_json(), allow_nan=False)


def test_this_machine_is_seen() -> None:
    found = detect()
    assert found.cores >= 1
    assert found.ram_bytes >= found.ram_available_bytes > 0
