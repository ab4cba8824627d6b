"""Packing changes no logit, loss, gradient or dropout mask; a model that it would change keeps its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gradients import BATCH, make_loop, plain, step_gradients
from small_training import LORA_DROPOUT, fill_dataset, small_training
from test_gradients import CASES, assert_close
from torch import nn

from tunesmith.modeling.forward import collate, learned_logits, micro_batches
from tunesmith.modeling.packing import PACKED_SDPA, choose_layout, positions
from tunesmith.runs.dataset import Dataset, DatasetWriter
from tunesmith.scoring.perplexity import stream_perplexity

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return Dataset(folder)


def made(kind: str, **changes: Any) -> nn.Module:
    """A random model of an architecture, sdpa where it has it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    config.use_cache = False
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 8}), ("Mistral", {"sliding_window": None}), ("Gemma", {"head_dim": 8}), ("Phi3", {"pad_token_id": 0})],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_packed_logits_are_those_of_rows(dataset: Dataset, kind: str, changes: dict[str, Any]) -> None:
    model = made(kind, **changes)
    examples = [3, 0, 7, 11, 4]
    rows = learned_logits(model, collate(dataset, examples))
    assert choose_layout(model, int(dataset.lengths().max())) == "packed"
    packed = learned_logits(model, collate(dataset, examples, "packed"))
    torch.testing.assert_close(packed, rows, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "longest", "why"),
    [
        ("Mistral", {"sliding_window": 16}, 40, "a window that is shorter than a document"),
        ("Gemma2", {"head_dim": 8, "attn_implementation": "eager"}, 40, "soft caps need the model's own attention"),
        ("Mamba", {"state_size": 4, "layer_norm_epsilon": 1e-5}, 40, "state runs on from document to document"),
        ("Llama", {"attn_implementation": "eager"}, 40, "eager was asked for"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_model_that_packing_would_change_keeps_its_rows(
    kind: str, changes: dict[str, Any], longest: int, why: str
) -> None:
    model = made(kind, **changes)
    before = model.config._attn_implementation
    assert choose_layout(model, longest) == "rows", why
    assert model.config._attn_implementation == before


def test_a_model_that_drops_the_documents_lengths_keeps_its_rows() -> None:
    """Its documents would see each other, silently: the proof on the model notices."""
    model = made("Llama")
    forward = model.model.forward
    model.model.forward = lambda document_lengths=None, **rest: forward(**rest)
    assert choose_layout(model, 40) == "rows"


@pytest.mark.parametrize(("adapter", "dropout"), CASES)
@pytest.mark.parametrize("recompute", [False, True])
def test_packing_changes_no_gradient(
    tiny_model_dir: Path, dataset: Dataset, adapter: str, dropout: float, recompute: bool
) -> None:
    settings = {"model_dir": tiny_model_dir, "dataset_dir": dataset.folder, "adapter": adapter, "dropout": dropout}
    rows = step_gradients(**settings, micro_batch=BATCH)
    for micro_batch in (1, 3, BATCH):
        found = step_gradients(**settings, micro_batch=micro_batch, recompute=recompute, packed=True)
        assert_close(found, rows)


def test_packing_really_packs(tiny_model_dir: Path, dataset: Dataset) -> None:
    loop = make_loop(tiny_model_dir, dataset.folder, micro_batch=BATCH, packed=True)
    assert plain(loop.model).config._attn_implementation == PACKED_SDPA
    loop.step(1)  # the first step also compares heads on a few tokens
    seen = []
    loop.model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    tokens = loop.step(2).tokens
    assert sum(rows * width for rows, width in seen) == tokens, "no padding goes through the model"
    assert all(rows == 1 for rows, _ in seen)


def test_a_packed_group_costs_its_tokens_and_rows_their_padding() -> None:
    lengths = np.array([10, 2, 2, 2, 9, 1])
    assert micro_batches(range(6), lengths, 12, "rows") == [[0], [4], [1, 2, 3, 5]]
    assert micro_batches(range(6), lengths, 12, "packed") == [[0], [4, 1], [2, 3, 5]]
    assert micro_batches(range(6), lengths, 5, "packed") == [[0], [4], [1, 2], [3, 5]]


def test_positions_begin_anew_with_each_document() -> None:
    assert positions([3, 1, 2]).tolist() == [0, 1, 2, 0, 0, 1]


def test_perplexity_is_the_same_packed(tiny_model_dir: Path, dataset: Dataset) -> None:
    from tunesmith.modeling.load import load_model

    model = load_model(tiny_model_dir, device=torch.device("cpu"))
    examples = dataset.split("validation").tolist()
    rows = stream_perplexity(model, dataset, examples)
    assert choose_layout(model, 40) == "packed"
    for budget in (50, 4096):
        packed = stream_perplexity(model, dataset, examples, batch_tokens=budget, layout="packed")
        assert packed.weight == rows.weight
        assert packed.nll_sum == pytest.approx(rows.nll_sum, rel=1e-6)


def test_training_packs_by_itself_and_can_be_told_not_to(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same losses either way, with recomputation and dropout as well."""
    common = [LORA_DROPOUT, "train.gradient_checkpointing=on", "train.max_steps=4", "train.micro_batch=5"]
    packed = small_training(tmp_path / "packed", tiny_model_dir, common)
    rows = small_training(tmp_path / "rows", tiny_model_dir, [*common, "train.packing=off"])
    assert (packed.train().notes["layout"], rows.train().notes["layout"]) == ("packed", "rows")
    for name in ("train/loss", "validation/loss"):
        assert packed.values(name).keys() == rows.values(name).keys() != set()
        for step, value in rows.values(name).items():
            assert packed.values(name)[step] == pytest.approx(value, rel=2e-5)


def test_a_long_document_alone_goes_through_packed(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    for row, length in enumerate((1, 90, 1)):
        writer.add(np.arange(5, 5 + length, dtype=np.int32), [[0, length, 1.0]], row, "train")
    writer.close()
    model, data = made("Llama"), Dataset(tmp_path)
    rows = learned_logits(model, collate(data, [0, 1, 2]))
    assert choose_layout(model, 90) == "packed"
    torch.testing.assert_close(learned_logits(model, collate(data, [0, 1, 2], "packed")), rows, atol=2e-6, rtol=1e-5)
