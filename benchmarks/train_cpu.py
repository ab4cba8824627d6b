"""Training speed on the CPU: full fine-tuning in fp32 of models of 1, 8 and 30 M parameters, beside TRL at its fastest way.

Both sides train on the same ids and learn the same tokens (real instruction rows under TUNESMITH_TEST_DATA), each in a
process of its own, in turn: ours, TRL, ours, TRL ... TRL lays out short rows in the fastest of its documented ways, found
by one look at each. The first step of each process warms up and is not counted; loading and preparing are not counted
either. `share` is the time that the step's matrix multiplications take alone, by `torch.mm` at those very shapes, over the
time of the whole step: what is left to gain is 1 - share.

    python benchmarks/train_cpu.py --peer PATH/TO/PYTHON_WITH_TRL [--sizes 1m 8m 30m] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from peers.trl_sft import WAYS
from record import RESULTS, ROOT, store

# hidden, feed-forward, layers, heads, vocabulary; steps: timed in each process.
SHAPES = {
    "1m": (128, 352, 4, 4, 2048, 12),
    "8m": (256, 704, 8, 4, 8192, 5),
    "30m": (512, 1408, 8, 8, 16384, 3),
}
MAX_TOKENS, BATCH_SIZE = 512, 16
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RECIPE = """
name: speed
model: {{base: {model}, precision: fp32}}
adapter: full
data:
  sources: {rows}
  max_tokens: {max_tokens}
  filters: {{length: null, quality: null}}
  split: {{validation: 0, test: 0}}
train: {{batch_size: {batch_size}, max_steps: {steps}, learning_rate: 3.0e-4, save_every: 100000, keep: last, threads: {threads}}}
track: []
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True, help="a Python that has trl, datasets, transformers and torch")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    stored = RESULTS / "train-cpu.json"
    known = json.loads(stored.read_text())["models"] if stored.exists() else {}
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            known[size] = compare(size, Path(scratch), asked)
        models = {name: known[name] for name in SHAPES if name in known}
        store("train-cpu", {"models": models, "threads": asked.threads, "precision": "fp32", "method": "full"})


def compare(size: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn; medians, minima and the ratio pair by pair."""
    rows, model = write_rows(folder), make_model(folder, size)
    steps = SHAPES[size][-1]
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(
            model=model, rows=rows, max_tokens=MAX_TOKENS, batch_size=BATCH_SIZE, steps=steps + 1, threads=asked.threads
        )
    )
    ours, theirs = [], []
    way = ""
    share: dict[str, float] = {}
    for repeat in range(asked.repeats):
        own = worker([sys.executable, __file__, "--ours", str(recipe), str(folder / f"work-{repeat}"), str(repeat)])
        ours.append(own)
        share = own.get("matmul") or share
        command = [asked.peer, str(ROOT / "benchmarks/peers/trl_sft.py"), str(model), own["dataset"]]
        command += ["--tokens", str(round(own["tokens_per_step"])), "--length", str(MAX_TOKENS)]
        command += ["--rows", str(BATCH_SIZE), "--steps", str(steps), "--threads", str(asked.threads)]
        if not way:
            tried = {name: worker([*command, "--way", name])["learned_per_s"] for name in WAYS}
            way = max(tried, key=tried.__getitem__)
            print(f"{size}: TRL's ways, learned tokens/s: {tried}")
        theirs.append(worker([*command, "--way", way]))
        print(f"{size} {repeat + 1}/{asked.repeats}: {own['tokens_per_s']:.0f} beside {theirs[-1]['tokens_per_s']:.0f}")
    one, two = ([side["tokens_per_s"] for side in sides] for sides in (ours, theirs))
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    return {
        "parameters": own["parameters"],
        "tokens_per_s": round(statistics.median(one), 1),
        "trl_tokens_per_s": round(statistics.median(two), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "best_tokens_per_s": round(max(one), 1),
        "trl_best_tokens_per_s": round(max(two), 1),
        "learned_per_s": round(statistics.median(side["learned_per_s"] for side in ours), 1),
        "trl_learned_per_s": round(statistics.median(side["learned_per_s"] for side in theirs), 1),
        "tokens_per_step": round(own["tokens_per_step"]),
        "trl_tokens_per_step": round(theirs[-1]["tokens_per_step"]),
        "repeats": asked.repeats,
        "layout": own["layout"],
        "trl_way": way,
        "trl_ways_learned_per_s": {name: round(value, 1) for name, value in tried.items()},
        **share,
        "trl": theirs[-1]["versions"],
    }


def worker(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


# ------------------------------------------------------------------------------------------------------------ the input


def write_rows(folder: Path) -> Path:
    """About 2,000 real instruction rows as prompt and completion."""
    data = Path(os.environ["TUNESMITH_TEST_DATA"]) / "data"
    with (data / "instruct/dolly_hhrlhf_small.jsonl").open() as file:
        pairs = [(row["prompt"], row["response"]) for row in map(json.loads, file)]
    for row in json.loads((data / "instruct/llamafactory/alpaca_en_demo.json").read_bytes()):
        pairs.append((f"{row['instruction']}\n{row['input']}".strip(), row["output"]))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": asked, "completion": told}) + "\n" for asked, told in pairs))
    return path


def make_model(folder: Path, size: str) -> Path:
    """A random Llama of that shape with a BPE tokenizer trained on the rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, feed_forward, layers, heads, vocabulary, _ = SHAPES[size]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (" ".join(json.loads(line).values()) for line in (folder / "rows.jsonl").open())
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    path = folder / size
    wrapped.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


# ------------------------------------------------------------------------------------------------------------- our side


def train_ours(recipe: str, workspace: str, repeat: int) -> None:
    """The real train stage; its own events tell the times. In the first repeat one more step has its multiplications
    recorded, outside of the timed ones."""
    import tunesmith
    from tunesmith.runs.dataset import Dataset

    overrides = ["train.max_steps=" + str(_steps(recipe) + 1)] if repeat == 0 else []
    recorder = record_last_step(_steps(recipe) + 1) if repeat == 0 else None
    outcome = tunesmith.train(recipe, workspace=workspace, overrides=overrides)
    events = outcome.run.events()
    seconds = [event.value for event in events if event.name == "train/step_seconds"]
    rates = [event.value for event in events if event.name == "train/tokens_per_second"]
    last = len(seconds) - (recorder is not None)
    counted = [(s, s * rate) for s, rate in zip(seconds[1:last], rates[1:last], strict=True)]
    spent, tokens = (sum(values) for values in zip(*counted, strict=True))
    dataset = outcome.run.outputs("prepare")["dataset"].path
    statistics_ = Dataset(dataset).statistics["splits"]["train"]
    notes = outcome.run.outputs("train")["model"].notes
    told = {
        "tokens_per_s": tokens / spent,
        "learned_per_s": tokens / spent * statistics_["learned_tokens"] / statistics_["tokens"],
        "tokens_per_step": tokens / len(counted),
        "dataset": str(dataset),
        "parameters": _parameters(outcome.run.recipe.model.base),
        "layout": notes["layout"],
    }
    if recorder is not None:
        told["matmul"] = recorder.summary(spent / tokens * recorder.tokens)
    print("RESULT " + json.dumps(told), flush=True)


def _steps(recipe: str) -> int:
    from tunesmith.recipe import load_recipe

    return load_recipe(recipe).train.max_steps or 0


def _parameters(folder: str) -> int:
    from safetensors import safe_open

    with safe_open(str(Path(folder) / "model.safetensors"), "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no iterator)


def record_last_step(last: int) -> Any:
    """Wraps the loop's step so that the last one is run under a recorder of its matrix multiplications."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from tunesmith.stages.train import loop

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: Counter[tuple[Any, ...]] = Counter()
            self.tokens = 0

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                one, two = arguments
                self.shapes[tuple(one.shape), one.stride(), tuple(two.shape), two.stride()] += 1
            return function(*arguments, **(options or {}))

        def summary(self, step_seconds: float) -> dict[str, float]:
            """step_seconds: of a whole step with as many tokens as the recorded one."""
            seconds, flops = 0.0, 0
            for (shape, stride, other, other_stride), count in self.shapes.items():
                one, two = (torch.empty(0).set_(torch.randn(n * m).untyped_storage(), 0, (n, m), s)
                            for (n, m), s in ((shape, stride), (other, other_stride)))  # fmt: skip
                seconds += count * _time(lambda a=one, b=two: torch.mm(a, b))
                flops += count * 2 * shape[0] * shape[1] * other[1]
            return {
                "share": round(seconds / step_seconds, 3),
                "matmul_gflop_per_s": round(flops / step_seconds / 1e9, 1),
                "mm_alone_gflop_per_s": round(flops / seconds / 1e9, 1),
            }

    recorder, step = Recorder(), loop.Loop.step

    def recorded(self: Any, number: int) -> Any:
        if number != last:
            return step(self, number)
        with recorder:
            result = step(self, number)
        recorder.tokens = result.tokens
        return result

    loop.Loop.step = recorded  # type: ignore[method-assign]
    return recorder


def _time(call: Any) -> float:
    """Median seconds of some calls."""
    call()
    times = []
    for _ in range(7):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        train_ours(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
