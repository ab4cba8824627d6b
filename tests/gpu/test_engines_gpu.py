"""FSDP2 and DeepSpeed on CUDA devices: what CPUs cannot show. One GPU is enough for all but the last test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ROOT = Path(__file__).parents[2]
ENGINES = {
    "fsdp": "fsdp",
    "fsdp, weights stay": "{type: fsdp, reshard_after_forward: false}",
    "fsdp, offloaded": "{type: fsdp, cpu_offload: true}",
    "zero1": "{type: deepspeed, zero_stage: 1}",
    "zero2": "{type: deepspeed, zero_stage: 2}",
    "zero2, offloaded": "{type: deepspeed, zero_stage: 2, offload_optimizer: cpu}",
    "zero3": "{type: deepspeed, zero_stage: 3}",
    "zero3, offloaded": "{type: deepspeed, zero_stage: 3, offload_optimizer: cpu, offload_parameters: cpu}",
}
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from gradients import BATCH, SEED, make_model
from tunesmith.modeling.dropout import StepContext
from tunesmith.recipe import parse_recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order
from tunesmith.stages.train.engines import make_engine
from tunesmith.stages.train.loop import Loop
from tunesmith.stages.train.optimizer import make_optimizer

model_dir, dataset_dir, engine, precision, adapter, spoil, out = sys.argv[1:]
settings = [f"train.batch_size={BATCH}", "train.epochs=9", "train.learning_rate=1.0e-3", "train.max_grad_norm=0.5", f"train.engine={engine}"]
train = parse_recipe("{data: {sources: rows.jsonl}}", settings).train
dataset, context = Dataset(Path(dataset_dir)), StepContext(SEED)
made = make_engine(train)
model = make_model(Path(model_dir), adapter, 0.0, context, False)
if made.loads_on is None:
    model = model.to("cuda")
model = made.wrap(model, lambda parameters: make_optimizer(parameters, train), precision=precision)
order = Order.of(dataset.split("train"), SEED, train)
loop = Loop(train, dataset, order, model, made, context, budget_tokens=200)
losses = []
for number in range(1, 6):
    if spoil == "yes" and number == 3:
        before = made.whole_parameters()
        backward = made.backward
        made.backward = lambda loss, is_last=True: backward(loss * float("nan"), is_last)
        assert not loop.step(number).finite
        made.backward = backward
        after = made.whole_parameters()
        assert all(torch.equal(before[name], value) for name, value in after.items())
        continue
    result = loop.step(number)
    assert result.finite, number
    losses.append(result.loss)
weights, state = made.whole_parameters(), made.gather_state()
made.load_state(weights, state) if made.world_size == 1 else None
if made.rank == 0:
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())
    assert all(f"exp_avg.{name}" in state for name in weights)
    Path(out).write_text(json.dumps(losses))
made.close()
"""


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_training import fill_dataset

    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return folder


def losses(
    tiny: Path,
    dataset: Path,
    out: Path,
    engine: str,
    precision: str = "bf16",
    adapter: str = "lora",
    *,
    processes: int = 1,
    spoil: bool = False,
) -> list[float]:
    """Losses of five steps in processes of their own, each with a GPU."""
    import json

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [ROOT / "src", ROOT / "tests", ROOT / "tests" / "numerics"]
    arguments = [tiny, dataset, engine, precision, adapter, "yes" if spoil else "no", out]
    started = []
    for rank in range(processes):
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_trains_as_one_process_does(
    tiny_model_dir: Path, dataset_dir: Path, tmp_path: Path, engine: str, adapter: str
) -> None:
    if "zero" in engine:
        pytest.importorskip("deepspeed")
    alone = losses(tiny_model_dir, dataset_dir, tmp_path / "one", "auto", adapter=adapter)
    found = losses(tiny_model_dir, dataset_dir, tmp_path / "other", ENGINES[engine], adapter=adapter)
    assert found == pytest.approx(alone, rel=2e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_finite_changes_nothing(
    tiny_model_dir: Path, dataset_dir: Path, tmp_path: Path, engine: str
) -> None:
    if "zero" in engine:
        pytest.importorskip("deepspeed")
    assert len(losses(tiny_model_dir, dataset_dir, tmp_path / "out", ENGINES[engine], spoil=True)) == 4


@pytest.mark.parametrize("engine", ["fsdp", "zero2", "zero3"])
def test_fp16_finds_its_loss_scale(tiny_model_dir: Path, dataset_dir: Path, tmp_path: Path, engine: str) -> None:
    if "zero" in engine:
        pytest.importorskip("deepspeed")
    alone = losses(tiny_model_dir, dataset_dir, tmp_path / "one", "auto", "fp16")
    assert losses(tiny_model_dir, dataset_dir, tmp_path / "out", ENGINES[engine], "fp16") == pytest.approx(
        alone, rel=2e-2
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("engine", ["ddp", *ENGINES])
def test_two_gpus_train_as_one(tiny_model_dir: Path, dataset_dir: Path, tmp_path: Path, engine: str) -> None:
    if "zero" in engine:
        pytest.importorskip("deepspeed")
    asked = ENGINES.get(engine, engine)
    alone = losses(tiny_model_dir, dataset_dir, tmp_path / "one", "auto", "fp32")
    assert losses(tiny_model_dir, dataset_dir, tmp_path / "two", asked, "fp32", processes=2) == pytest.approx(
        alone, rel=1e-4
    )
