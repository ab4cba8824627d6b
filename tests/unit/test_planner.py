"""The plan's arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError
from tunesmith.planner import Plan, learned, plan
from tunesmith.planner.hardware import Gpu, Hardware, detect
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe, load_recipe, parse_recipe
from tunesmith.units import format_bytes

LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
RECIPES = Path(__file__).parents[2] / "recipes"
LLAMA_1B = {
    "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
SPLIT = {"rows": 1000, "tokens": 200_000, "learned_tokens": 80_000, "p50": 200, "p90": 260, "p99": 300, "max": 320}
STATISTICS = {
    "splits": {"train": SPLIT, "validation": {**SPLIT, "rows": 50, "tokens": 10_000, "learned_tokens": 4_000}}
}
H200 = Hardware(16, 128 << 30, 100 << 30, (Gpu("H200", 141 << 30, 140 << 30, 9.0),))
HUGE = Hardware(16, 1 << 40, 1 << 40, (Gpu("of tomorrow", 1 << 40, 1 << 40, 9.0),))
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
        figures = plan(recipe("train.micro_batch=1", *asked), LLAMA_8B, statistics=None, hardware=HUGE).figures
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
    figures = plan(load_recipe(path), LLAMA_1B, statistics=None, hardware=H200).figures
    assert figures["peak_memory"].value > 0


def total(*overrides: str, config: dict[str, Any] = LLAMA_1B, hardware: Hardware = LAPTOP) -> float:
    asked = recipe("train.micro_batch=2", "train.gradient_checkpointing=off", *overrides)
    return plan(asked, config, statistics=None, hardware=hardware).figures["peak_memory"].value


@pytest.mark.parametrize("hardware", [H200, HUGE, Hardware(64, 1 << 40, 1 << 40)], ids=["H200", "huge", "cpu"])
def test_more_asked_is_more_planned(hardware: Hardware) -> None:
    least = total(hardware=hardware)
    for more in ("data.max_tokens=4096", "train.micro_batch=4", "adapter.rank=64", "adapter=full"):
        assert total(more, hardware=hardware) > least, more
    for size in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"):
        assert total(config={**LLAMA_1B, size: LLAMA_1B[size] * 2}, hardware=hardware) > least, size
    for less in ("train.gradient_checkpointing=on", "adapter.targets=[q_proj]", "train.micro_batch=1"):
        assert total(less, hardware=hardware) < least, less


def test_eager_attention_grows_with_the_square_of_the_length() -> None:
    def growth(attention: str) -> float:
        lengths = ("data.max_tokens=4096", "data.max_tokens=2048")
        long, short = (total(f"model.attention={attention}", each, hardware=HUGE) for each in lengths)
        return long / short

    assert growth("eager") > 3 > 2.1 > growth("sdpa")


def test_what_does_not_fit_is_refused_with_what_would_fit_and_what_it_takes() -> None:
    def advice(*overrides: str, config: dict[str, Any] = LLAMA_1B) -> str:
        with pytest.raises(ModelError, match="PLN-002") as caught:
            plan(recipe(*overrides), config, statistics=None, hardware=LAPTOP)
        return str(caught.value)

    alone = advice("adapter=full")
    assert re.search(r"needs about [\d.]+ GiB and 16\.00 GiB are there \(highest at: checkpoint; saving:", alone)
    assert re.search(r"try: adapter: lora \(takes [\d.]+ GiB\)$", alone), alone
    together = advice("adapter=full", config=LLAMA_8B)
    assert re.search(r"together: adapter: lora, model\.quantisation: nf4 \(takes [\d.]+ GiB\)$", together), together
    fixed = advice("train.micro_batch=512", "train.batch_size=512", "train.gradient_checkpointing=off")
    assert "train.micro_batch: auto (takes" in fixed
    huge = advice(config={**LLAMA_8B, "num_hidden_layers": 500})
    assert huge.endswith("try: a smaller model.base, or a machine with more memory")
    with pytest.raises(ModelError, match="PLN-001"):
        plan(recipe(), {"model_type": "mystery"}, statistics=None, hardware=LAPTOP)


def test_the_plan_says_why_it_chose_less_than_was_asked() -> None:
    roomy, tight = (Hardware(2, size << 30, size << 30) for size in (1024, 24))
    asked = recipe("train.batch_size=64", "data.max_tokens=2048", "model.precision=bf16")
    assert plan(asked, LLAMA_1B, statistics=None, hardware=roomy).notes == []
    made = plan(asked, LLAMA_1B, statistics=None, hardware=tight)
    assert made.choices["micro_batch"] < 64
    assert re.search(r"^micro_batch 64 would take [\d.]+ \wiB of 19\.20 GiB: \d+ fits$", made.to_text(), re.MULTILINE)
    tiny = Hardware(2, 8 << 30, 7 << 30)
    again = plan(recipe("data.max_tokens=4096", "model.precision=bf16"), LLAMA_1B, statistics=None, hardware=tiny)
    assert again.choices["gradient_checkpointing"] is True
    assert "without recomputation micro_batch 1 would take" in again.to_text()


def test_bands_hold_their_figure_and_are_wider_for_what_was_not_counted() -> None:
    def width(kind: str) -> float:
        config = {**LLAMA_1B, "model_type": kind}
        figures = plan(recipe(), config, statistics=STATISTICS, hardware=LAPTOP).figures
        for name, figure in figures.items():
            assert figure.low <= figure.value <= figure.high, name
        return figures["peak_memory"].high / figures["peak_memory"].low

    assert width("mistral") == width("llama") < width("mystery")


def test_steps_are_those_that_training_makes() -> None:
    import numpy as np

    from tunesmith.stages.train.batches import Order

    for rows, overrides in (
        (1000, ()), (1000, ("train.epochs=2.3",)), (7, ("train.batch_size=16",)), (33, ("train.epochs=0.1",)),
        (100, ("train.batch_size=7", "train.epochs=3")), (100, ("train.max_steps=5",)), (10, ("train.max_steps=500",)),
    ):  # fmt: skip
        asked = recipe(*overrides)
        # 7 rows may be any number of examples: repeated, or split where they are too long.
        statistics = {"splits": {"train": {**SPLIT, "rows": 7, "examples": rows}}}
        planned = plan(asked, LLAMA_1B, statistics=statistics, hardware=LAPTOP).figures["steps"]
        assert planned.value == planned.high == Order.of(np.arange(rows), 1, asked.train).num_steps, (rows, overrides)


def test_times_follow_what_earlier_trainings_told(tmp_path: Path) -> None:
    def made(workspace: Path | None) -> Plan:
        return plan(recipe(), LLAMA_1B, statistics=STATISTICS, hardware=LAPTOP, workspace=workspace)

    new = made(tmp_path)
    assert new.pace == {"machine": "CPU x 2 threads, fp32", "factor": 1.0, "runs": 0}
    assert new.figures == made(None).figures
    for ratio in (9.0, 2.0, 2.0, 3.0, 2.0, 2.0, float("nan"), 0.0):
        learned.remember(tmp_path, new.pace["machine"], ratio)
    told = made(tmp_path)
    assert told.pace == {**new.pace, "factor": 2.0, "runs": 5}
    for name in ("step_seconds", "train_seconds"):
        before, after = new.figures[name], told.figures[name]
        assert after.value == pytest.approx(2 * before.value)
        assert after.high / after.low < before.high / before.low
    assert "times are 2.00 of the planner's own, as 5 trainings on CPU x 2 threads, fp32 told" in told.to_text()
    (tmp_path / learned.FILE).write_text("torn {")
    assert made(tmp_path).figures == new.figures


def test_more_work_takes_longer() -> None:
    def seconds(*overrides: str, config: dict[str, Any] = LLAMA_1B) -> float:
        asked = recipe("train.gradient_checkpointing=off", *overrides)
        return (
            plan(asked, config, statistics=STATISTICS, hardware=Hardware(2, 1 << 40, 1 << 40))
            .figures["step_seconds"]
            .value
        )

    least = seconds()
    for more in ("train.batch_size=32", "adapter=full", "train.gradient_checkpointing=on", "train.threads=1"):
        assert seconds(more) > least, more
    assert seconds(config={**LLAMA_1B, "num_hidden_layers": 32}) > least


def test_the_disk_figure_grows_with_what_is_kept() -> None:
    def left(*overrides: str) -> float:
        return plan(recipe(*overrides), LLAMA_1B, statistics=None, hardware=HUGE).figures["disk_left"].value

    assert left("adapter=full") > left()
    assert left("train.keep_checkpoints=9") > left()
    for less in ("export.merged=false", "export.adapter=false", "train.keep=last", "train.max_steps=1"):
        assert left(less) < left(), less


def test_the_plan_fits_the_memory_it_was_given() -> None:
    made = plan(recipe("train.batch_size=64"), LLAMA_8B, statistics=None, hardware=H200)
    assert made.figures["peak_memory"].value <= 141 << 30
    assert made.choices["precision"] == "bf16"
    assert "peak memory" in made.to_text()
    json.dumps(made.to_json(), allow_nan=False)


def test_the_plan_says_what_memory_there_is_and_whether_it_fits() -> None:
    def line(hardware: Hardware, *overrides: str) -> tuple[str, Plan]:
        made = plan(recipe("model.precision=bf16", *overrides), LLAMA_1B, statistics=None, hardware=hardware)
        return made.to_text().splitlines()[2], made

    small = ("train.micro_batch=1", "data.max_tokens=256")
    told, made = line(LAPTOP, *small)
    peak = made.figures["peak_memory"]
    there = "memory: 24.00 GiB, 20.00 GiB of it free; a process may take 16.00 GiB"
    assert told == f"{there}: {format_bytes(peak.value)} fits"
    assert made.to_json()["fits"] == "yes"
    told, made = line(Hardware(2, 24 << 30, int(peak.value * 1.02 / 0.8)), *small)
    assert told.endswith(
        f": {format_bytes(peak.value)} fits, but not the upper end of its band, {format_bytes(peak.high)}"
    )
    assert made.to_json()["fits"] == "unless high"
    told, _ = line(LAPTOP, "train.processes=2", "train.micro_batch=1", "data.max_tokens=256")
    assert "a process may take 8.00 GiB" in told
    told, _ = line(H200)
    assert told.startswith("H200: 141 GiB; a process may take 130 GiB: ")


def test_this_machine_is_seen() -> None:
    found = detect()
    assert found.cores >= 1
    assert found.ram_bytes >= found.ram_available_bytes > 0
