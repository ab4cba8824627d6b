"""One side of benchmarks/train_cpu.py: TRL's SFTTrainer at its documented settings, on a Dataset's tokens.

Runs in an environment of its own (trl, datasets, transformers, torch); reads the Dataset with numpy alone, so that both
sides train on the same ids and learn the same tokens. Prints one JSON line.

    python benchmarks/peers/trl_sft.py MODEL DATASET --tokens 3000 --steps 6 --threads 2 --way wrapped
"""

from __future__ import annotations

import argparse
import json
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
    asked = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(asked.threads)
    seconds: list[float] = []
    tokens: list[int] = []
    learned: list[int] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.started)

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, *rest, **options):  # type: ignore[no-untyped-def]
            mask = inputs.get("attention_mask")  # padding is not counted
            tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            learned.append(int((inputs["labels"] != -100).sum()))
            return super().training_step(model, inputs, *rest, **options)

    packed = WAYS[asked.way]["packing"]
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            **WAYS[asked.way],
            max_length=asked.length,
            completion_only_loss=True,
            per_device_train_batch_size=max(1, round(asked.tokens / asked.length)) if packed else asked.rows,
            max_steps=asked.steps + 1,
            learning_rate=3e-4,
            optim="adamw_torch_fused",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = Counting(
            model=AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows_of(asked.dataset)),
            processing_class=AutoTokenizer.from_pretrained(asked.model),
            callbacks=[Clock()],
        )
        trainer.train()
    told = {
        "tokens_per_s": sum(tokens[1:]) / sum(seconds[1:]),  # the first step warms up
        "learned_per_s": sum(learned[1:]) / sum(seconds[1:]),
        "tokens_per_step": sum(tokens[1:]) / len(tokens[1:]),
        "steps": len(seconds) - 1,
        "versions": {name: metadata.version(name) for name in ("trl", "transformers", "torch")},
    }
    print("RESULT " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
