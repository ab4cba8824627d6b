"""QLoRA where it is meant to run: bf16 on a CUDA device, paged state, the memory that it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tunesmith.recipe import Lora
from tunesmith.recipe.tree import Int8, Nf4, Quantisation, Train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS: dict[str, Quantisation] = {"nf4": Nf4(), "int8": Int8()}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 200 M parameters, so that weights outweigh everything else."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def device() -> torch.device:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda", torch.cuda.current_device())


def adapted(model_dir: Path, kind: str, device: torch.device, dtype: str = "bf16") -> nn.Module:
    from tunesmith.modeling.adapters import attach_lora
    from tunesmith.modeling.load import load_model

    model = attach_lora(load_model(model_dir, dtype=dtype, device=device, quantisation=KINDS[kind]), Lora(rank=64), 17)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=draw))
    return model.train()


def loss_of(model: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
    ids_BT = torch.randint(0, 1000, (4, 128), generator=torch.Generator().manual_seed(2))[rows].cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16):
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_the_bits_they_promise(model_dir: Path, device: torch.device, kind: str) -> None:
    from tunesmith.modeling import quantise
    from tunesmith.modeling.load import load_model

    before = torch.cuda.memory_allocated()
    model = load_model(model_dir, dtype="bf16", device=device, quantisation=KINDS[kind])
    found = quantise.facts(model)
    assert found["bits_per_weight"] < {"nf4": 4.2, "int8": 8.1}[kind]
    taken = torch.cuda.memory_allocated() - before
    assert taken == pytest.approx(found["bytes"] + found["unquantised_bytes"], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_gradients_are_near_those_of_fp32(model_dir: Path, device: torch.device, kind: str) -> None:
    low, high = (adapted(model_dir, kind, device, dtype) for dtype in ("bf16", "fp32"))
    for model in (low, high):
        loss_of(model).backward()
    assert torch.cosine_similarity(gradients(low), gradients(high), dim=0) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_how_they_are_grouped(model_dir: Path, device: torch.device, kind: str) -> None:
    """fp32, where nothing but the order of sums may differ."""
    model = adapted(model_dir, kind, device, "fp32")
    loss_of(model).backward()
    whole = gradients(model)
    model.zero_grad(set_to_none=True)
    for row in range(4):
        (loss_of(model, slice(row, row + 1)) / 4).backward()
    assert torch.cosine_similarity(gradients(model), whole, dim=0) > 0.9999


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_eight_bit_state_is_restored_and_paged_state_stays_paged(
    model_dir: Path, device: torch.device, kind: str
) -> None:
    from tunesmith.stages.train.engines import LocalEngine
    from tunesmith.stages.train.optimizer import make_optimizer

    def engine() -> LocalEngine:
        made = LocalEngine(1.0)
        train = Train(optimizer={"type": kind}, learning_rate=1e-3)
        made.wrap(adapted(model_dir, "nf4", device), lambda parameters: make_optimizer(parameters, train))
        return made

    def step(made: LocalEngine) -> None:
        made.backward(loss := loss_of(made.model))
        assert made.step(loss.detach()).finite

    first = engine()
    step(first)
    saved, weights = first.gather_state(), first.whole_parameters()
    second = engine()
    second.load_state(weights, saved)
    again = second.gather_state()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in saved.items())
    large = [p for _, p in second.parameters if p.numel() >= 100_000]  # below, bitsandbytes does not page
    if kind == "paged_adamw_8bit":
        assert large
        assert all(getattr(second.optimizer.state[p]["state1"], "is_paged", False) for p in large)
    step(second)


def test_scales_follow_weights_that_were_loaded_on_the_cpu(model_dir: Path, device: torch.device) -> None:
    """As FSDP does it: quantised on the CPU, moved to the GPU in shards."""
    from tunesmith.modeling import quantise
    from tunesmith.modeling.load import load_model

    model = load_model(model_dir, dtype="bf16", device=torch.device("cpu"), quantisation=Nf4())
    name, layer = next(iter(quantise.quantised_layers(model)))
    here = load_model(model_dir, dtype="bf16", device=device, quantisation=Nf4()).get_submodule(name)
    layer.weight = nn.Parameter(layer.weight.data.to(device), requires_grad=False)
    x = torch.randn(2, 3, layer.in_features, device=device, dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x), here(x), atol=2e-2, rtol=2e-2)
