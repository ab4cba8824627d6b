"""SIGKILL in the middle of training, then the same command: the same adapter, bit for bit, and no step told twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tunesmith import api
from tunesmith.runs.events import read_events

Call = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """\
name: kill
model: {{base: {model}, precision: fp32}}
adapter: {{type: lora, rank: 4}}
data:
  sources: {rows}
  filters: {{length: {{min_characters: 1}}, quality: null}}
  max_tokens: 256
train:
  max_steps: 40
  epochs: 100
  batch_size: 4
  learning_rate: 1.0e-3
  micro_batch: 2
  evaluate_every: 5
  save_every: 2
  threads: 1
track: [files, tensorboard, trackio]
"""
SECRETS = {"WANDB_API_KEY": "fake0key0" * 5, "MLFLOW_TRACKING_TOKEN": "fake-token-1", "HF_TOKEN": "hf_fakefakefake"}


def adapter_bytes(workspace: Path) -> bytes:
    (adapter,) = (workspace / "artifacts" / "adapter").glob("*/adapter_model.safetensors")
    return adapter.read_bytes()


def wait_for_checkpoint(workspace: Path, process: subprocess.Popen[str], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if list((workspace / "artifacts" / "checkpoint").glob("*/step-*/manifest.json")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


def test_a_killed_run_goes_on_with_the_same_command_and_ends_the_same(
    tunesmith: Call, environment: dict[str, str], tiny_model_dir: Path, chat_rows: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model_dir, rows=chat_rows))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    api.train(recipe, overrides=["track=[]"], workspace=straight)

    command = [sys.executable, "-m", "tunesmith", "train", str(recipe), "--workspace", str(killed)]
    process = subprocess.Popen(
        command,
        env={**environment, **SECRETS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(killed, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list((killed / "artifacts").glob("adapter/*/adapter_model.safetensors")), (
        "it was killed too late to show anything"
    )

    tunesmith("train", recipe, "--workspace", killed)
    assert adapter_bytes(killed) == adapter_bytes(straight)
    (run,) = (killed / "runs").iterdir()
    losses = [event.step for event in read_events(run / "events.jsonl") if event.name == "train/loss"]
    assert sorted(losses) == list(range(1, 41)), "each step is told once, none is missing"
    assert_trackers_were_told_once(run, killed)


def assert_trackers_were_told_once(run: Path, workspace: Path) -> None:
    """The feeds of the killed command and of the one that went on: each step once, in one run, and no secret."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = list(range(1, 41))
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == steps
    with (run / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "train/loss"] == steps
    with closing(sqlite3.connect(workspace / "trackio" / "tunesmith.db")) as store:
        rows = [(step, json.loads(values)) for step, values in store.execute("select step, metrics from metrics")]
    assert sorted(step for step, values in rows if "train/loss" in values) == steps
    files = [path for path in workspace.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in SECRETS.values():
        assert not any(secret.encode() in path.read_bytes() for path in files)
