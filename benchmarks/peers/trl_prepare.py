"""One side of benchmarks/prepare.py: how long TRL's SFTTrainer takes from a JSONL file of chats to its packed dataset.

Runs in an environment of its own (trl, datasets, transformers, torch). Imports, the tokenizer and a tiny random model are
loaded before the clock starts. Caches are those of the folder given, which is new. Prints one line, RESULT and a JSON object.

    python benchmarks/peers/trl_prepare.py ROWS.jsonl MODEL SCRATCH --length 1024 --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib import metadata
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--length", type=int, required=True, help="tokens of a packed row")
    parser.add_argument("--workers", type=int, required=True)
    asked = parser.parse_args()
    os.environ |= {"HF_DATASETS_CACHE": str(asked.scratch / "cache"), "HF_HUB_OFFLINE": "1"}

    import numpy as np
    from datasets import load_dataset
    from documents import save
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(asked.model))
    config = SFTConfig(
        output_dir=str(asked.scratch / "out"),
        packing=True,
        max_length=asked.length,
        assistant_only_loss=True,
        dataset_num_proc=asked.workers if asked.workers > 1 else None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    began, start = time.time(), time.perf_counter()
    rows = load_dataset("json", data_files=str(asked.rows), split="train")
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    wall = time.perf_counter() - start

    packed = trainer.train_dataset
    table = packed.with_format("arrow")[:]
    columns = {
        name: table[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "labels", "seq_lengths")
    }
    offsets = np.concatenate([[0], np.cumsum(columns["seq_lengths"], dtype=np.int64)])
    save(
        asked.scratch / "documents", columns["input_ids"].astype(np.int32), columns["labels"].astype(np.int32), offsets
    )
    versions = {name: metadata.version(name) for name in ("trl", "transformers", "datasets", "tokenizers")}
    found = {"began": began, "wall_s": wall, "read": len(rows), "packed_rows": len(packed), "versions": versions}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
