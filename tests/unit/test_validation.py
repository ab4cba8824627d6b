"""What decides at a validation: loss, perplexity, or answers; and what steps tell besides: noise, utilisation, memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import LORA, WORSENING, Small, small_training

from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.tree import ANSWER_METRICS
from tunesmith.scoring.metrics import METRICS
from tunesmith.stages.train import noise
from tunesmith.stages.train.utilisation import Utilisation, measured_peak

SHORT = """
def shortness(expected, answer, item):
    return 1 / (1 + len(answer))
"""


def judged(tmp_path: Path, model: Path, *settings: str, **dataset: object) -> Small:
    """A training whose answers are judged by own code, every second step."""
    code = tmp_path / "own.py"
    code.write_text(SHORT)
    own = [setting.replace("OWN", f"'{code}:shortness'") for setting in settings]
    usual = ["train.evaluate_every=2", "train.validation.max_items=4", "train.validation.max_new_tokens=6"]
    return small_training(tmp_path / "work", model, [*WORSENING, "train.max_steps=8", *usual, *own], **dataset).allow()


def test_the_names_of_answer_metrics_are_those_of_scoring() -> None:
    assert set(ANSWER_METRICS) == set(METRICS)


def test_answers_decide_which_weights_are_the_best(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tunesmith.hub import resolve
    from tunesmith.scoring.generation import generate_greedy
    from tunesmith.scoring.items import load_held_out
    from tunesmith.text.tokenizers import load_tokenizer

    training = judged(tmp_path, tiny_model_dir, "train.best_metric=OWN", "train.validation.metrics=[exact_match]")
    result = training.train()
    values = training.values("validation/own.py:shortness")
    assert list(values) == list(training.values("validation/loss")) == [2, 4, 6, 8]
    assert list(training.values("validation/exact_match")) == [2, 4, 6, 8]
    best = max(values, key=lambda step: (values[step], -step))
    assert len(set(values.values())) > 1, "the test needs answers that change"
    assert (result.notes["best_step"], result.notes["best_value"]) == (best, values[best])
    assert result.notes["best_loss"] == training.values("validation/loss")[best]
    model = AutoModelForCausalLM.from_pretrained(result.path).eval()
    items = [row.item for row in load_held_out(training.dataset, 4, ["validation"]) if row.item]
    answers = generate_greedy(
        model, load_tokenizer(resolve(str(tiny_model_dir)), "auto"), items, max_new_tokens=6, batch_size=1
    )
    assert sum(1 / (1 + len(answer.text)) for answer in answers) / 4 == pytest.approx(values[best])


@pytest.mark.parametrize("metric", ["perplexity", "OWN"])
def test_early_stopping_watches_the_metric_it_names(tiny_model_dir: Path, tmp_path: Path, metric: str) -> None:
    stopping = f"train.early_stopping={{metric: {metric}, patience: 1, min_delta: 0.5}}"
    training = judged(tmp_path, tiny_model_dir, stopping, "train.max_steps=30")
    steps = training.train().notes["steps"]
    name = "perplexity" if metric == "perplexity" else "own.py:shortness"
    values = list(training.values(f"validation/{name}").values())
    sign = -1 if metric == "perplexity" else 1
    gains = [
        sign * (later - max(values[:place], key=lambda v: sign * v)) > 0.5
        for place, later in enumerate(values)
        if place
    ]
    assert gains == [True] * (len(gains) - 1) + [False], "the first validation without a gain is the last"
    assert steps == 2 * len(values) < 30


def test_answers_cost_no_bit_of_the_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    plain = small_training(
        tmp_path / "plain", tiny_model_dir, [*WORSENING, "train.max_steps=8", "train.evaluate_every=2"]
    )
    asked = judged(tmp_path, tiny_model_dir, "train.validation.metrics=[OWN]")
    one, other = ((training.train().path / "model.safetensors").read_bytes() for training in (plain, asked))
    assert one == other


def test_answers_without_items_are_refused_with_what_helps(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)TRN-055 train\.best_metric: token_f1 needs answers.*train\.best_metric: loss"
    ):
        judged(tmp_path, tiny_model_dir, "train.best_metric=token_f1", with_items=False).train()


def test_a_rate_on_a_plateau_falls_with_what_validations_show(tiny_model_dir: Path, tmp_path: Path) -> None:
    schedule = "train.schedule={type: plateau, warmup: 0, patience: 0, factor: 0.5, final: 0.2}"
    training = small_training(
        tmp_path, tiny_model_dir, ["train.learning_rate=0.03", schedule, "train.evaluate_every=1", "train.max_steps=14"]
    )
    training.train()
    losses, rates = training.values("validation/loss"), training.values("train/learning_rate")
    best, factor = float("inf"), 1.0
    for step in range(1, 15):
        assert rates[step] == pytest.approx(0.03 * factor)
        gains = losses[step] < best * (1 - 1e-4)
        best, factor = (losses[step], factor) if gains else (best, max(0.2, factor * 0.5))
    assert factor == 0.2, "it fell to the lowest one"


# ----------------------------------------------------------------------------------------------- gradient noise


def test_the_noise_estimate_is_exact_on_average_over_all_ways_to_cut_a_step() -> None:
    """Four examples with gradients of their own: the mean over the three cuts into pairs is the sample covariance."""
    draw = torch.Generator().manual_seed(0)
    examples = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    mean = examples.mean(0)
    covariance_trace = float((examples - mean).square().sum()) / 3
    traces, signals = [], []
    for pair in itertools.combinations(range(1, 4), 1):
        first = [0, *pair]
        parts = [examples[first], examples[[i for i in range(4) if i not in first]]]
        weighted = sum(float(part.mean(0).square().sum()) * len(part) / 4 for part in parts)
        trace, signal = noise.estimate(weighted, 2, float(mean.norm()), 4.0)
        traces.append(trace)
        signals.append(signal)
    assert sum(traces) / 3 == pytest.approx(covariance_trace)
    assert sum(signals) / 3 == pytest.approx(float(mean.square().sum()) - covariance_trace / 4)
    assert noise.estimate(1.0, 1, 1.0, 4.0) is None


def test_unequal_micro_batches_count_by_their_weight() -> None:
    """Contributions w_i g_i / W of two parts: equal gradients mean no noise at all, whatever their weights."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    measured = noise.GradientNoise([parameter])
    g = torch.tensor([1.0, -2.0, 0.5])
    for share in (0.2, 0.8):
        parameter.grad = g * share * 8  # as a loss scale of 8 leaves it
        measured.take(share, loss_scale=8)
    measured.put_back()
    assert torch.allclose(parameter.grad, g * 8)
    trace, signal = noise.estimate(*measured.found, norm=float(g.norm()), weight=10.0)
    assert trace == pytest.approx(0, abs=1e-5)
    assert signal == pytest.approx(float(g.square().sum()))


def test_gradient_noise_is_told_and_costs_no_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    on = small_training(tmp_path / "on", tiny_model_dir, [LORA, "train.gradient_noise=on"])
    off = small_training(tmp_path / "off", tiny_model_dir, [LORA])
    whole = small_training(tmp_path / "whole", tiny_model_dir, [LORA, "train.gradient_noise=on", "train.micro_batch=5"])
    one, other = ((training.train().path / "adapter_model.safetensors").read_bytes() for training in (on, off))
    assert one == other
    told = on.values("train/gradient_noise_scale")
    assert len(told) >= 4, "a step is told once the signal is above the noise"
    assert all(0 < value < 1e4 for value in told.values())
    assert off.values("train/gradient_noise_scale") == {}
    budget = whole.dataset.lengths()[whole.dataset.split("train")].max() * 5
    whole.train()
    assert whole.values("train/gradient_noise_scale") == {}, f"one micro-batch of {budget} tokens shows no noise"


# -------------------------------------------------------------------------------------------- use of the machine


def test_every_step_tells_memory_and_what_it_makes_of_the_machine(tiny_model_dir: Path, tmp_path: Path) -> None:
    training = small_training(tmp_path, tiny_model_dir, [LORA])
    training.train()
    (peak,) = training.values("train/peak_flops").values()
    seconds, shares = training.values("train/step_seconds"), training.values("train/mfu")
    assert peak > 1e8
    # No upper bound: the peak is measured in milliseconds, and on a busy machine that may be a bad moment.
    assert all(share > 0 for share in shares.values())
    assert list(shares) == list(seconds) == list(range(1, 9))
    now, most = training.values("train/memory"), training.values("train/memory_peak")
    assert all(0 <= now[step] <= most[step] for step in now)
    assert max(most.values()) > 0
    assert list(most.values()) == sorted(most.values())


def test_work_is_counted_by_tokens_learned_positions_and_lengths() -> None:
    """D 8, F 16, 1 layer, 2 heads, V 10: linear weights 4 * 64 + 3 * 128 = 640, head 80."""
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10,
        "num_attention_heads": 2,
    }  # fmt: skip
    lengths, learned = np.array([32, 32, 64]), np.array([8.0, 8.0, 16.0])

    def use(adapter: str) -> Utilisation:
        spec = parse_recipe("data: {sources: r.jsonl}", [f"adapter={adapter}"])
        return Utilisation(spec, config, lengths, learned, peak_flops=1e9)

    full, lora = use("full"), use("{type: lora, rank: 2, targets: [q_proj]}")
    assert full.flops([0, 1]) == 6 * (640 * 64 + 80 * 16) + 6 * 8 * 2 * 32**2
    assert lora.flops([0, 1]) == 4 * (640 * 64 + 80 * 16) + 6 * 2 * 16 * 64 + 6 * 8 * 2 * 32**2
    assert full.flops([2]) - full.flops([0, 1]) == 6 * 8 * (64**2 - 2 * 32**2), "one long row costs more attention"
    assert full.of([0, 1], seconds=2.0) == full.flops([0, 1]) / 2e9
    for odd in ({"model_type": "odd"}, {**config, "num_experts": 8}):
        assert (
            Utilisation(parse_recipe("data: {sources: r.jsonl}"), odd, lengths, learned, peak_flops=1e9).of([0], 1.0)
            is None
        )


def test_the_peak_is_measured_once() -> None:
    cpu = torch.device("cpu")
    assert measured_peak(cpu, torch.float32, 1) == measured_peak(cpu, torch.float32, 1) > 1e8


def test_an_engine_that_holds_a_part_of_the_model_is_refused_by_name() -> None:
    from tunesmith.stages.train.engines import LocalEngine
    from tunesmith.stages.train.guards import require_whole_model

    class PartEngine(LocalEngine):
        pass

    require_whole_model(LocalEngine(None), "x")
    with pytest.raises(RecipeError, match=r"TRN-056 train: answers needs the whole model .* PartEngine holds a part"):
        require_whole_model(PartEngine(None), "answers")
