"""The planner against the machine: `python benchmarks/planner.py` -> results/planner.json (planner-gpu.json on a GPU).

Each configuration is a model of random weights and rows of random ids. A fresh process imports torch, transformers and
peft, then runs tunesmith's own train stage for a few steps, validations and checkpoints included. Predicted: peak_memory,
step_seconds and disk_left of the plan made from config.json and the rows' statistics. Measured: the event
train/peak_memory (growth of resident memory from the start of the stage, imports done; on a GPU what torch reserved), the
median of train/step_seconds without the first, and the bytes of checkpoints and result on the disk.

The configurations of the calibration half are those that the constants of planner/memory.py and planner/speed.py were
fitted to; the others were looked at afterwards only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
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
KEY_HEADS = {4: 2, 6: 3, 8: 4, 12: 4}


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
}  # fmt: skip
CONFIGURATIONS = {**CALIBRATION, **HOLD_OUT}
STEPS, ROWS = 4, 64


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--one", help="measure this configuration in this process and print it")
    arguments.add_argument("--model", help="its model folder")
    arguments.add_argument("--only", default="", help="configurations whose name holds this text; nothing is stored")
    arguments.add_argument("--lines", help="also append each result to this file, and take over what it holds already")
    asked = arguments.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, Path(asked.model))))
        return
    lines = Path(asked.lines) if asked.lines else None
    done = {entry["name"]: entry for entry in _lines(lines)}
    found = []
    for name in CONFIGURATIONS:
        if asked.only not in name:
            continue
        if name not in done:
            done[name] = in_fresh_processes(name)
            if lines:
                with lines.open("a") as file:
                    file.write(json.dumps(done[name]) + "\n")
        found.append(done[name])
        print(line(found[-1]), flush=True)
    if not asked.only:
        on_gpu = any(entry["device"] != "cpu" for entry in found)
        parts = {
            half: summary(entry for entry in found if entry["half"] == half) for half in ("calibration", "hold-out")
        }
        store("planner-gpu" if on_gpu else "planner", {**parts, "all": summary(found), "configurations": found})


def _lines(path: Path | None) -> Iterable[dict[str, Any]]:
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


def summary(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    entries = list(found)

    def of(figure: str) -> dict[str, Any]:
        errors = [entry[figure]["error"] for entry in entries]
        return {
            "within_20_percent": sum(abs(error) <= 0.2 for error in errors),
            "inside_band": sum(entry[figure]["inside"] for entry in entries),
            "n": len(entries),
            "worst_error": max(errors, key=abs),
            "median_absolute_error": round(statistics.median(map(abs, errors)), 4),
        }

    return {figure: of(figure) for figure in ("peak_memory", "step_seconds", "disk_left")}


def make_model(name: str, folder: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    case = CONFIGURATIONS[name]
    heads, special = case.sizes["num_attention_heads"], {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    settings = {
        "num_key_value_heads": KEY_HEADS[heads], "vocab_size": case.vocabulary, "tie_word_embeddings": True,
        "head_dim": case.sizes["hidden_size"] // heads, "max_position_embeddings": 2048,
    }  # fmt: skip
    config = AutoConfig.for_model(case.kind, **{**case.sizes, **settings, **special, **case.config})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.stored)).save_pretrained(folder)
    Path(folder, "tokenizer.json").write_text("{}")  # rows are made of ids; only its presence is looked at


def measure(name: str, model: Path) -> dict[str, Any]:
    import numpy as np

    from tunesmith import planner
    from tunesmith.planner import hardware
    from tunesmith.recipe import parse_recipe
    from tunesmith.runs.dataset import Dataset, DatasetWriter
    from tunesmith.runs.run import Run
    from tunesmith.stages.train.run import run as train

    case = CONFIGURATIONS[name]
    machine = hardware.detect()
    spec = parse_recipe(
        "{name: planner, data: {sources: rows.jsonl}}",
        [f"model.base={model}", f"adapter={{type: {case.adapter}}}", f"train.max_steps={STEPS}",
         f"train.batch_size={case.micro_batch * case.micro_batches}", f"train.micro_batch={case.micro_batch}",
         f"train.gradient_checkpointing={case.recompute}", f"data.max_tokens={case.tokens}", "train.epochs=100",
         "export={merged: false, adapter: false}",  # only training runs here
         *(() if machine.gpus else ("model.precision=fp32", "train.threads=1")), *case.settings],
    )  # fmt: skip
    run = Run.open_or_create(model / "work", spec)
    run.stage_key = "planner"
    told: dict[str, Any] = {}
    with run.store.create("Dataset", "rows", producer={}) as draft:
        writer, drawn = DatasetWriter(draft.path), np.random.default_rng(0)
        for split, rows in (("train", ROWS), ("validation", case.validation_rows)):
            lengths = drawn.integers(case.shortest or case.tokens, case.tokens + 1, rows)
            learned = 0
            for row, length in enumerate(map(int, lengths)):
                cut = max(1, round(length * (1 - case.learned_share)))
                ids = drawn.integers(2, case.vocabulary, length).astype(np.int32)
                writer.add(ids, [[cut, length, 1.0]], row, split)
                learned += length - cut
            told[split] = {"rows": rows, "tokens": int(lengths.sum()), "learned_tokens": learned}
            told[split] |= {f"p{q}": int(np.percentile(lengths, q)) if rows else 0 for q in (50, 90)}
            told[split]["max"] = int(lengths.max()) if rows else 0
        writer.close(ledger=[])
    config = json.loads((model / "config.json").read_bytes())
    plan = planner.plan(spec, config, statistics={"splits": told}, hardware=machine)
    run.write_plan(plan.to_json())
    assert draft.artifact is not None
    assert Dataset(draft.artifact.path).num_examples == ROWS + case.validation_rows
    train(spec, {"dataset": draft.artifact}, run)

    events = run.events()
    peak = next(event.value for event in events if event.name == "train/peak_memory")
    seconds = [event.value for event in events if event.name == "train/step_seconds"][1:]
    made = [path for kind in ("checkpoint", "adapter", "model") for path in (run.store.root / kind).rglob("*")]
    return {
        "name": name,
        "half": "calibration" if name in CALIBRATION else "hold-out",
        "device": machine.gpus[0].name if machine.gpus else "cpu",
        **asdict(case),
        "peak_memory": beside(plan.figures["peak_memory"], peak),
        "step_seconds": beside(plan.figures["step_seconds"], statistics.median(seconds)),
        "disk_left": beside(plan.figures["disk_left"], sum(path.stat().st_size for path in made if path.is_file())),
        "note": plan.figures["peak_memory"].note,
        "parts": {part: round(figure.value) for part, figure in plan.figures.items() if figure.unit == "bytes"},
        "commit": provenance()["commit"],
    }


def beside(figure: Any, measured: float) -> dict[str, Any]:
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
