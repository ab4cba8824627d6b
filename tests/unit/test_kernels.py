"""Liger's kernels through the library's own function, with a stand-in library of the same names and signatures.

The stand-in follows liger_kernel 0.8 (transformers/monkey_patch.py): it binds new forward functions to the instance's modules
and replaces classes and functions in transformers' module. Its arithmetic is transformers' own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_training import small_training
from transformers.models.llama import modeling_llama

from tunesmith.errors import ModelError, RecipeError
from tunesmith.modeling.kernels import apply_liger
from tunesmith.modeling.load import load_model
from tunesmith.planner import switches
from tunesmith.recipe import parse_recipe
from tunesmith.stages.train import checks


class Liger:
    """What was asked of it and how often its kernels ran."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.ran = {"norm": 0, "rope": 0}
        self.rope, self.norm = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm

    def to_llama(
        self, rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None
    ) -> None:
        self.told.append({"cross_entropy": cross_entropy, "fused_linear_cross_entropy": fused_linear_cross_entropy})
        liger = self

        class LigerRMSNorm(self.norm):
            pass

        def rope_(*arguments: Any, **options: Any) -> Any:
            liger.ran["rope"] += 1
            return liger.rope(*arguments, **options)

        def norm_forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
            liger.ran["norm"] += 1
            return liger.norm.forward(module, hidden)

        modeling_llama.apply_rotary_pos_emb = rope_
        modeling_llama.LlamaRMSNorm = LigerRMSNorm
        for module in model.modules():
            if isinstance(module, self.norm):
                module.__dict__["forward"] = norm_forward.__get__(module, type(module))

    def to_instance(self, model: Any, **settings: Any) -> None:
        self.to_llama(model=model, **settings)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Liger:
    made = Liger()
    package, transformers, patching = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    transformers._apply_liger_kernel_to_instance = made.to_instance  # type: ignore[attr-defined]
    patching.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": made.to_llama}  # type: ignore[attr-defined]
    for module in (package, transformers, patching):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_its_kernels_run_and_transformers_module_is_as_before(liger: Liger, tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, device=torch.device("cpu"))
    ids = torch.arange(5, 12)[None]
    expected = model(ids).logits
    restore = apply_liger(model)
    assert liger.told == [{"cross_entropy": False, "fused_linear_cross_entropy": False}], "the loss is made by us"
    assert modeling_llama.LlamaRMSNorm is liger.norm, "a model that is loaded meanwhile is transformers' own"
    assert torch.equal(model(ids).logits, expected)
    assert liger.ran == {"norm": 5, "rope": 2}
    restore()
    assert modeling_llama.apply_rotary_pos_emb is liger.rope


def test_a_model_type_without_kernels_is_named(liger: Liger) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    with pytest.raises(ModelError, match=r"MDL-109 train\.kernels: Liger has no kernels for models of type gpt2"):
        apply_liger(model)


def test_training_takes_them_where_they_can_be_used(
    liger: Liger, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_training(tmp_path / "plain", tiny_model_dir, ["train.max_steps=2"])
    assert plain.train().notes["kernels"] == "torch"
    for place in (switches, checks):
        monkeypatch.setattr(place, "liger_trouble", lambda on_cpu: "")
    for asked in ("auto", "liger", "off"):
        before = dict(liger.ran)
        small = small_training(tmp_path / asked, tiny_model_dir, ["train.max_steps=2", f"train.kernels={asked}"])
        assert small.train().notes["kernels"] == ("torch" if asked == "off" else "liger")
        assert (liger.ran != before) is (asked != "off")
        assert small.values("train/loss") == plain.values("train/loss")
        assert modeling_llama.apply_rotary_pos_emb is liger.rope, "put back when training ended"


def test_asked_for_by_name_they_are_refused_where_they_cannot_be_used() -> None:
    asked = parse_recipe("{data: {sources: rows.jsonl}}", ["train.kernels=liger"])
    with pytest.raises(RecipeError, match=r"TRN-062 train\.kernels: .*no GPU(?s:.*)try: --set train\.kernels=auto"):
        checks.check(asked)
    both = parse_recipe("{data: {sources: rows.jsonl}}", ["train.kernels=liger", "train.compile=regional"])
    with pytest.raises(RecipeError, match=r"TRN-061 .*train\.kernels is liger"):
        checks.check(both)


def test_a_training_that_began_with_them_does_not_go_on_without(tiny_model_dir: Path) -> None:
    spec = parse_recipe("{data: {sources: rows.jsonl}}", [])
    with pytest.raises(RecipeError, match=r"TRN-062 .*\(this training began with them\)"):
        checks.check_switches(spec, on_cpu=True, recompute=False, kernels="liger")
