"""Perplexity: the same for every batch size and layout, token-weighted, shifted once, row by row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import fill_dataset
from torch import nn

from tunesmith.modeling.load import load_model
from tunesmith.modeling.packing import choose_layout
from tunesmith.runs.dataset import Dataset
from tunesmith.scoring import perplexity
from tunesmith.scoring.perplexity import row_losses, stream_perplexity

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> nn.Module:
    return load_model(tiny_model_dir, device=CPU)


def naive(model: nn.Module, dataset: Dataset, example: int) -> tuple[float, float]:
    """One row by one, one token by one: -log p(token | what comes before it), in float64."""
    ids, spans, weights = dataset.sequence(example)
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].double()
    total = weight_sum = 0.0
    for (start, end), weight in zip(spans.tolist(), weights.tolist(), strict=True):
        for place in range(max(start, 1), end):
            total -= weight * float(logits_TV[place - 1].log_softmax(-1)[ids[place]])
            weight_sum += weight
    return total, weight_sum


def test_rows_are_those_of_a_naive_loop_for_every_batch_size(model: nn.Module, dataset: Dataset) -> None:
    examples = [7, 0, 29, 13, 2, 25, 5]
    expected = np.array([naive(model, dataset, example) for example in examples])
    assert len(set(expected[:, 1])) > 3, "rows of different weight"
    for batch_tokens in (1, 60, 8192):
        nll_N, weight_N = row_losses(model, dataset, examples, batch_tokens=batch_tokens)
        np.testing.assert_allclose(nll_N, expected[:, 0], rtol=2e-6)
        np.testing.assert_allclose(weight_N, expected[:, 1], rtol=1e-12)


def test_the_mean_is_over_tokens_and_not_over_rows(model: nn.Module, dataset: Dataset) -> None:
    examples = dataset.split("train").tolist()
    rows = np.array([naive(model, dataset, example) for example in examples])
    whole = stream_perplexity(model, dataset, examples)
    assert whole.value == pytest.approx(math.exp(rows[:, 0].sum() / rows[:, 1].sum()), rel=1e-6)
    of_rows = math.exp(float(np.mean(rows[:, 0] / rows[:, 1])))
    assert abs(whole.value - of_rows) > 1e-3, "the two means differ here, so that the test can tell them apart"


def test_packed_rows_give_the_same_losses(tiny_model_dir: Path, dataset: Dataset) -> None:
    model, examples = load_model(tiny_model_dir, device=CPU), list(range(dataset.num_examples))
    plain = row_losses(model, dataset, examples)
    assert choose_layout(model, int(dataset.lengths().max())) == "packed"
    packed = row_losses(model, dataset, examples, batch_tokens=100, layout="packed")
    np.testing.assert_allclose(packed[0], plain[0], rtol=2e-6)
    np.testing.assert_allclose(packed[1], plain[1])


def test_a_group_that_does_not_fit_is_cut(model: nn.Module, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = row_losses(model, dataset, [4, 9, 1, 12, 3])
    inner = perplexity.learned_nll

    def small_device(model: nn.Module, batch: object) -> torch.Tensor:
        if len(batch.examples_E) > 2:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(perplexity, "learned_nll", small_device)
    found = row_losses(model, dataset, [4, 9, 1, 12, 3])
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)


def test_a_stop_leaves_the_model_as_it_was(model: nn.Module, dataset: Dataset) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        stream_perplexity(model, dataset, [0, 1], on_batch=stop)
    assert model.training
    model.eval()
    assert math.isnan(stream_perplexity(model, dataset, []).value)
