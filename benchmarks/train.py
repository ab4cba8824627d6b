"""Training speed on a GPU: LoRA r16 on Llama-3.1-8B and Qwen3-0.6B shapes with random weights, beside TRL with Liger.

Two kinds of rows: full ones of 4,096 tokens, and short ones (log-normal, mean about 350) that both sides pack. Ids are
random over the whole vocabulary; both sides train on the same ids and learn the same tokens, with the same number of
tokens per step, rank, targets, AdamW and clipping. Each side of each configuration has a process of its own, in the order
ours, TRL as documented, TRL tuned (no recomputation), ours again; a side that does not fit into memory says so. Ten steps
warm up, twenty are timed in two windows, with the device waited for at the ends of a window only. Loading, compiling and
preparing are not counted; seconds until the first step ends are told apart.

    python benchmarks/train.py --peer PATH/TO/PYTHON_WITH_TRL_AND_LIGER [--shapes llama-3.1-8b qwen3-0.6b] [--compile]
    python benchmarks/train.py --peer PATH/TO/PYTHON_WITH_TRL --tiny      a rehearsal on a CPU: nothing is stored
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, store
from train_cpu import worker

# type, hidden, feed-forward, layers, heads, key heads, features of a head, vocabulary, tied
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "llama-3.1-8b": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "qwen3-0.6b": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "tiny": ("llama", 64, 128, 2, 4, 2, 16, 512, True),
}
# rows: tokens of a row, rows of a step, rows of the Dataset. short: lengths are drawn.
WORKLOADS = {"full": (4096, 2, 64), "short": (4096, 24, 1024)}
TINY = {"full": (64, 2, 8), "short": (64, 6, 32)}
MEAN, SIGMA = 350, 0.8
LEARNED_SHARE = 0.5
WARM_UP, WINDOWS, STEPS_OF_WINDOW = 10, 2, 10
SETTINGS = {"documented": ["--checkpointing"], "tuned": []}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True, help="a Python that has trl, datasets, peft, liger_kernel and torch")
    parser.add_argument("--shapes", nargs="+", choices=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--compile", action="store_true", help="ours once more with train.compile: regional")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    shapes = ["tiny"] if asked.tiny else asked.shapes or [name for name in SHAPES if name != "tiny"]
    stored = RESULTS / "train.json"
    known = json.loads(stored.read_text())["configurations"] if stored.exists() and not asked.tiny else {}
    for shape in shapes:
        with tempfile.TemporaryDirectory() as scratch:
            model = make_model(Path(scratch), shape)
            for workload in asked.workloads:
                known[f"{shape}, {workload}"] = compare(model, shape, workload, Path(scratch), asked)
        if not asked.tiny:
            store("train", {"configurations": known, "gpu": gpu(), "method": "lora r16, bf16", "unit": "tokens/s"})
    print(json.dumps(known, indent=2))


def compare(model: Path, shape: str, workload: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """All sides of one configuration in turn; medians of ours, the better of TRL's settings, the ratio to that one."""
    clocks = [gpu()]
    sides: dict[str, list[dict[str, Any]]] = {}

    def ours(name: str, repeat: int) -> None:
        place = folder / f"{workload}-{name}-{repeat}"
        command = [sys.executable, __file__, "--ours", str(model), shape, workload, str(place), str(name == "compiled")]
        sides.setdefault(name, []).append(run(command, asked.tiny))
        clocks.append(gpu())

    ours("ours", 0)
    first = sides["ours"][0]
    if "failed" in first:
        return {"sides": sides, "clocks": clocks}
    for name, settings in SETTINGS.items():
        length, rows, _ = (TINY if asked.tiny else WORKLOADS)[workload]
        command = [asked.peer, str(ROOT / "benchmarks/peers/trl_sft.py"), str(model), first["dataset"]]
        command += ["--tokens", str(round(first["tokens_per_step"])), "--length", str(length), "--rank", "16"]
        command += ["--steps", str(_steps(asked.tiny)), "--warm-up", str(_warm_up(asked.tiny)), *settings]
        command += ["--rows", str(rows), "--way", "bfd" if workload == "short" else "by length"]
        command += [] if asked.tiny else ["--device", "cuda", "--liger"]
        sides.setdefault(f"trl {name}", []).append(run([*command, "--threads", "2"], asked.tiny))
        clocks.append(gpu())
    if asked.compile:
        ours("compiled", 0)
    ours("ours", 1)
    mine = statistics.median(side["tokens_per_s"] for side in sides["ours"] if "tokens_per_s" in side)
    theirs = [side for name, found in sides.items() if name.startswith("trl") for side in found]
    best = max((side["tokens_per_s"] for side in theirs if "tokens_per_s" in side), default=None)
    use = first["mfu"] / first["tokens_per_s"]  # of the peak, per token and second: the same for the same rows
    return {
        "mfu": round(use * mine, 4),
        "trl_best_mfu": round(use * best, 4) if best else None,
        "tokens_per_s": round(mine, 1),
        "trl_best_tokens_per_s": round(best, 1) if best else None,
        "ratio": round(mine / best, 3) if best else None,
        "reserved_bytes": first.get("reserved_bytes"),
        "planned_bytes": first.get("planned_bytes"),
        "planned_over_reserved": _share(first),
        "sides": sides,
        "clocks": clocks,
    }


def run(command: list[str], is_tiny: bool) -> dict[str, Any]:
    """What a side told, or why it has nothing to tell (memory, most often); in a rehearsal every side has to work."""
    try:
        return worker(command)
    except SystemExit as failure:
        if is_tiny:
            raise
        text = str(failure)
        return {"failed": "out of memory" if "out of memory" in text.lower() else text.strip()[-600:]}


def gpu() -> str | None:
    """Name, clock, power and temperature now."""
    query = "--query-gpu=name,clocks.sm,power.draw,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _share(side: dict[str, Any]) -> float | None:
    planned, reserved = side.get("planned_bytes"), side.get("reserved_bytes")
    return round(planned / reserved, 3) if planned and reserved else None


def _warm_up(is_tiny: bool) -> int:
    return 2 if is_tiny else WARM_UP


def _steps(is_tiny: bool) -> int:
    return 4 if is_tiny else WINDOWS * STEPS_OF_WINDOW


# ------------------------------------------------------------------------------------------------------------ the input


def make_model(folder: Path, shape: str) -> Path:
    """Random weights of that shape in bf16, and a tokenizer of one word, because a model's folder has one."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    kind, hidden, feed_forward, layers, heads, key_heads, head_dim, vocabulary, tied = SHAPES[shape]
    path = folder / shape
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>")),
        eos_token="<end>",
        pad_token="<end>",
    )
    words.chat_template = "{% for message in messages %}{{ message.content }}<end>{% endfor %}"
    words.save_pretrained(path)
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=head_dim, vocab_size=vocabulary, tie_word_embeddings=tied,
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    return path


def write_dataset(folder: Path, workload: str, vocabulary: int, sizes: tuple[int, int, int]) -> None:
    """Random ids over the whole vocabulary; the second half of each row is learned."""
    import numpy as np

    from tunesmith.runs.dataset import DatasetWriter

    length, _, count = sizes
    draw = np.random.default_rng(0)
    lengths = np.full(count, length)
    if workload == "short":
        scale = MEAN * length / WORKLOADS["short"][0]
        drawn = draw.lognormal(np.log(scale) - SIGMA**2 / 2, SIGMA, count)
        lengths = np.clip(drawn, 8, length).astype(np.int64)
    writer = DatasetWriter(folder)
    for row, tokens in enumerate(lengths):
        ids = draw.integers(1, vocabulary, tokens).astype(np.int32)
        writer.add(ids, [[int(tokens * (1 - LEARNED_SHARE)), int(tokens), 1.0]], row, "train")
    writer.close()


def statistics_of(dataset: Any) -> dict[str, Any]:
    """As the prepare stage writes them, of what the plan reads."""
    import numpy as np

    lengths = dataset.lengths()
    percentiles = {f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)}
    counts = {"rows": len(lengths), "tokens": int(lengths.sum()), "max": int(lengths.max()), **percentiles}
    return {"splits": {"train": {**counts, "learned_tokens": int(dataset.learned_weights().sum())}}}


# ------------------------------------------------------------------------------------------------------------- our side


def train_ours(model: str, shape: str, workload: str, workspace: Path, compiles: bool) -> None:
    """The real train stage on a Dataset of its own; its events and their times tell the rest."""
    from tunesmith import hub, planner
    from tunesmith.planner import hardware
    from tunesmith.recipe import parse_recipe
    from tunesmith.runs.dataset import Dataset
    from tunesmith.runs.run import Run
    from tunesmith.stages.train.run import run as train

    is_tiny = shape == "tiny"
    length, rows, _ = sizes = (TINY if is_tiny else WORKLOADS)[workload]
    warm_up, steps = _warm_up(is_tiny), _steps(is_tiny)
    settings = [
        f"model.base={model}", f"data.max_tokens={length}", f"train.batch_size={rows}", f"train.max_steps={warm_up + steps}",
        "train.epochs=1000", "train.learning_rate=1e-4", "train.save_every=100000", "train.keep=last", "adapter.rank=16",
        f"train.compile={'regional' if compiles else 'off'}", *(["train.threads=2"] if is_tiny else []),
    ]  # fmt: skip
    spec = parse_recipe("{name: speed, data: {sources: rows.jsonl}, track: []}", settings)
    made = Run.open_or_create(workspace, spec)
    made.stage_key = "speed"
    with made.store.create("Dataset", "speed", producer={}) as draft:
        write_dataset(draft.path, workload, SHAPES[shape][-2], sizes)
    assert draft.artifact is not None
    config = hub.resolve_config(spec.model.base).config
    facts = statistics_of(Dataset(draft.artifact.path))
    plan = planner.plan(spec, config, statistics=facts, hardware=hardware.detect(), workspace=workspace)
    made.write_plan(plan.to_json())
    started = time.time()
    notes = train(spec, {"dataset": draft.artifact}, made)["model"].notes
    print(
        "RESULT " + json.dumps(summary(made.events(), notes, plan, warm_up, started, draft.artifact.path)), flush=True
    )


def summary(
    events: Any, notes: dict[str, Any], plan: Any, warm_up: int, started: float, dataset: Path
) -> dict[str, Any]:
    """By the times at which steps were told, so that everything between two of them counts."""
    told: dict[str, dict[int, Any]] = {}
    ends: dict[int, float] = {}
    for event in events:
        if event.step is not None:
            told.setdefault(event.name, {})[event.step] = event.value
            if event.name == "train/loss":
                ends[event.step] = event.time
    tokens = {step: told["train/tokens_per_second"][step] * told["train/step_seconds"][step] for step in ends}
    windows = _windows(sorted(step for step in ends if step > warm_up))
    rates = [sum(tokens[step] for step in window) / (ends[window[-1]] - ends[window[0] - 1]) for window in windows]
    timed = [step for window in windows for step in window]
    single = {event.name: event.value for event in events if event.step is None}
    losses = [told["train/loss"][step] for step in sorted(ends)]
    assert all(loss == loss for loss in losses), "a loss is not a number"
    return {
        "tokens_per_s": statistics.median(rates),
        "windows": [round(rate, 1) for rate in rates],
        "tokens_per_step": statistics.mean(tokens[step] for step in timed),
        "mfu": statistics.median(told["train/mfu"][step] for step in timed),
        "peak_flops": single["train/peak_flops"],
        "reserved_bytes": single["train/peak_memory"],
        "planned_bytes": plan.figures["peak_memory"].value,
        "seconds_to_first_step": round(ends[1] - started, 2),
        "compile_seconds": single.get("train/compile_seconds"),
        "compile_gain": single.get("train/compile_gain"),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        "chosen": {name: notes[name] for name in ("attention", "kernels", "layout", "micro_batch", "gradient_checkpointing")},
        "dataset": str(dataset),
    }  # fmt: skip


def _windows(steps: list[int]) -> list[list[int]]:
    half = len(steps) // WINDOWS
    return [steps[place * half : (place + 1) * half] for place in range(WINDOWS)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        base, kind, work, place, compiled = sys.argv[2:7]
        train_ours(base, kind, work, Path(place), compiled == "True")
    else:
        main()
