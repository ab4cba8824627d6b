"""`tunesmith export` under FSDP2 and DeepSpeed by two gloo processes: stopped by SIGTERM, resumed by the same command, exported.

One workspace: rows are prepared once and the base is asked once, whatever the engine. The training itself asks for the
stop, by a callback, so that it comes at the same step on any machine. What no signal is sent to is called in this process,
which has its imports already.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tunesmith.cli import main
from tunesmith.runs.run import Run

pytest.importorskip("deepspeed")
ENGINES = {"fsdp": "fsdp", "zero2": "{type: deepspeed, zero_stage: 2}", "zero3": "{type: deepspeed, zero_stage: 3}"}
STEPS = 6

RECIPE = """\
name: engines
adapter: {type: lora, rank: 4, targets: [q_proj, v_proj, down_proj]}
data:
  sources: rows.jsonl
  split: {validation: 0.1, test: 0.1}
train:
  max_steps: 6
  batch_size: 4
  learning_rate: 1.0e-3
  micro_batch: 2
  evaluate_every: 3
  keep: last
  save_every: 10
  threads: 1
  callbacks: ["stop_once.py:stop_once"]
evaluate: {max_new_tokens: 8, max_items: 4}
gate: {require: none}
track: []
"""
# Signals the command's own process, as a scheduler would, where the file `command.pid` says which one that is.
CALLBACK = """
import os, signal, time
from pathlib import Path

def stop_once(facts):
    told = Path(__file__).with_name("command.pid")
    if facts.moment == "step" and facts.step == 2 and told.exists():
        pid = int(told.read_text())
        told.unlink()
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.7)  # the launcher passes it on within a fifth of a second
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "stop_once.py").write_text(CALLBACK)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(40):
            asked = f"Please repeat the number {number} and then say the word done, thank you."
            file.write(json.dumps({"prompt": asked, "completion": f"{number} done" + " indeed" * (number % 5)}) + "\n")
    return folder


def arguments(place: Path, verb: str, engine: str, processes: int) -> list[str]:
    settings = [f"train.engine={engine}", f"train.processes={processes}"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    return [verb, str(place / "recipe.yaml"), "--workspace", str(place / "work"), "--allow-code", "--json", *overrides]


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command prints that ends well, called in this process."""
    capsys.readouterr()
    status = 0
    try:
        main(arguments)
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert not status, f"{out}\n{err}"
    return json.loads(out)


def adapter_of(told: dict[str, Any]) -> dict[str, Any]:
    return load_file(Path(told["outputs"]["train"]["model"]) / "adapter_model.safetensors")


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() != set()
    for name, value in expected.items():
        assert value.abs().max() > 1e-4, f"{name} has not moved"
        assert (found[name] - value).abs().max() < 1e-5, name


@pytest.fixture
def alone(place: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The adapter of one process that was never stopped; trained the first time only."""
    return adapter_of(called(arguments(place, "train", "auto", 1), capsys))


def assert_exported(told: dict[str, Any], engine: str, alone: dict[str, Any]) -> None:
    assert_close(adapter_of(told), alone)
    parity = json.loads((Path(told["outputs"]["export"]["parity"]) / "parity.json").read_bytes())
    assert parity["verdict"] == "equal"
    notes = (Run.open(Path(told["folder"])).outputs("train") or {})["model"].notes
    assert (notes["engine"], notes["processes"]) == ("fsdp" if engine == "fsdp" else "deepspeed", 2)


# One engine of each library: the way of a stop is the same for all (numerics/test_engines.py stops each of them).
@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_two_processes_stopped_in_the_middle_go_on_and_export_what_one_process_makes(
    environment: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str], alone: dict[str, Any], engine: str
) -> None:
    command = arguments(place, "export", ENGINES[engine], 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    (place / "command.pid").write_text(str(process.pid))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, f"{out}\n{err}"
    assert json.loads(out)["exit_status"] == 143

    told = called(command, capsys)
    events = [(event.name, event.step, event.value) for event in Run.open(Path(told["folder"])).events()]
    (resumed,) = (value for name, _, value in events if name == "train/resumed")
    assert 2 <= resumed < STEPS, "it was stopped in the middle"
    assert sorted(step for name, step, _ in events if name == "train/loss") == list(range(1, STEPS + 1))
    assert_exported(told, engine, alone)


def test_two_processes_under_zero_2_export_what_one_process_makes(
    place: Path, capsys: pytest.CaptureFixture[str], alone: dict[str, Any]
) -> None:
    assert_exported(called(arguments(place, "export", ENGINES["zero2"], 2), capsys), "zero2", alone)
