"""50 steps of two small trainings against numbers in the repository: a change of numerics shows before anybody asks.

To renew the file: delete it, run this test once (it writes the file and fails), look at the difference, and say in the
change's description why the numbers changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_training import LORA_DROPOUT, small_training

GOLDEN = Path(__file__).with_name("trajectory.json")
SETTINGS = ("train.max_steps=50", "train.schedule.warmup=0.1", "train.evaluate_every=25", "train.learning_rate=3e-3")
METHODS = {
    "full": ["train.optimizer={type: adamw, weight_decay: 0.1}"],
    "lora_dropout": [LORA_DROPOUT, "train.schedule.type=linear"],
}
# Other processors and torch builds add in another order. Each figure may differ by this much, and, so that a drift to
# one side does not hide below it, their mean by a tenth of it.
TOLERANCE = {"train/loss": 2e-3, "train/grad_norm": 5e-3, "validation/loss": 2e-3, "train/learning_rate": 1e-9}


def trajectory(workspace: Path, model: Path, method: list[str]) -> dict[str, list[float]]:
    training = small_training(workspace, model, [*SETTINGS, *method])
    training.train()
    return {name: list(training.values(name).values()) for name in TOLERANCE}


@pytest.mark.parametrize("method", METHODS)
def test_fifty_steps_follow_the_golden_trajectory(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    found = trajectory(tmp_path, tiny_model_dir, METHODS[method])
    if method not in golden:
        rounded = {name: [round(value, 9) for value in values] for name, values in found.items()}
        GOLDEN.write_text(json.dumps({**golden, method: rounded}, indent=0) + "\n")
        pytest.fail(f"{GOLDEN.name} had no {method}; it is written now: look at it, then commit it")
    assert found["train/loss"][-1] < found["train/loss"][0] - 0.1, "it learns"
    for name, tolerance in TOLERANCE.items():
        expected, values = np.array(golden[method][name]), np.array(found[name])
        assert len(values) == len(expected) >= 2, name
        residual = values - expected
        assert np.abs(residual).max() <= tolerance, f"{name}: {residual.tolist()}"
        assert abs(residual.mean()) <= tolerance / 10, f"{name} drifts by {residual.mean()}"
