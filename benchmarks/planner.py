"""The planner against the machine: `python benchmarks/planner.py` -> results/planner.json.

Each configuration is a model of random weights and rows of random ids. A fresh process imports torch, transformers and
peft, then runs tunesmith's own train stage for a few steps, its final checkpoint included. Predicted: peak_memory and
step_seconds of the plan made from config.json and the rows' statistics. Measured: the events train/peak_memory (growth
of resident memory from the start of the stage, imports done) and the median of train/step_seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, store

SMALL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
MIDDLE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}
LARGE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}

# kind of model, sizes, vocabulary, adapter, micro-batch, tokens per row, recomputation, micro-batches per step
CONFIGURATIONS: dict[str, tuple[str, dict[str, int], int, str, int, int, str, int]] = {
    "1M full 8x256": ("llama", SMALL, 2048, "full", 8, 256, "off", 2),
    "1M lora 4x1024": ("llama", SMALL, 2048, "lora", 4, 1024, "off", 1),
    "1M lora 8x128": ("llama", SMALL, 2048, "lora", 8, 128, "off", 2),
    "6M full 2x512": ("llama", MIDDLE, 4096, "full", 2, 512, "off", 2),
    "6M lora 8x256": ("llama", MIDDLE, 4096, "lora", 8, 256, "off", 1),
    "6M lora 8x256 recomputed": ("llama", MIDDLE, 4096, "lora", 8, 256, "on", 2),
    "6M full 4x512 recomputed": ("llama", MIDDLE, 4096, "full", 4, 512, "on", 2),
    "6M qwen3 lora 4x512": ("qwen3", MIDDLE, 8192, "lora", 4, 512, "off", 2),
    "6M qwen2 full 1x1024": ("qwen2", MIDDLE, 8192, "full", 1, 1024, "off", 1),
    "27M full 1x256": ("llama", LARGE, 16384, "full", 1, 256, "off", 2),
    "27M full 4x256": ("llama", LARGE, 16384, "full", 4, 256, "off", 1),
    "27M lora 2x512": ("llama", LARGE, 16384, "lora", 2, 512, "off", 2),
    "27M lora 4x512 recomputed": ("llama", LARGE, 16384, "lora", 4, 512, "on", 1),
}
LEARNED_SHARE, STEPS, ROWS = 0.5, 3, 48


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--one", help="measure this configuration in this process and print it")
    arguments.add_argument("--model", help="its model folder")
    arguments.add_argument("--only", default="", help="configurations whose name holds this text; nothing is stored")
    asked = arguments.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, Path(asked.model))))
        return
    found = []
    for name in CONFIGURATIONS:
        if asked.only not in name:
            continue
        entry = in_fresh_processes(name)
        found.append(entry)
        memory, step = entry["peak_memory"], entry["step_seconds"]
        print(
            f"{name:<28} {memory['predicted'] / 2**20:7.0f} MiB planned {memory['measured'] / 2**20:7.0f} measured "
            f"{memory['error']:+7.1%}   {step['predicted']:6.2f} s {step['measured']:6.2f} s {step['error']:+7.1%}",
            flush=True,
        )
    if not asked.only:
        store("planner", {"configurations": found, **summary(found)})


def in_fresh_processes(name: str) -> dict[str, Any]:
    """The model is made by one process and trained by another, so that making it leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        make = f"import planner; planner.make_model({name!r}, {folder!r})"
        there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])}
        subprocess.run([sys.executable, "-c", make], check=True, env=there)
        command = [sys.executable, __file__, "--one", name, "--model", folder]
        done = subprocess.run(command, check=True, env=there, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    def of(figure: str) -> dict[str, Any]:
        errors = [entry[figure]["error"] for entry in found]
        return {
            "worst_error": max(errors, key=abs),
            "median_absolute_error": round(statistics.median(map(abs, errors)), 4),
            "inside_band": sum(entry[figure]["inside"] for entry in found),
            "n": len(found),
        }

    return {"peak_memory": of("peak_memory"), "step_seconds": of("step_seconds")}


def make_model(name: str, folder: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes, vocabulary, *_ = CONFIGURATIONS[name]
    special = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    config = AutoConfig.for_model(
        kind, **sizes, num_key_value_heads=sizes["num_attention_heads"] // 2, vocab_size=vocabulary,
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"], max_position_embeddings=2048,
        tie_word_embeddings=True, **special,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    Path(folder, "tokenizer.json").write_text("{}")  # rows are made of ids; only its presence is looked at


def measure(name: str, model: Path) -> dict[str, Any]:
    import numpy as np

    from tunesmith import planner
    from tunesmith.planner import hardware
    from tunesmith.recipe import parse_recipe
    from tunesmith.runs.dataset import Dataset, DatasetWriter
    from tunesmith.runs.run import Run
    from tunesmith.stages.train.run import run as train

    *_, vocabulary, adapter, micro_batch, length, recompute, groups = CONFIGURATIONS[name]
    spec = parse_recipe(
        "{name: planner, data: {sources: rows.jsonl}}",
        [f"model.base={model}", "model.precision=fp32", f"adapter={{type: {adapter}}}", f"train.max_steps={STEPS}",
         f"train.batch_size={micro_batch * groups}", f"train.micro_batch={micro_batch}", "train.threads=1",
         f"train.gradient_checkpointing={recompute}", f"data.max_tokens={length}"],
    )  # fmt: skip
    workspace = model / "work"
    run = Run.open_or_create(workspace, spec)
    run.stage_key = "planner"
    with run.store.create("Dataset", "rows", producer={}) as draft:
        writer, drawn = DatasetWriter(draft.path), np.random.default_rng(0)
        cut = round(length * (1 - LEARNED_SHARE))
        for row in range(ROWS):
            writer.add(drawn.integers(2, vocabulary, length).astype(np.int32), [[cut, length, 1.0]], row, "train")
        writer.close(ledger=[])
    told = {"rows": ROWS, "tokens": ROWS * length, "learned_tokens": ROWS * (length - cut), "max": length}
    config = json.loads((model / "config.json").read_bytes())
    machine = hardware.detect()
    plan = planner.plan(spec, config, statistics={"splits": {"train": told}}, hardware=machine)
    run.write_plan(plan.to_json())
    assert draft.artifact is not None and Dataset(draft.artifact.path).num_examples == ROWS
    train(spec, {"dataset": draft.artifact}, run)

    events = run.events()
    peak = next(event.value for event in events if event.name == "train/peak_memory")
    seconds = statistics.median(event.value for event in events if event.name == "train/step_seconds")
    kinds = dict(zip(("kind", "sizes", "vocabulary", "adapter", "micro_batch", "tokens", "recompute", "micro_batches"),
                     CONFIGURATIONS[name], strict=True))  # fmt: skip
    return {
        "name": name,
        **kinds,
        "peak_memory": beside(plan.figures["peak_memory"], peak),
        "step_seconds": beside(plan.figures["step_seconds"], seconds),
        "parts": {part: round(figure.value) for part, figure in plan.figures.items() if figure.unit == "bytes"},
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
