"""One side of benchmarks/train_cpu.py and train.py: TRL's SFTTrainer at its documented settings, on a Dataset's tokens.

Runs in an environment of its own (trl, datasets, transformers, torch); reads the Dataset with numpy alone, so that both
sides train on the same ids and learn the same tokens. Prints one JSON line.

    python benchmarks/peers/trl_sft.py MODEL DATASET --tokens 3000 --length 512 --rows 16 --steps 6 --threads 2 --way wrapped
    ... --device cuda --rank 16 --liger [--checkpointing] --warm-up 10       LoRA in bf16 on a GPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

# The ways that TRL documents to lay short rows into a batch, and what each sets in SFTConfig.
WAYS = {
    "bfd": {"packing": True, "packing_strategy": "bfd"},  # whole rows end to end, padding-free
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},  # rows cut at max_length, attending across rows
    "by length": {
        "packing": False,
        "train_sampling_strategy": "group_by_length",
    },  # padded, rows of like length together
}


def rows_of(folder: Path) -> list[dict[str, list[int]]]:
    """{"input_ids", "completion_mask"} of each training example of a Dataset folder."""
    tokens, sequences, offsets, spans = (
        np.load(folder / f"{name}.npy") for name in ("tokens", "sequences", "span_offsets", "spans")
    )
    rows = []
    for number in range(len(sequences) - 1):
        ids = tokens[sequences[number] : sequences[number + 1]]
        mask = np.zeros(len(ids), np.int64)
        for start, end in spans[offsets[number] : offsets[number + 1]]:
            mask[start:end] = 1
        rows.append({"input_ids": ids.tolist(), "completion_mask": mask.tolist()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--tokens", type=int, required=True, help="real tokens per step to come near to")
    parser.add_argument("--length", type=int, required=True, help="tokens of a packed row")
    parser.add_argument(
        "--rows", type=int, required=True, help="rows per step that are as many tokens, where not packed"
    )
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warm-up", type=int, default=1, help="steps that are not timed")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rank", type=int, help="of a LoRA adapter on all projections; without it all weights train")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    asked = parser.parse_args()
    on_gpu = asked.device == "cuda"

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(asked.threads)
    seconds: list[float] = []
    tokens: list[int] = []
    learned: list[int] = []
    ends: list[float] = []  # of the steps at which the device was waited for: the ends of the windows
    first_step: list[float] = []
    windows = {asked.warm_up, asked.warm_up + asked.steps // 2, asked.warm_up + asked.steps // 2 * 2}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            done = len(seconds) + 1
            if on_gpu and (done in windows or done == 1):
                torch.cuda.synchronize()
            now = time.perf_counter()
            seconds.append(now - self.started)
            first_step.append(now)
            if done in windows:
                ends.append(now)

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, *rest, **options):  # type: ignore[no-untyped-def]
            mask = inputs.get("attention_mask")  # padding is not counted
            # Read when all steps are done: to ask a GPU for a number is to wait for it.
            tokens.append(mask.sum() if mask is not None else inputs["input_ids"].numel())
            learned.append((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *rest, **options)

    packed = WAYS[asked.way]["packing"]
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            **WAYS[asked.way],
            max_length=asked.length,
            completion_only_loss=True,
            per_device_train_batch_size=max(1, round(asked.tokens / asked.length)) if packed else asked.rows,
            max_steps=asked.steps + asked.warm_up,
            learning_rate=3e-4,
            optim="adamw_torch_fused",
            bf16=on_gpu,
            use_cpu=not on_gpu,
            use_liger_kernel=asked.liger,
            gradient_checkpointing=asked.checkpointing,
            dataloader_num_workers=2 if on_gpu else 0,
            save_strategy="no",
            report_to=[],
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = Counting(
            # A model by its name would come in fp32.
            model=AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16 if on_gpu else torch.float32),
            args=config,
            peft_config=_adapter(asked.rank),
            train_dataset=Dataset.from_list(rows_of(asked.dataset)),
            processing_class=AutoTokenizer.from_pretrained(asked.model),
            callbacks=[Clock()],
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        trainer.train()
    tokens, learned = ([int(count) for count in counts] for counts in (tokens, learned))
    first = asked.warm_up
    told = {
        "tokens_per_s": sum(tokens[first:]) / sum(seconds[first:]),
        "learned_per_s": sum(learned[first:]) / sum(seconds[first:]),
        "tokens_per_step": sum(tokens[first:]) / len(tokens[first:]),
        "steps": len(seconds) - first,
        **_windows(tokens, ends, first),
        "seconds_to_first_step": round(first_step[0] - started, 2),
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "versions": {name: metadata.version(name) for name in ("trl", "transformers", "torch")},
    }
    if on_gpu:  # steps are told before the device has done them: only windows count
        told["tokens_per_s"] = statistics.median(told["windows"])
        told["learned_per_s"] = told["tokens_per_s"] * sum(learned[first:]) / sum(tokens[first:])
    print("RESULT " + json.dumps(told), flush=True)


def _windows(tokens: list[int], ends: list[float], first: int) -> dict[str, list[float]]:
    """Tokens per second of each window, everything between its ends included."""
    size = (len(tokens) - first) // max(1, len(ends) - 1)
    parts = [tokens[first + place * size : first + (place + 1) * size] for place in range(len(ends) - 1)]
    return {"windows": [round(sum(p) / (b - a), 1) for p, a, b in zip(parts, ends[:-1], ends[1:], strict=True)]}


def _adapter(rank: int | None):  # type: ignore[no-untyped-def]
    if rank is None:
        return None
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")


if __name__ == "__main__":
    main()
