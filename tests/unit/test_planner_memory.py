"""What the planner counts, counted by torch: tensors kept for the way back, parameters, memory given back."""

from __future__ import annotations

import gc
import json
import mmap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import LORA, small_training
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.modeling.adapters import attach_lora
from tunesmith.modeling.forward import Batch, learned_logits
from tunesmith.modeling.load import recompute_activations, still_dropout
from tunesmith.modeling.packing import choose_layout
from tunesmith.planner import learned, plan
from tunesmith.planner.activations import Pass, block, saved
from tunesmith.planner.hardware import Hardware
from tunesmith.planner.shapes import FAMILIES, Shape
from tunesmith.recipe import Lora
from tunesmith.recipe.tree import ALL_PROJECTIONS
from tunesmith.stages.train import memory
from tunesmith.stages.train.memory import PeakMemory, freed_memory_returned

ROWS, TOKENS, LEARNED, VOCABULARY, LAYERS = 2, 48, 20, 50, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2}


def config(kind: str, **settings: Any) -> Any:
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return AutoConfig.for_model(
        kind, **{**SIZES, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, **special, **settings}
    )


def model(asked: Any, adapter: str, precision: str, attention: str, recompute: bool = False) -> nn.Module:
    """As the train stage builds it."""
    dtype = DTYPES[precision] if adapter == "lora" else torch.float32
    made = AutoModelForCausalLM.from_config(asked, attn_implementation=attention, dtype=dtype)
    made.config.use_cache = False
    still_dropout(made)
    if recompute:
        recompute_activations(made)
    made = attach_lora(made, Lora(), 0) if adapter == "lora" else made.requires_grad_(True)
    return made.train()


def batch(layout: str) -> Batch:
    ids_BT = torch.randint(2, VOCABULARY, (ROWS, TOKENS))
    places_K = (torch.arange(ROWS)[:, None] * TOKENS + torch.arange(TOKENS - LEARNED - 1, TOKENS - 1)).flatten()
    targets_K, lengths = ids_BT.flatten()[places_K + 1], None
    if layout == "packed":
        ids_BT, lengths = ids_BT.reshape(1, -1), (TOKENS,) * ROWS
    return Batch(torch.arange(ROWS), ids_BT, places_K, targets_K, torch.ones(ROWS * LEARNED), ROWS * TOKENS, lengths)


def kept_bytes(made: nn.Module, given: Batch, precision: str) -> tuple[int, int]:
    """(floating-point bytes that a forward pass keeps, of them casts of weights)."""
    own = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    shapes = {tuple(p.shape) for p in made.parameters()} | {tuple(p.T.shape) for p in made.parameters() if p.ndim == 2}
    storages: dict[int, int] = {}
    casts: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            kind = casts if precision != "fp32" and tuple(tensor.shape) in shapes else storages
            kind[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[Any] = []
    learned_logits(made, given)  # its proof of the output layer runs once per model
    autocast = nullcontext() if precision == "fp32" else torch.autocast("cpu", DTYPES[precision])
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = learned_logits(made, given)
    del logits
    return sum(storages.values()), sum(casts.values())


def counted(asked: Any, adapter: str, precision: str, attention: str, layout: str, recompute: bool = False) -> Pass:
    return Pass(
        Shape.of(asked.to_dict()), frozenset(ALL_PROJECTIONS) if adapter == "lora" else None, 16, precision,
        "eager" if attention == "eager" else "fused", layout, recompute, ROWS * TOKENS, TOKENS, ROWS * LEARNED,
    )  # fmt: skip


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(
    ("kind", "precision", "attention", "layout"),
    [
        *(
            (kind, "fp32", "sdpa", "rows")
            for kind in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma")
        ),
        ("llama", "fp32", "sdpa", "packed"),
        ("qwen3", "fp32", "sdpa", "packed"),
        ("llama", "fp32", "eager", "rows"),
        ("llama", "bf16", "sdpa", "rows"),
        ("qwen3", "bf16", "sdpa", "packed"),
    ],
)
def test_the_bytes_kept_for_the_way_back_are_those_that_torch_keeps(
    kind: str, precision: str, attention: str, layout: str, adapter: str
) -> None:
    asked = config(kind)
    made = model(asked, adapter, precision, attention)
    if layout == "packed":
        base = made.get_base_model() if adapter == "lora" else made
        assert choose_layout(base, TOKENS) == "packed"
    kept, _ = kept_bytes(made, batch(layout), precision)
    assert saved(counted(asked, adapter, precision, attention, layout)) == pytest.approx(kept, rel=0.005)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_recomputation_takes_effect(adapter: str) -> None:
    """Inert, it would keep every tensor of every block: then this fails, and so would users who count on it."""
    asked = config("llama", num_hidden_layers=6)
    plain, again = (
        kept_bytes(model(asked, adapter, "fp32", "sdpa", on), batch("rows"), "fp32")[0] for on in (False, True)
    )
    assert again < plain / 4
    job = counted(asked, adapter, "fp32", "sdpa", "rows", True)
    assert saved(job) < plain / 4
    assert block(job) * ROWS * TOKENS * 6 == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_parameters_are_those_that_transformers_makes(kind: str, tied: bool, tmp_path: Path) -> None:
    asked = config(kind, tie_word_embeddings=tied)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(asked)
    asked.save_pretrained(tmp_path)
    shape = Shape.of(json.loads((tmp_path / "config.json").read_bytes()))
    assert shape.parameters == made.num_parameters()
    assert shape.is_known


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"head_dim": 32}),
        ("llama", {"num_key_value_heads": 4}),
    ],
)
def test_biases_and_head_sizes_are_counted(kind: str, settings: dict[str, Any]) -> None:
    asked = config(kind, **settings)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(asked)
    assert Shape.of(asked.to_dict()).parameters == made.num_parameters()


def test_adapters_have_the_parameters_that_peft_makes() -> None:
    for kind, lora in (("llama", Lora(rank=4)), ("qwen3", Lora(rank=3, targets=("q_proj", "down_proj", "lm_head")))):
        asked = config(kind)
        made = attach_lora(AutoModelForCausalLM.from_config(asked), lora, 0)
        real = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
        assert Shape.of(asked.to_dict()).adapter_parameters(lora) == real


# ------------------------------------------------------------------------------------------------- the train stage


def _glibc() -> bool:
    return memory._glibc_mallopt() is not None


@pytest.mark.skipif(not _glibc(), reason="only glibc's heap keeps what is freed")
def test_freed_memory_goes_back_to_the_system_where_that_is_wanted() -> None:
    def held_mib() -> float:
        """What stays resident of 64 MiB of tensors that were freed, all but the last made."""
        before = memory._status("VmRSS")
        tensors = [torch.ones(2**18) for _ in range(64)]
        last = tensors[-1]
        del tensors
        gc.collect()
        grown = (memory._status("VmRSS") - before) / 2**20
        del last
        return grown

    with freed_memory_returned(False):
        pass
    with freed_memory_returned(True):
        assert held_mib() < 8
    assert held_mib() > 32, "the heap keeps memory again: what runs after training is as fast as before"


def test_training_with_recomputation_gives_memory_back_and_without_does_not(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def heard() -> Callable[[int, int], int]:
        return lambda name, value: told.append((name, value)) or 1

    monkeypatch.setattr(memory, "_glibc_mallopt", heard)
    for asked in ("off", "on"):
        assert told == []
        settings = (LORA, f"train.gradient_checkpointing={asked}", "train.max_steps=1")
        small_training(tmp_path / asked, tiny_model_dir, settings).train()
    assert told == [(memory.M_MMAP_THRESHOLD, memory.RETURNED_FROM), (memory.M_MMAP_THRESHOLD, memory.KEPT_FROM)]


def test_a_second_measurement_does_not_take_the_peak_from_the_first() -> None:
    first = PeakMemory(torch.device("cpu"))
    with mmap.mmap(-1, 64 * 2**20) as pages:  # fresh ones: the heap may hold enough from before
        pages.write(b"1" * len(pages))
    second = PeakMemory(torch.device("cpu"))
    assert first.peak() > 48 * 2**20
    assert second.peak() < 48 * 2**20


@pytest.mark.parametrize(
    "settings", [(LORA,), ("train.keep_checkpoints=1", "train.save_every=2")], ids=["lora", "full"]
)
def test_a_training_leaves_what_was_planned_on_the_disk_and_tells_its_pace(
    tmp_path: Path, tiny_model_dir: Path, settings: tuple[str, ...]
) -> None:
    off = "export={merged: false, adapter: false}"  # only training runs here
    small = small_training(tmp_path, tiny_model_dir, (*settings, "train.max_steps=4", "train.micro_batch=5", off))
    split = {"rows": 24, "tokens": 500, "learned_tokens": 250, "max": 40}
    statistics = {"splits": {"train": split, "validation": {**split, "rows": 6}}}
    config_json = json.loads((tiny_model_dir / "config.json").read_bytes())
    here = Hardware(1, 8 << 30, 8 << 30)
    made = plan(small.recipe, config_json, statistics=statistics, hardware=here, workspace=tmp_path)
    small.run.write_plan(made.to_json())
    small.train()

    written = [path for kind in ("checkpoint", "adapter", "model") for path in (small.run.store.root / kind).rglob("*")]
    figure = made.figures["disk_left"]
    assert figure.low <= sum(path.stat().st_size for path in written if path.is_file()) <= figure.high
    assert len(small.values("validation/seconds")) == 4
    told = learned.recall(tmp_path, made.pace["machine"])
    seconds = sorted(list(small.values("train/step_seconds").values())[1:])[1]
    assert told.runs == 1
    assert told.factor == pytest.approx(seconds / made.figures["step_seconds"].value, rel=0.01)
