"""QLoRA: frozen weights in 4 or 8 bits with an adapter beside them. Same mathematics for every grouping and number of
processes, the same bits after a kill, and merged into the unquantised base."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import GlooPair
from gradients import CPU, SEED, make_loop, step_gradients, updated_weights
from small_training import LORA_DROPOUT, Small, fill_dataset, small_training
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling import quantise
from tunesmith.modeling.adapters import attach_lora, load_adapter, merge_adapter, save_adapter
from tunesmith.modeling.forward import _has_plain_head, collate, learned_logits
from tunesmith.modeling.load import load_model
from tunesmith.recipe import Lora
from tunesmith.recipe.tree import Int8, Nf4, Quantisation
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run

KINDS: dict[str, Quantisation] = {"nf4": Nf4(), "int8": Int8()}
both = pytest.mark.parametrize("kind", KINDS)
# Rank 64 makes every adapter matrix large enough for 8-bit averages (4,096 numbers).
WIDE = "adapter={type: lora, rank: 64, targets: [q_proj, down_proj]}"
REPLICAS = {"engine": "ddp"} if "engine" in signature(make_loop).parameters else {"processes": 2}
needs_fsdp = pytest.mark.skipif(
    find_spec("tunesmith.stages.train.engines.fsdp") is None, reason="the FSDP engine is not there yet"
)
SETTINGS = ["train.save_every=2", "train.evaluate_every=3", "train.max_steps=7"]


class Killed(BaseException):
    """Passes every handler, as SIGKILL would."""


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return folder


def load(model_dir: Path, kind: str, dtype: str = "fp32") -> nn.Module:
    return load_model(model_dir, dtype=dtype, device=CPU, quantisation=KINDS[kind])


def settings(model_dir: Path, dataset_dir: Path, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_dir": str(model_dir), "dataset_dir": str(dataset_dir), "adapter": "lora", "quantisation": kind, **more,
    }  # fmt: skip


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, f"{name} is zero: nothing was compared"
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------- what lies in memory


def test_nf4_weights_take_four_bits_and_double_quantisation_nests(tiny_model_dir: Path) -> None:
    import bitsandbytes as bnb

    found = {}
    for double in (True, False):
        model = load_model(tiny_model_dir, device=CPU, quantisation=Nf4(double_quantisation=double))
        layers = dict(quantise.quantised_layers(model))
        assert len(layers) == 2 * 7, "seven projections in each of two layers"
        for layer in layers.values():
            assert layer.weight.dtype == torch.uint8
            assert layer.weight.numel() * 2 == layer.in_features * layer.out_features, "two weights a byte"
            state = layer.weight.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, double)
            assert state.absmax.dtype == (torch.uint8 if double else torch.float32)
            assert layer.compute_dtype == torch.float32
        found[double] = quantise.facts(model)
        assert not isinstance(model.get_output_embeddings(), bnb.nn.Linear4bit)
        floats = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
        assert floats == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}
    # 4 + 8/64 + 32/(64 * 256) on large tensors; here each has a block of scales to itself.
    assert 4.127 <= found[True]["bits_per_weight"] < 4.14
    assert found[False]["bits_per_weight"] == 4.5


def test_int8_weights_take_a_byte_and_a_scale_for_each_row(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir, "int8")
    plain = dict(load_model(tiny_model_dir, device=CPU).named_parameters())
    for name, layer in quantise.quantised_layers(model):
        assert layer.weight.dtype == torch.int8
        weight = plain[f"{name}.weight"]
        unpacked = layer.weight.float() * layer.scales[:, None]
        step = weight.abs().amax(1, keepdim=True) / 127
        # To the nearest of 255 steps; the library rounds to fp16 before, which costs up to a sixteenth of a step.
        assert ((unpacked - weight).abs() <= step * (0.5 + 1 / 16)).all()
    assert 8 < quantise.facts(model)["bits_per_weight"] < 8.6


@both
def test_quantised_weights_are_near_the_originals_and_not_the_same(
    tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    batch = collate(Dataset(dataset_dir), [0, 1, 2])
    model = load(tiny_model_dir, kind)
    plain = learned_logits(load_model(tiny_model_dir, device=CPU), batch)
    packed = learned_logits(model, batch)
    assert _has_plain_head(model), "the output layer is not quantised, so that logits come from it directly"
    difference = (packed - plain).abs().max().item()
    assert 1e-5 < difference < {"nf4": 0.1, "int8": 0.01}[kind]


@both
def test_loading_twice_gives_the_same_bits(tiny_model_dir: Path, kind: str) -> None:
    first, second = (load(tiny_model_dir, kind).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# --------------------------------------------------------------------------------------------------------- gradients


@both
def test_only_adapters_train_and_an_evaluation_in_between_changes_nothing(
    tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    loop = make_loop(**settings(tiny_model_dir, dataset_dir, kind))
    names = [name for name, parameter in loop.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    frozen = {name: p.detach().clone() for name, p in loop.model.named_parameters() if not p.requires_grad}
    examples = loop.order.step(1)

    def gradients() -> dict[str, torch.Tensor]:
        loop.model.train().zero_grad(set_to_none=True)
        loop.accumulate(1, [examples], 1.0)
        return {name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None}

    before = gradients()
    assert sorted(before) == sorted(names), "each adapter gets a gradient, nothing else does"
    loop.model.eval()
    with torch.no_grad():
        learned_logits(loop.model, collate(loop.dataset, examples))
    after = gradients()
    assert sorted(after) == sorted(names)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert loop.step(1).finite
    now = dict(loop.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


@both
def test_the_same_logits_in_training_and_in_evaluation(tiny_model_dir: Path, dataset_dir: Path, kind: str) -> None:
    model, batch = load(tiny_model_dir, kind), collate(Dataset(dataset_dir), [0, 1, 2])
    evaluated = learned_logits(model.eval(), batch)
    assert torch.equal(learned_logits(model.train(), batch), evaluated)


@both
def test_micro_batches_packing_and_recomputation_change_no_gradient(
    tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    whole = step_gradients(**settings(tiny_model_dir, dataset_dir, kind, dropout=0.1, micro_batch=7))
    for more in ({"micro_batch": 1}, {"micro_batch": 3, "recompute": True}, {"micro_batch": 3, "packed": True}):
        assert_close(step_gradients(**settings(tiny_model_dir, dataset_dir, kind, dropout=0.1, **more)), whole)


@both
def test_gradients_are_those_of_unpacked_weights(tiny_model_dir: Path, dataset_dir: Path, kind: str) -> None:
    """The same adapters beside plain linear layers that hold what the quantised weights stand for."""
    import bitsandbytes as bnb

    loop = make_loop(**settings(tiny_model_dir, dataset_dir, kind))
    examples = loop.order.step(1)
    loop.accumulate(1, [examples], 1.0)
    found = {name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None}
    loop.model.zero_grad(set_to_none=True)
    for name, layer in list(quantise.quantised_layers(loop.model)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        if kind == "nf4":
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        else:
            weight = layer.weight.float() * layer.scales[:, None]
        plain.weight = nn.Parameter(weight, requires_grad=False)
        loop.model.set_submodule(name, plain)
    assert not list(quantise.quantised_layers(loop.model))
    loop.accumulate(1, [examples], 1.0)
    assert_close(found, {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None})


@both
def test_two_processes_have_the_gradients_of_one_and_update_as_one(
    gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    asked = settings(tiny_model_dir, dataset_dir, kind)
    one = step_gradients(**asked)
    for two in gloo_pair.call("gradients:step_gradients", **asked, **REPLICAS):
        assert_close(two, one)
    first, second = gloo_pair.call("gradients:updated_weights", **asked, **REPLICAS)
    assert_close(first, updated_weights(**asked), tolerance=1e-5)
    assert all(torch.equal(first[name], second[name]) for name in first), "adapters stay equal bit for bit"


@needs_fsdp
@both
def test_shards_of_a_quantised_base_train_as_one_process_does(
    gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    from gradients import trajectory

    asked = settings(tiny_model_dir, dataset_dir, kind)
    one = trajectory(3, **asked)
    first, _ = gloo_pair.call("gradients:trajectory", steps=3, **asked, engine="fsdp")
    for what, tolerance in (("gradients", 2e-6), ("weights", 1e-5)):
        assert_close(first[what], one[what], tolerance)
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-5)
    for shares in gloo_pair.call("gradients:quantised_shares", **asked, engine="fsdp"):
        assert set(shares) == {0.5}, "each process holds half of every quantised weight"


@needs_fsdp
@both
def test_quantised_weights_and_scales_are_the_same_bits_in_shards(
    gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    """Cut, gathered for a step and put together again: nothing is quantised once more."""
    from gradients import quantised_bits

    asked = settings(tiny_model_dir, dataset_dir, kind)
    one = quantised_bits(**asked)
    assert len(one) == 14 * {"nf4": 6, "int8": 2}[kind]
    for engine in ("ddp", "fsdp"):
        for two in gloo_pair.call("gradients:quantised_bits", **asked, engine=engine):
            assert two.keys() == one.keys()
            assert [name for name, value in one.items() if not torch.equal(two[name].flatten(), value.flatten())] == []


@needs_fsdp
@both
def test_a_checkpoint_of_shards_goes_on_in_one_process(
    gloo_pair: GlooPair, tiny_model_dir: Path, dataset_dir: Path, kind: str
) -> None:
    from gradients import some_steps

    asked = settings(tiny_model_dir, dataset_dir, kind)
    saved, nothing = gloo_pair.call("gradients:some_steps", first=1, last=2, **asked, engine="fsdp")
    assert nothing == ({}, {})
    weights, _ = some_steps(3, 4, saved, **asked)
    straight, _ = some_steps(1, 4, **asked)
    assert_close(weights, straight, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_multiplies_in_bf16_and_adapters_stay_fp32(tiny_model_dir: Path, dataset_dir: Path, kind: str) -> None:
    model = attach_lora(load(tiny_model_dir, kind, "bf16"), Lora(rank=4), SEED)
    formats = {name: p.dtype for name, p in model.named_parameters()}
    assert {value for name, value in formats.items() if "lora_" in name} == {torch.float32}
    assert {value for name, value in formats.items() if "norm" in name or "embed" in name} == {torch.bfloat16}
    assert {layer.compute_dtype for _, layer in quantise.quantised_layers(model)} == {torch.bfloat16}
    batch = collate(Dataset(dataset_dir), [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        learned_logits(model.train(), batch).square().mean().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


# ------------------------------------------------------------------------------------------------------ whole trainings


def straight_and_killed(tmp_path: Path, model_dir: Path, overrides: list[str]) -> tuple[Small, bytes, bytes]:
    """A training that ran through, its result's bytes, and those of one that was killed after a validation."""
    straight = small_training(tmp_path / "straight", model_dir, overrides)
    wanted = adapter_bytes(straight)
    training = small_training(tmp_path / "killed", model_dir, overrides)
    training.run.listeners.append(lambda event: kill(event.name == "train/grad_norm" and event.step == 5))
    with pytest.raises(Killed):
        training.train()
    again = training.again()
    found = adapter_bytes(again)
    assert again.values("train/resumed") == {None: 4}
    assert again.values("train/loss") == straight.values("train/loss")
    return straight, wanted, found


def kill(now: bool) -> None:
    if now:
        raise Killed


def adapter_bytes(training: Small) -> bytes:
    return (training.train().path / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("quantisation", "more"),
    [("nf4", [LORA_DROPOUT]), ("int8", [LORA_DROPOUT]), ("nf4", [WIDE, "train.optimizer=adamw_8bit"])],
    ids=["nf4", "int8", "nf4 with adamw_8bit"],
)
def test_a_killed_training_ends_in_the_same_bits_and_the_loss_falls(
    tiny_model_dir: Path, tmp_path: Path, quantisation: str, more: list[str]
) -> None:
    asked = [*SETTINGS, *more, f"model.quantisation={quantisation}", "train.learning_rate=1e-2"]
    straight, wanted, found = straight_and_killed(tmp_path, tiny_model_dir, asked)
    assert found == wanted
    losses = [value for _, value in sorted(straight.values("train/loss").items())]
    assert losses[-1] < losses[0] - 0.05
    (told,) = straight.values("train/quantised").values()
    assert told["layers"] == 14


def test_checkpoints_hold_adapters_and_their_averages_only(tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    training = small_training(
        tmp_path, tiny_model_dir, [*SETTINGS, WIDE, "model.quantisation=nf4", "train.optimizer=adamw_8bit"]
    )
    artifact = training.train()
    (newest, *_) = sorted((tmp_path / "artifacts" / "checkpoint" / "abc").glob("step-*"), reverse=True)
    weights, state = load_file(newest / "model.safetensors"), load_file(newest / "optimizer.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)
    assert artifact.notes["quantisation"] == "nf4"
    for name, weight in weights.items():
        assert state[f"state1.{name}"].dtype == state[f"state2.{name}"].dtype == torch.uint8
        assert state[f"state1.{name}"].shape == weight.shape
        assert state[f"absmax1.{name}"].shape == (weight.numel() // 256,)
        assert state[f"qmap1.{name}"].shape == (256,)
        assert state[f"step.{name}"].item() == 7


# -------------------------------------------------------------------------------------------------------------- merging


@both
def test_merging_goes_into_the_unquantised_base_and_equals_it_with_the_adapter(
    tiny_model_dir: Path, dataset_dir: Path, tmp_path: Path, kind: str
) -> None:
    model = attach_lora(load(tiny_model_dir, kind), Lora(rank=4), SEED)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    save_adapter(model, tmp_path)
    with pytest.raises(ModelError, match=r"MDL-123 model\.quantisation: an adapter is never merged into quantised"):
        merge_adapter(load_adapter(load(tiny_model_dir, kind), tmp_path))

    batch = collate(Dataset(dataset_dir), [0, 1, 2])
    beside = learned_logits(load_adapter(load_model(tiny_model_dir, device=CPU), tmp_path), batch)
    merged = merge_adapter(load_adapter(load_model(tiny_model_dir, device=CPU), tmp_path))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(learned_logits(merged, batch), beside, atol=1e-5, rtol=1e-5)
    on_quantised = learned_logits(load_adapter(load(tiny_model_dir, kind), tmp_path), batch)
    assert (on_quantised - beside).abs().max() > 1e-4, "which is another model than the one that training saw"


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_base_whose_files_are_quantised_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    load(folder, "nf4").save_pretrained(folder)
    training = small_training(tmp_path / "work", folder, [WIDE])
    with pytest.raises(ModelError, match=r"MDL-122 model\.base: .* are quantised already \(bitsandbytes\)"):
        training.train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_paged_optimizer_is_refused_without_cuda(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, ["train.optimizer=paged_adamw_8bit"])
    with pytest.raises(ModelError, match=r"(?s)MDL-121 train\.optimizer: .*adamw_8bit"):
        training.train()
    assert not Run.open(training.run.path).outputs("train")
