"""Adapters: their start, their files, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.adapters import attach_lora, load_adapter, save_adapter
from tunesmith.modeling.dropout import FunctionalDropout, StepContext
from tunesmith.modeling.load import load_model
from tunesmith.modeling.merge import merge
from tunesmith.recipe import Lora

CPU = torch.device("cpu")
IDS = torch.arange(20)[None]


def with_adapter(model_dir: Path, seed: int = 1, dtype: str = "fp32", **lora: object) -> nn.Module:
    return attach_lora(load_model(model_dir, dtype=dtype, device=CPU), Lora(**lora), seed, StepContext(seed), "base")


def trained(model_dir: Path, **lora: object) -> nn.Module:
    """An adapter that is not zero, as after training."""
    model, draw = with_adapter(model_dir, **lora), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    return model.eval()


def test_only_the_adapter_trains_and_it_starts_without_effect(tiny_model_dir: Path) -> None:
    model = with_adapter(tiny_model_dir)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 7 * 2, "A and B at seven projections of two layers"
    assert all("lora_" in name for name in names)
    plain = load_model(tiny_model_dir, device=CPU)
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_the_start_follows_from_the_seed_and_disturbs_no_other_stream(tiny_model_dir: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = with_adapter(tiny_model_dir)
    assert torch.equal(torch.rand(1), expected)
    second, other = with_adapter(tiny_model_dir), with_adapter(tiny_model_dir, seed=2)
    starts = [{n: p for n, p in model.named_parameters() if "lora_A" in n} for model in (first, second, other)]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert not any(torch.equal(value, starts[2][name]) for name, value in starts[0].items())


def test_adapters_are_fp32_beside_a_lower_base(tiny_model_dir: Path) -> None:
    model = with_adapter(tiny_model_dir, dtype="bf16")
    formats = {"lora_" in name: parameter.dtype for name, parameter in model.named_parameters()}
    assert formats == {True: torch.float32, False: torch.bfloat16}


def test_rank_alpha_targets_and_dropout_of_the_recipe_are_those_of_the_adapter(tiny_model_dir: Path) -> None:
    model = with_adapter(tiny_model_dir, rank=3, alpha=12.0, dropout=0.2, targets=("q_proj",))
    adapted = [(name, p.shape) for name, p in model.named_parameters() if "lora_A" in name]
    assert [shape for _, shape in adapted] == [(3, 64)] * 2
    assert all("q_proj" in name for name, _ in adapted)
    layers = [module for module in model.modules() if isinstance(module, FunctionalDropout)]
    assert [(layer.p, layer.module_id) for layer in layers] == [(0.2, 0), (0.2, 1)]
    assert {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")} == {4.0}


def test_an_unknown_target_is_answered_with_what_the_model_has(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)MDL-105 adapter\.targets: .*named qproj.*down_proj, gate_proj.*v_proj"):
        with_adapter(tiny_model_dir, targets=("qproj", "v_proj"))


def test_a_saved_adapter_loads_and_behaves_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = trained(tiny_model_dir, dropout=0.1)
    save_adapter(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = load_adapter(load_model(tiny_model_dir, device=CPU), tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"


def test_the_same_adapter_gives_the_same_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_adapter(trained(tiny_model_dir), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets), "a set has another order in each process"


def test_merging_gives_a_plain_model_with_the_same_logits(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = trained(tiny_model_dir)
    save_adapter(model, tmp_path)
    merged = merge(load_model(tiny_model_dir, device=CPU), tmp_path)
    plain = load_model(tiny_model_dir, device=CPU)
    assert type(merged) is type(plain)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    with_it = model(input_ids=IDS).logits
    torch.testing.assert_close(merged(input_ids=IDS).logits, with_it, atol=1e-5, rtol=1e-5)
    assert (with_it - plain(input_ids=IDS).logits).abs().max() > 1e-3, "the adapter does something"


def test_an_adapter_of_another_model_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    save_adapter(trained(tiny_model_dir), tmp_path)
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ModelError, match=r"MDL-107 the adapter in .* does not fit this model"):
        load_adapter(other, tmp_path)


def test_an_adapter_that_is_not_finite_is_not_merged(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = trained(tiny_model_dir)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    save_adapter(model, tmp_path)
    with pytest.raises(ModelError, match=r"MDL-106 the adapter cannot be merged: NaNs"):
        merge(load_model(tiny_model_dir, device=CPU), tmp_path)
