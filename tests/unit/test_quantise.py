"""Quantised bases: words of the recipe, what is refused and where, what the plan counts, how they are judged and exported."""

from __future__ import annotations

import inspect
import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith import api, hub
from tunesmith.errors import ModelError, RecipeError
from tunesmith.modeling import patches, quantise
from tunesmith.modeling.load import load_model
from tunesmith.planner import plan, requirements
from tunesmith.planner.hardware import Gpu, Hardware
from tunesmith.planner.memory import weight_bytes
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.recipe.tree import Int8, Nf4, NoQuantisation
from tunesmith.report import sections
from tunesmith.runs.run import Run

LAPTOP = Hardware(2, 24 << 30, 20 << 30)
GPU = Hardware(16, 128 << 30, 100 << 30, (Gpu("H100", 80 << 30, 79 << 30, 9.0),))


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("data: {sources: rows.jsonl}", overrides)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# ----------------------------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], NoQuantisation()),
        (["model.quantisation=nf4"], Nf4()),
        (["model.quantisation=int8"], Int8()),
        (["model.quantisation={type: nf4, double_quantisation: false}"], Nf4(double_quantisation=False)),
        (["model.quantisation=nf4", "model.quantisation.double_quantisation=false"], Nf4(double_quantisation=False)),
    ],
)
def test_a_word_or_a_section(asked: list[str], expected: Any) -> None:
    assert recipe(*asked).model.quantisation == expected


def test_a_quantised_base_is_not_trained_itself() -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)RCP-030 model\.quantisation \(--set\): is nf4, and adapter: full .*adapter: lora"
    ):
        recipe("model.quantisation=nf4", "adapter=full")


@pytest.mark.parametrize("key", ["load_in_4bit", "quantization", "model.load_in_8bit"])
def test_other_tools_names_are_answered_with_ours(key: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.quantisation"):
        recipe(f"{key}=true")


# --------------------------------------------------------------------------------------------------------- what it needs


def test_a_missing_or_old_library_is_named_with_the_line_that_installs_it(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if name == "accelerate":
            raise PackageNotFoundError(name)
        return "0.49.2"

    monkeypatch.setattr(requirements, "version", installed)
    asked = recipe("model.quantisation=nf4", "train.optimizer=lion_8bit")
    told = (
        r"(?s)MDL-120 model\.quantisation: model\.quantisation: nf4 and train\.optimizer: lion_8bit: "
        r"bitsandbytes is 0\.49\.2, older than 0\.50, accelerate is not installed.*pip install 'tunesmith\[qlora\]'"
    )
    with pytest.raises(ModelError, match=told):
        plan(asked, config_of(tiny_model_dir), statistics=None, hardware=LAPTOP)
    plan(recipe(), config_of(tiny_model_dir), statistics=None, hardware=LAPTOP)


def test_the_plan_refuses_paged_state_without_a_gpu_and_quantised_files(tiny_model_dir: Path) -> None:
    config = config_of(tiny_model_dir)
    paged = recipe("train.optimizer=paged_adamw_8bit")
    with pytest.raises(ModelError, match="MDL-121"):
        plan(paged, config, statistics=None, hardware=LAPTOP)
    plan(paged, config, statistics=None, hardware=GPU)
    stored = {**config, "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ModelError, match=r"(?s)MDL-122 .*already \(fp8\).*model\.quantisation: nf4"):
        plan(recipe(), stored, statistics=None, hardware=LAPTOP)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"MDL-124 model\.quantisation: Embedding has no linear layer"):
        quantise.finish(nn.Embedding(3, 4), torch.float32)


def test_importing_bitsandbytes_fetches_no_code_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX512-BF16 its import asks the package `kernels` for a compiled kernel of the hub."""
    from bitsandbytes.backends.cpu import ops

    assert "from kernels import get_kernel" in inspect.getsource(ops), "it no longer does: modeling/patches.py can go"
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **kwargs): raise AssertionError('fetched')\n")
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    from kernels import get_kernel\nexcept ImportError:\n    get_kernel = None\nelse:\n    get_kernel()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    patches.import_bitsandbytes()
    assert sys.modules["bitsandbytes"].get_kernel is None
    assert "kernels" not in sys.modules, "whoever else wants that package still gets it"


def test_importing_bitsandbytes_starts_no_compiler_and_what_it_compiles_is_compiled_when_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes.backends.default import ops

    assert "compiled_fn = torch.compile(fn" in inspect.getsource(ops), "it no longer does: look at modeling/patches.py"
    (tmp_path / "bitsandbytes.py").write_text(
        "import torch\n@torch.compile\ndef one(x): return x\ntwice = torch.compile(lambda x: 2 * x, dynamic=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    compiled: list[dict[str, Any]] = []

    def compile(function: Any, **settings: Any) -> Any:
        compiled.append(settings)
        return lambda x: function(x) + 0.5

    monkeypatch.setattr(torch, "compile", compile)
    patches.import_bitsandbytes()
    made = sys.modules["bitsandbytes"]
    assert torch.compile is compile, "everybody else compiles as before"
    assert compiled == []
    assert [made.twice(1), made.twice(2), made.one(3)] == [2.5, 4.5, 3.5]
    assert compiled == [{"dynamic": True}, {}], "once each"


def test_doctor_says_whether_quantisation_works_here() -> None:
    found = api.doctor()["quantisation"]
    assert found["trouble"] == ""
    assert {"nf4", "int8", "adamw_8bit"} <= set(found["can"])
    assert ("paged_adamw_8bit" in found["can"]) == torch.cuda.is_available()


def test_doctor_tells_what_a_broken_library_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(quantise.bnb.functional, "quantize_4bit", broken)
    assert api.doctor()["quantisation"]["trouble"] == "RuntimeError: no kernel image is available"


# ------------------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("asked", "kind"), [("nf4", Nf4()), ("{type: nf4, double_quantisation: false}", Nf4(double_quantisation=False)), ("int8", Int8())]
)  # fmt: skip
def test_the_plan_counts_the_bytes_that_a_quantised_base_takes(tiny_model_dir: Path, asked: str, kind: Any) -> None:
    shape = Shape.of(config_of(tiny_model_dir))
    found = quantise.facts(load_model(tiny_model_dir, device=torch.device("cpu"), quantisation=kind))
    unpacked = shape.hidden * shape.feed_forward * 4
    counted = weight_bytes(recipe(f"model.quantisation={asked}"), shape, 4) - unpacked
    assert found["weights"] == shape.linear_parameters
    assert counted == pytest.approx(found["bytes"] + found["unquantised_bytes"], rel=0.01)
    assert counted < weight_bytes(recipe(), shape, 4)


def test_the_ready_recipe_is_planned_with_less_memory_than_without_quantisation() -> None:
    text = (Path(__file__).parents[2] / "recipes" / "qlora.yaml").read_text()
    asked, plain = parse_recipe(text), parse_recipe(text, ["model.quantisation=none", "train.optimizer=adamw"])
    config = hub.resolve(asked.model.base, None).config
    quantised, usual = (plan(spec, config, statistics=None, hardware=GPU) for spec in (asked, plain))
    for name in ("weights", "optimizer"):
        assert quantised.figures[name].value < usual.figures[name].value
    assert quantised.choices["base_weights"] == "nf4, frozen"


# ----------------------------------------------------------------------------------------- judged and exported as it ships


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qlora")


def carried(workspace: Path, rows: Path, model: Path, *overrides: str, until: str = "export") -> Run:
    text = f"name: qlora\ndata: {{sources: {rows}, split: {{validation: 0.1, test: 0.2}}}}\n"
    settings = [
        f"model.base={model}", "model.precision=fp32", "model.quantisation=nf4", "adapter.rank=8", "train.max_steps=6",
        "train.learning_rate=3e-2", "train.threads=1", "evaluate.max_new_tokens=8", "evaluate.metrics=[token_f1]",
        "gate.require=none", "track=[]",
    ]  # fmt: skip
    return api.run(parse_recipe(text, [*settings, *overrides]), workspace=workspace, until=until).run


def facts_of(run: Run, stage: str, name: str, file: str) -> dict[str, Any]:
    outputs = run.outputs(stage)
    assert outputs
    return json.loads((outputs[name].path / file).read_text())


def test_the_exported_model_is_unquantised_and_says_how_far_it_is_from_the_trained_one(
    workspace: Path, chat_rows: Path, tiny_model_dir: Path
) -> None:
    from safetensors.torch import load_file

    run = carried(workspace, chat_rows, tiny_model_dir)
    exported = run.outputs("export")["export"].path  # type: ignore[index]
    weights = load_file(exported / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert "quantization_config" not in config_of(exported)
    base = load_file(tiny_model_dir / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    from peft.utils import load_peft_weights

    adapter = load_peft_weights(str(run.outputs("train")["model"].path), device="cpu")  # type: ignore[index]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    update = adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"] * (32 / 8)
    torch.testing.assert_close(weights[name], base[name] + update, atol=1e-6, rtol=1e-5)

    parity = facts_of(run, "export", "parity", "parity.json")
    found = parity["quantised_base"]
    assert parity["verdict"] == "equal"
    assert found["merged_into"] == "the unquantised base, never the nf4 one"
    assert 1e-6 < found["kl_per_token"] < 1, "rounding alone would be far below"
    assert 0 < found["top_token_share"] <= 1
    evaluation = facts_of(run, "evaluate", "evaluation", "evaluation.json")
    assert found["answers"] == sum(part["n"] for part in evaluation["parts"].values()) > 0
    assert evaluation["settings"]["base_weights"] == "fp32"
    assert [e.value for e in run.events() if e.name == "export/merged_into"] == [found["merged_into"]]
    card = (exported / "README.md").read_text()
    assert "merged into the unquantised base" in card
    assert "merged into the unquantised base" in sections.parity({"parity": {"export": parity}})

    from tunesmith.cli.options import quantised_line

    assert "merged into the unquantised base" in quantised_line(found)


def test_an_adapter_that_ships_alone_is_judged_on_the_base_it_was_trained_on(
    workspace: Path, chat_rows: Path, tiny_model_dir: Path
) -> None:
    run = carried(workspace, chat_rows, tiny_model_dir, "export.merged=false")
    assert facts_of(run, "evaluate", "evaluation", "evaluation.json")["settings"]["base_weights"] == "nf4"
    outputs = run.outputs("export")
    assert outputs
    assert set(outputs) == {"adapter"}
    card = (outputs["adapter"].path / "README.md").read_text()
    assert 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)' in card
    trained = [event.value for event in run.events() if event.name == "train/loss"]
    assert not trained, "the training of the other run is taken up"
