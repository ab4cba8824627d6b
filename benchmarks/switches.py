"""What each speed switch is worth on this CPU: full fine-tuning in fp32 of random Llamas, packed rows, one process a size.

Loss: a forward and backward pass with whole logits and by chunks, in turn. Optimizer: an AdamW update fused and not.
Compile: what compiling the decoder layers costs and how much faster a pass becomes. Cache: greedy answers with a dynamic and
a static one. Medians of the repeats. `peak_mib` is the most that tensors take at once during such a pass, on top of what is there
before it (weights), counted by torch's allocator: not a timing, so it is counted once.

    python benchmarks/switches.py [--sizes 8m 30m] [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import store
from train_cpu import SHAPES

ROWS, MEAN = 16, 190  # of a step, and tokens of a row: as in benchmarks/train_cpu.py


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["8m", "30m"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.size:
        print("RESULT " + json.dumps(measure(asked.size, asked.repeats, asked.threads)))
        return
    found = {}
    for size in asked.sizes:
        command = [sys.executable, __file__, "--size", size, "--repeats", str(asked.repeats)]
        done = subprocess.run([*command, "--threads", str(asked.threads)], capture_output=True, text=True, check=False)
        told = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not told:
            raise SystemExit(done.stdout + done.stderr[-4000:])
        found[size] = json.loads(told[0].removeprefix("RESULT "))
        print(size, json.dumps(found[size], indent=1))
    store("switches", {"models": found, "threads": asked.threads, "repeats": asked.repeats, "precision": "fp32"})


def measure(size: str, repeats: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    loop = make_loop(size)
    groups = [loop.order.step(1)]

    def one_pass() -> None:
        loop.accumulate(1, groups, 1.0)
        loop.engine.discard()

    found: dict[str, Any] = {"loss": losses(one_pass, repeats), "optimizer": optimizers(loop, repeats)}
    found["cache"] = caches(loop, size, max(2, repeats // 2))
    found["compile"] = compiled(loop, one_pass, repeats)
    return found


def make_loop(size: str) -> Any:
    """The train stage's loop around a random model and rows of random ids."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.modeling.dropout import StepContext
    from tunesmith.modeling.packing import choose_layout
    from tunesmith.recipe import parse_recipe
    from tunesmith.runs.dataset import Dataset, DatasetWriter
    from tunesmith.stages.train.batches import Order
    from tunesmith.stages.train.engines import make_engine
    from tunesmith.stages.train.loop import Loop
    from tunesmith.stages.train.optimizer import make_optimizer

    hidden, feed_forward, layers, heads, vocabulary, _ = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        draw, writer = np.random.default_rng(0), DatasetWriter(Path(folder))
        for row in range(ROWS * 2):
            length = int(np.clip(draw.lognormal(np.log(MEAN) - 0.3, 0.8), 16, 512))
            ids = draw.integers(2, vocabulary, length).astype(np.int32)
            writer.add(ids, [[length // 2, length, 1.0]], row, "train")
        writer.close(ledger=[])
        dataset = Dataset(Path(folder))
        dataset.lengths()
        recipe = parse_recipe("{data: {sources: rows.jsonl}}", ["adapter=full", f"train.batch_size={ROWS}"])
        assert choose_layout(model, 512) == "packed"
        engine = make_engine(recipe.train)
        model = engine.wrap(model.train(), lambda parameters: make_optimizer(parameters, recipe.train))
        order = Order.of(dataset.split("train"), 17, recipe.train)
        loop = Loop(
            recipe.train, dataset, order, model, engine, StepContext(17), budget_tokens=2**30, layout="packed"
        )  # fmt: skip
        loop.accumulate(1, [order.step(1)], 1.0)  # maps the files before their folder goes
        loop.engine.discard()
    return loop


def losses(one_pass: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Whole logits and chunks in turn: seconds, and the tensors that live at once."""
    from tunesmith.stages.train import objectives

    chunked = objectives.learned_hidden
    ways = {"whole": lambda model, batch: None, "chunked": chunked}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            objectives.learned_hidden = way  # type: ignore[assignment]
            spent = timed(one_pass)
            seconds[name] += [spent] if repeat else []
            if repeat == repeats:
                peaks[f"{name}_peak_mib"] = round(peak_bytes(one_pass) / 2**20, 1)
    objectives.learned_hidden = chunked
    told = {f"{name}_s": round(statistics.median(spent), 4) for name, spent in seconds.items()}
    pairs = zip(seconds["whole"], seconds["chunked"], strict=True)
    share = peaks["chunked_peak_mib"] / peaks["whole_peak_mib"]
    return {
        **told,
        "gain": round(statistics.median(a / b for a, b in pairs), 3),
        **peaks,
        "peak_share": round(share, 3),
    }


def peak_bytes(call: Callable[[], None]) -> int:
    """The most that tensors made by `call` take at once: allocations and frees in their order."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    told = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert told, "torch's profiler tells of every allocation"
    held = highest = 0
    for event in sorted(told, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def optimizers(loop: Any, repeats: int) -> dict[str, float]:
    import torch

    parameters = [torch.nn.Parameter(p.detach().clone()) for _, p in loop.engine.parameters]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    ways = {"fused": {"fused": True}, "foreach": {"foreach": True}}
    made = {name: torch.optim.AdamW(parameters, lr=1e-4, **way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, optimizer in made.items():
            spent = timed(optimizer.step)
            seconds[name] += [spent] if repeat else []
    told = {f"{name}_ms": round(1000 * statistics.median(spent), 3) for name, spent in seconds.items()}
    return {**told, "gain": round(told["foreach_ms"] / told["fused_ms"], 3)}


def caches(loop: Any, size: str, repeats: int) -> dict[str, float]:
    """Eight prompts of 24 tokens, 48 new tokens each."""
    from types import SimpleNamespace

    from tunesmith.scoring.generation import generate_greedy
    from tunesmith.scoring.items import Item

    items = [Item(row, "test", (), "", [2 + (7 * row + place) % 500 for place in range(24)]) for row in range(8)]
    nobody = SimpleNamespace(pad_id=0, stop_ids=(), decode=lambda ids: "")
    loop.model.eval()
    seconds: dict[str, list[float]] = {"dynamic": [], "static": []}
    for repeat in range(repeats + 1):
        for name, spent in seconds.items():
            took = timed(
                lambda name=name: generate_greedy(
                    loop.model, nobody, items, max_new_tokens=48, batch_size=8, cache=name
                )
            )
            spent += [took] if repeat else []
    loop.model.train()
    told = {f"{name}_tokens_per_s": round(8 * 48 / statistics.median(spent), 1) for name, spent in seconds.items()}
    return {**told, "gain": round(told["static_tokens_per_s"] / told["dynamic_tokens_per_s"], 3)}


def compiled(loop: Any, one_pass: Callable[[], None], repeats: int) -> dict[str, float]:
    """In an empty cache of compiled programs, so that nothing is found there."""
    from tunesmith.modeling.compile import compile_layers, eagerly, graphs_compiled

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        compile_layers(loop.model)
        first = timed(one_pass)
        seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
        for _ in range(repeats):
            with eagerly():
                seconds["eager"].append(timed(one_pass))
            seconds["compiled"].append(timed(one_pass))
    eager, fast = (statistics.median(seconds[name]) for name in ("eager", "compiled"))
    return {
        "compile_s": round(first - fast, 2),
        "eager_s": round(eager, 4),
        "compiled_s": round(fast, 4),
        "gain": round(eager / fast, 3),
        "pays_after_passes": round((first - fast) / (eager - fast)) if eager > fast else -1,
        "graphs": graphs_compiled(),
    }


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
