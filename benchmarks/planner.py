"""The planner against the machine: `python benchmarks/planner.py` -> results/planner.json (planner-gpu.json on a GPU).

Each configuration is a model of random weights and rows of random ids. A fresh process imports torch, transformers and
peft, then runs tunesmith's own train stage for a few steps, validations and checkpoints included. Predicted: peak_memory,
step_seconds and disk_left of the plan made from config.json and the rows' statistics. Measured: the event
train/peak_memory (growth of resident memory from the start of the stage, imports done; on a GPU what torch reserved), the
median of train/step_seconds without the first, and the bytes of checkpoints and result on the disk.

The constants of planner/memory.py were fitted to the calibration half; the other is held out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from record import ROOT, provenance, store

TINY = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8}
SMALL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
DEEP = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 10, "num_attention_heads": 6}
MIDDLE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}
LARGE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}
WIDE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12}
NARROW = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 3}
TALL = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5}
SQUAT = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 3, "num_attention_heads": 10}
KEY_HEADS = {3: 1, 4: 2, 5: 1, 6: 3, 8: 4, 10: 2, 12: 4}


@dataclass(frozen=True)
class Configuration:
    """shortest: rows are of shortest..tokens tokens. micro_batches: of a step. stored: number format of the files."""

    kind: str
    sizes: dict[str, int]
    vocabulary: int
    adapter: str
    micro_batch: int
    tokens: int
    recompute: str = "off"
    micro_batches: int = 2
    shortest: int | None = None
    learned_share: float = 0.5
    settings: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    stored: str = "float32"
    validation_rows: int = 0
    steps: int = 4


CALIBRATION = {
    "1M full 8x256": Configuration("llama", SMALL, 2048, "full", 8, 256),
    "1M lora 4x1024": Configuration("llama", SMALL, 2048, "lora", 4, 1024, micro_batches=1),
    "1M full 8x512 recomputed": Configuration("llama", SMALL, 2048, "full", 8, 512, "on"),
    "6M full 2x512": Configuration("llama", MIDDLE, 4096, "full", 2, 512),
    "6M lora 8x256": Configuration("llama", MIDDLE, 4096, "lora", 8, 256, micro_batches=1),
    "6M lora 8x256 recomputed": Configuration("llama", MIDDLE, 4096, "lora", 8, 256, "on"),
    "6M qwen3 lora 4x512": Configuration("qwen3", MIDDLE, 8192, "lora", 4, 512),
    "5M full 8x128 saves": Configuration(
        "llama", DEEP, 4096, "full", 8, 128, validation_rows=12, settings=("train.evaluate_every=2",)
    ),
    "27M full 1x256": Configuration("llama", LARGE, 16384, "full", 1, 256),
    "27M full 4x256": Configuration("llama", LARGE, 16384, "full", 4, 256, micro_batches=1),
    "27M lora 4x512 recomputed": Configuration("llama", LARGE, 16384, "lora", 4, 512, "on", 1),
    "260K full 16x100": Configuration("llama", TINY, 512, "full", 16, 100),
}
HOLD_OUT = {
    "1M lora 8x128": Configuration("llama", SMALL, 2048, "lora", 8, 128),
    "1M mistral full 4x512 untied": Configuration(
        "mistral", SMALL, 6000, "full", 4, 512, config={"tie_word_embeddings": False}
    ),
    "1M qwen3 full 4x384": Configuration("qwen3", SMALL, 3000, "full", 4, 384),
    "1M eager lora 2x512": Configuration("llama", SMALL, 2048, "lora", 2, 512, settings=("model.attention=eager",)),
    "1M lora 16x64..256 mixed lengths": Configuration("llama", SMALL, 2048, "lora", 16, 256, shortest=64, micro_batches=1),
    "5M qwen2 lora 4x300 recomputed": Configuration("qwen2", DEEP, 5000, "lora", 4, 300, "on", validation_rows=8),
    "5M lora 8x200 all learned, stored bf16": Configuration(
        "llama", DEEP, 3000, "lora", 8, 200, learned_share=0.99, stored="bfloat16"
    ),
    "5M mistral full 16x96 rows": Configuration("mistral", DEEP, 4000, "full", 16, 96, settings=("train.packing=off",)),
    "6M full 4x512 recomputed": Configuration("llama", MIDDLE, 4096, "full", 4, 512, "on"),
    "6M qwen2 full 1x1024": Configuration("qwen2", MIDDLE, 8192, "full", 1, 1024, micro_batches=1),
    "6M lora q,v rank 4 8x200": Configuration(
        "llama", MIDDLE, 4096, "lora", 8, 200, settings=("adapter.rank=4", "adapter.targets=[q_proj,v_proj]")
    ),
    "6M full sgd 4x256 saves": Configuration(
        "llama", MIDDLE, 4096, "full", 4, 256, validation_rows=8,
        settings=("train.optimizer={type: sgd}", "train.evaluate_every=1"),
    ),
    "6M qwen3 lora 2x1024 recomputed": Configuration("qwen3", MIDDLE, 8192, "lora", 2, 1024, "on", 1),
    "27M lora 2x512": Configuration("llama", LARGE, 16384, "lora", 2, 512),
    "27M full 2x384 recomputed, mixed lengths": Configuration(
        "llama", LARGE, 16384, "full", 2, 384, "on", shortest=100, micro_batches=4
    ),
    "27M qwen3 lora 2x256 vocabulary 32k": Configuration("qwen3", LARGE, 32768, "lora", 2, 256),
    "55M mistral lora 2x384": Configuration("mistral", WIDE, 16000, "lora", 2, 384, micro_batches=1),
    "55M full 1x128 saves": Configuration("qwen2", WIDE, 16000, "full", 1, 128, validation_rows=4),
    "260K full 8x60 mixed lengths": Configuration("llama", TINY, 512, "full", 8, 60, shortest=20, micro_batches=4),
    "260K lora 32x200": Configuration("llama", TINY, 512, "lora", 32, 200, micro_batches=1),
    "2M lora 24x100": Configuration("llama", NARROW, 1500, "lora", 24, 100),
    "2M full 10x333 on two threads": Configuration("llama", NARROW, 1500, "full", 10, 333, settings=("train.threads=2",)),
    "2M eager full 3x300": Configuration("mistral", NARROW, 1500, "full", 3, 300, settings=("model.attention=eager",)),
    "2M lora rank 64 8x256 all learned": Configuration(
        "qwen2", NARROW, 1500, "lora", 8, 256, learned_share=0.99, settings=("adapter.rank=64",)
    ),
    "2M full 20x40..90 rows": Configuration(
        "qwen3", NARROW, 1500, "full", 20, 90, shortest=40, settings=("train.packing=off",)
    ),
    "2M lora 8x48..256, 30 steps": Configuration("llama", NARROW, 1500, "lora", 8, 256, shortest=48, steps=30),
    "10M lora 6x320": Configuration("llama", TALL, 7000, "lora", 6, 320),
    "10M qwen3 full 3x400": Configuration("qwen3", TALL, 7000, "full", 3, 400),
    "10M mistral lora 10x150 recomputed": Configuration("mistral", TALL, 7000, "lora", 10, 150, "on"),
    "10M qwen2 full 2x700 recomputed": Configuration("qwen2", TALL, 7000, "full", 2, 700, "on", micro_batches=3),
    "10M lora 4x256 stored bf16, 20 steps": Configuration(
        "llama", TALL, 7000, "lora", 4, 256, stored="bfloat16", micro_batches=1, steps=20
    ),
    "10M gemma lora 4x200": Configuration("gemma", TALL, 7000, "lora", 4, 200),
    "10M smollm3 full 4x256": Configuration("smollm3", TALL, 7000, "full", 4, 256, micro_batches=1),
    "17M full 2x300 untied": Configuration(
        "llama", SQUAT, 12000, "full", 2, 300, config={"tie_word_embeddings": False}
    ),
    "17M qwen3 lora 3x500": Configuration("qwen3", SQUAT, 12000, "lora", 3, 500, micro_batches=1),
    "17M lora 12x30..128": Configuration("mistral", SQUAT, 12000, "lora", 12, 128, shortest=30),
    "17M full sgd with momentum 6x200 saves": Configuration(
        "llama", SQUAT, 12000, "full", 6, 200, validation_rows=10,
        settings=("train.optimizer={type: sgd, momentum: 0.9}", "train.evaluate_every=1"),
    ),
    "17M lora 2x900 recomputed, validated": Configuration(
        "qwen2", SQUAT, 12000, "lora", 2, 900, "on", micro_batches=1, validation_rows=6
    ),
    "45M qwen2 lora 1x512 vocabulary 50k": Configuration("qwen2", LARGE, 50000, "lora", 1, 512, micro_batches=4),
    "45M full 2x100 vocabulary 50k saves": Configuration(
        "llama", LARGE, 50000, "full", 2, 100, validation_rows=4, settings=("train.evaluate_every=2",)
    ),
}  # fmt: skip
CONFIGURATIONS = {**CALIBRATION, **HOLD_OUT}
ROWS = 64
FIGURES = ("peak_memory", "step_seconds", "disk_left")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--one", help="measure this configuration in this process and print it")
    arguments.add_argument("--model", help="its model folder")
    arguments.add_argument("--only", default="", help="configurations whose name holds this text; nothing is stored")
    arguments.add_argument("--lines", help="also append each result to this file, and take over what it holds already")
    arguments.add_argument(
        "--replan", action="store_true", help="measure nothing: hold the plans of today against what --lines holds"
    )
    asked = arguments.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, Path(asked.model))))
        return
    from tunesmith.planner import hardware

    lines = Path(asked.lines) if asked.lines else None
    done = {entry["name"]: entry for entry in _lines(lines)}
    found = []
    for name in CONFIGURATIONS:
        if asked.only not in name or (asked.replan and name not in done):
            continue
        if asked.replan:
            done[name] |= beside(
                name, {figure: done[name][figure]["measured"] for figure in FIGURES}, hardware.detect()
            )
        if name not in done:
            done[name] = in_fresh_processes(name)
            if lines:
                with lines.open("a") as file:
                    file.write(json.dumps(done[name]) + "\n")
        found.append(done[name])
        print(line(found[-1]), flush=True)
    if not asked.only:
        on_gpu = any(entry["device"] != "cpu" for entry in found)
        halves = {half: [entry for entry in found if entry["half"] == half] for half in ("calibration", "hold-out")}
        summaries = {half: summary(entries) if entries else "not measured" for half, entries in halves.items()}
        how = "measured earlier, planned anew (--replan)" if asked.replan else "measured and planned in one go"
        store("planner-gpu" if on_gpu else "planner", {"how": how, **summaries, "configurations": found})


def _lines(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path and path.exists() else []


def line(entry: dict[str, Any]) -> str:
    memory, step, disk = entry["peak_memory"], entry["step_seconds"], entry["disk_left"]
    return (
        f"{entry['name']:<42} {memory['predicted'] / 2**20:6.0f} MiB planned {memory['measured'] / 2**20:6.0f} measured "
        f"{memory['error']:+7.1%}   {step['predicted']:6.2f} s {step['measured']:6.2f} s {step['error']:+7.1%}"
        f"   disk {disk['error']:+6.1%} {'in' if disk['inside'] else 'OUT'}"
    )


def in_fresh_processes(name: str) -> dict[str, Any]:
    """The model is made by one process and trained by another, so that making it leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        make = f"import planner; planner.make_model({name!r}, {folder!r})"
        there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])}
        subprocess.run([sys.executable, "-c", make], check=True, env=there, stderr=subprocess.DEVNULL)
        command = [sys.executable, __file__, "--one", name, "--model", folder]
        done = subprocess.run(command, check=False, env=there, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    def of(figure: str) -> dict[str, Any]:
        errors = [entry[figure]["error"] for entry in entries]
        return {
            "within_20_percent": sum(abs(error) <= 0.2 for error in errors),
            "inside_band": sum(entry[figure]["inside"] for entry in entries),
            "n": len(entries),
            "worst_error": max(errors, key=abs),
            "median_absolute_error": round(statistics.median(map(abs, errors)), 4),
        }

    return {figure: of(figure) for figure in FIGURES}


def config_of(case: Configuration) -> dict[str, Any]:
    """What config.json says; the planner needs no more."""
    heads = case.sizes["num_attention_heads"]
    return {
        **case.sizes, "model_type": case.kind, "num_key_value_heads": KEY_HEADS[heads], "vocab_size": case.vocabulary,
        "tie_word_embeddings": True, "head_dim": case.sizes["hidden_size"] // heads, "max_position_embeddings": 2048,
        "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0, "dtype": case.stored, **case.config,
    }  # fmt: skip


def make_model(name: str, folder: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    case = CONFIGURATIONS[name]
    settings = {key: value for key, value in config_of(case).items() if key not in ("model_type", "dtype")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.kind, **settings)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.stored)).save_pretrained(folder)
    Path(folder, "tokenizer.json").write_text("{}")  # rows are made of ids; only its presence is looked at


def recipe_of(case: Configuration, model: str, on_gpu: bool) -> Any:
    from tunesmith.recipe import parse_recipe

    return parse_recipe(
        "{name: planner, data: {sources: rows.jsonl}}",
        [f"model.base={model}", f"adapter={{type: {case.adapter}}}", f"train.max_steps={case.steps}",
         f"train.batch_size={case.micro_batch * case.micro_batches}", f"train.micro_batch={case.micro_batch}",
         f"train.gradient_checkpointing={case.recompute}", f"data.max_tokens={case.tokens}", "train.epochs=100",
         "export={merged: false, adapter: false}",  # only training runs here
         *(() if on_gpu else ("model.precision=fp32", "train.threads=1")), *case.settings],
    )  # fmt: skip


def rows_of(case: Configuration) -> Iterator[tuple[str, Any, int]]:
    """(split, ids, first learned token) of each row: the same for each call."""
    import numpy as np

    drawn = np.random.default_rng(0)
    for split, rows in (("train", ROWS), ("validation", case.validation_rows)):
        for length in map(int, drawn.integers(case.shortest or case.tokens, case.tokens + 1, rows)):
            cut = max(1, round(length * (1 - case.learned_share)))
            yield split, drawn.integers(2, case.vocabulary, length).astype(np.int32), cut


def statistics_of(case: Configuration) -> dict[str, Any]:
    """As prepare writes them."""
    import numpy as np

    splits = {}
    for name in ("train", "validation"):
        found = [(len(ids), len(ids) - cut) for split, ids, cut in rows_of(case) if split == name] or [(0, 0)]
        lengths, learned = np.array(found).T
        rows = case.validation_rows if name == "validation" else ROWS
        splits[name] = {"rows": rows, "tokens": int(lengths.sum()), "learned_tokens": int(learned.sum())}
        splits[name] |= {f"p{q}": int(np.percentile(lengths, q)) for q in (50, 90)} | {"max": int(lengths.max())}
    return {"splits": splits}


def measure(name: str, model: Path) -> dict[str, Any]:
    from tunesmith import planner
    from tunesmith.planner import hardware
    from tunesmith.runs.dataset import DatasetWriter
    from tunesmith.runs.run import Run
    from tunesmith.stages.train.run import run as train

    case, machine = CONFIGURATIONS[name], hardware.detect()
    spec = recipe_of(case, str(model), bool(machine.gpus))
    run = Run.open_or_create(model / "work", spec)
    run.stage_key = "planner"
    with run.store.create("Dataset", "rows", producer={}) as draft:
        writer = DatasetWriter(draft.path)
        for row, (split, ids, cut) in enumerate(rows_of(case)):
            writer.add(ids, [[cut, len(ids), 1.0]], row, split)
        writer.close()
    assert draft.artifact is not None
    config = json.loads((model / "config.json").read_bytes())
    run.write_plan(planner.plan(spec, config, statistics=statistics_of(case), hardware=machine).to_json())
    train(spec, {"dataset": draft.artifact}, run)

    events = run.events()
    seconds = [event.value for event in events if event.name == "train/step_seconds"][1:]
    made = [path for kind in ("checkpoint", "adapter", "model") for path in (run.store.root / kind).rglob("*")]
    measured = {
        "peak_memory": next(event.value for event in events if event.name == "train/peak_memory"),
        "step_seconds": statistics.median(seconds),
        "disk_left": sum(path.stat().st_size for path in made if path.is_file()),
    }
    told = {"device": machine.gpus[0].name if machine.gpus else "cpu", "load_average": round(os.getloadavg()[0], 2)}
    return beside(name, measured, machine) | told | {"commit": provenance()["commit"]}


def beside(name: str, measured: dict[str, float], machine: Any) -> dict[str, Any]:
    """The plan as it is made now, held against what was measured. Arithmetic only."""
    from tunesmith import planner

    case = CONFIGURATIONS[name]
    spec = recipe_of(case, "model", bool(machine.gpus))
    plan = planner.plan(spec, config_of(case), statistics=statistics_of(case), hardware=machine)
    return {
        "name": name,
        "half": "calibration" if name in CALIBRATION else "hold-out",
        **asdict(case),
        **{figure: _judged(plan.figures[figure], value) for figure, value in measured.items()},
        "note": plan.figures["peak_memory"].note,
        "parts": {part: round(figure.value) for part, figure in plan.figures.items() if figure.unit == "bytes"},
    }


def _judged(figure: Any, measured: float) -> dict[str, Any]:
    return {
        "predicted": round(figure.value, 4),
        "low": round(figure.low, 4),
        "high": round(figure.high, 4),
        "measured": round(measured, 4),
        "error": round(figure.value / measured - 1, 4),
        "inside": figure.low <= measured <= figure.high,
    }


if __name__ == "__main__":
    main()
