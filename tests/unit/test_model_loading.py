"""Models from files: number formats, attention, what is missing; dropout of the model's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.forward import _has_plain_head, collate, learned_logits
from tunesmith.modeling.load import load_model, pick_device, resolve_attention, resolve_precision, still_dropout
from tunesmith.runs.dataset import Dataset, DatasetWriter

CPU = torch.device("cpu")


@pytest.mark.parametrize(("asked", "expected"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_number_formats_on_a_cpu(asked: str, expected: str) -> None:
    assert resolve_precision(asked, CPU) == expected


def test_fp16_does_not_train_on_a_cpu() -> None:
    with pytest.raises(ModelError, match=r"MDL-101 model\.precision: fp16 does not train on a CPU"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(("asked", "expected"), [("auto", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")])
def test_attention_on_a_cpu(asked: str, expected: str) -> None:
    assert resolve_attention(asked, CPU) == expected


def test_flash_attention_is_refused_where_it_cannot_serve() -> None:
    with pytest.raises(ModelError, match=r"MDL-102 model\.attention: flash_attention_2 cannot serve here \(device cpu"):
        resolve_attention("flash_attention_2", CPU)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_comes_in_the_format_and_with_the_attention_asked_for(tiny_model_dir: Path, dtype: str) -> None:
    model = load_model(tiny_model_dir, dtype=dtype, attention="eager", device=CPU)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {
        {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]
    }
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert pick_device().type in ("cpu", "cuda")


@pytest.fixture
def own_copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_missing_weights_are_named_instead_of_made_up(own_copy: Path) -> None:
    weights = load_file(own_copy / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, own_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"MDL-104 model\.base: .*lacks weights: model\.layers\.0\.mlp\.up_proj"):
        load_model(own_copy, device=CPU)


def test_a_cut_weights_file_is_answered(own_copy: Path) -> None:
    path = own_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"MDL-103 model\.base: .* could not be loaded: SafetensorError"):
        load_model(own_copy, device=CPU)


def test_the_models_own_dropout_is_taken_away_and_its_configuration_kept() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    size = {"vocab_size": 40, "max_position_embeddings": 32}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=40))
    opt = OPTForCausalLM(
        OPTConfig(
            hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16, **size
        )
    )
    for model in (gpt2.train(), opt.train()):
        ids = torch.arange(4, 20)[None]
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits), "it has dropout"
        before = model.config.to_dict()
        still_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert model.config.to_dict() == before


@pytest.fixture
def two_rows(tmp_path: Path) -> Dataset:
    writer = DatasetWriter(tmp_path)
    writer.add(torch.arange(5, 15, dtype=torch.int32).numpy(), [[0, 3, 1.0], [6, 9, 0.5]], 0, "train")
    writer.add(torch.arange(20, 24, dtype=torch.int32).numpy(), [[2, 4, 2.0]], 1, "train")
    writer.close()
    return Dataset(tmp_path)


def test_labels_come_from_spans_shifted_once(two_rows: Dataset) -> None:
    batch = collate(two_rows, [0, 1])
    assert batch.ids_BT.tolist() == [list(range(5, 15)), [20, 21, 22, 23, 0, 0, 0, 0, 0, 0]]
    assert batch.places_K.tolist() == [0, 1, 5, 6, 7, 11, 12]
    assert batch.targets_K.tolist() == [6, 7, 11, 12, 13, 22, 23]
    assert batch.weights_K.tolist() == [1, 1, 0.5, 0.5, 0.5, 2, 2]
    assert batch.num_tokens == 14
    assert batch.weights_K.sum().item() == two_rows.learned_weights().sum()


def test_logits_at_learned_positions_are_those_of_the_whole_model(tiny_model_dir: Path, two_rows: Dataset) -> None:
    model, batch = load_model(tiny_model_dir, device=CPU), collate(two_rows, [0, 1])
    whole = model(input_ids=batch.ids_BT).logits.flatten(0, 1)[batch.places_K]
    assert _has_plain_head(model)
    torch.testing.assert_close(learned_logits(model, batch), whole, atol=1e-6, rtol=1e-6)


def test_a_model_that_changes_its_logits_after_the_head_goes_the_whole_way(two_rows: Dataset) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    model: nn.Module = CohereForCausalLM(
        CohereConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, logit_scale=0.25,
        )
    ).eval()  # fmt: skip
    batch = collate(two_rows, [0, 1])
    assert not _has_plain_head(model)
    whole = model(input_ids=batch.ids_BT).logits.flatten(0, 1)[batch.places_K]
    assert torch.equal(learned_logits(model, batch), whole)


def test_saving_a_model_leaves_standard_output_to_the_command(tiny_model_dir: Path, tmp_path: Path) -> None:
    """DeepSpeed, which accelerate imports when a model is saved, writes to it otherwise: `--json` would not be JSON."""
    import subprocess
    import sys

    pytest.importorskip("deepspeed")
    code = (
        "import sys; from pathlib import Path; from tunesmith.modeling.load import load_model; "
        "load_model(Path(sys.argv[1])).save_pretrained(sys.argv[2]); import deepspeed"
    )
    command = [sys.executable, "-c", code, str(tiny_model_dir), str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
