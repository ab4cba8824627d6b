"""One side of benchmarks/prepare.py: how long LLaMA-Factory takes from a JSONL file of chats to its packed dataset (`get_dataset`).

Runs in an environment of its own (llamafactory). Imports, arguments and the tokenizer are loaded before the clock starts.
The template is registered as LLaMA-Factory documents it, with the text of the model's own. Caches are those of the folder
given, which is new. Prints one line, RESULT and a JSON object.

    python benchmarks/peers/llamafactory_prepare.py ROWS.jsonl MODEL SCRATCH --length 1024 --workers 2
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
import types
from importlib import metadata
from pathlib import Path

# As its data/README.md says for the messages form.
DATASET = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


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
    import peft  # noqa: F401  (before the stand-in, so that it and transformers see what is really installed)
    import transformers  # noqa: F401

    _stand_in_for_torchaudio()
    from documents import save
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    _register_template()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    info = {"rows": {"file_name": str(asked.rows.resolve()), **DATASET}}
    (asked.scratch / "dataset_info.json").write_text(json.dumps(info))
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": str(asked.model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "rows",
            "dataset_dir": str(asked.scratch),
            "template": "own",
            "cutoff_len": asked.length,
            "packing": True,
            "neat_packing": True,
            "preprocessing_num_workers": asked.workers,
            "overwrite_cache": True,
            "output_dir": str(asked.scratch / "out"),
            "report_to": "none",
            "disable_tqdm": True,
        }
    )
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    began, start = time.time(), time.perf_counter()
    made = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)
    wall = time.perf_counter() - start

    packed = made["train_dataset"]
    table = packed.with_format("arrow")[:]
    ids, labels, document = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "labels", "attention_mask")
    )
    # neat_packing numbers the documents of a packed row from 1; 0 is padding.
    number = document + np.repeat(np.arange(len(packed), dtype=np.int64), len(ids) // len(packed)) * (asked.length + 2)
    kept = document > 0
    starts = np.flatnonzero(np.diff(number[kept], prepend=-1))
    offsets = np.concatenate([starts, [int(kept.sum())]]).astype(np.int64)
    save(asked.scratch / "documents", ids[kept].astype(np.int32), labels[kept].astype(np.int32), offsets)
    versions = {name: metadata.version(name) for name in ("llamafactory", "transformers", "datasets", "tokenizers")}
    found = {"began": began, "wall_s": wall, "packed_rows": len(packed), "versions": versions}
    print("RESULT " + json.dumps(found))


def _stand_in_for_torchaudio() -> None:
    """llamafactory imports it for audio inputs; where it is absent (its wheels are CUDA builds), text needs a name only."""
    if importlib.util.find_spec("torchaudio") is None:
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def _register_template() -> None:
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template

    register_template(
        name="own",
        format_user=StringFormatter(slots=["<|im_start|>user\n{{content}}<|im_end|><|im_start|>assistant\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
        format_system=StringFormatter(slots=["<|im_start|>system\n{{content}}<|im_end|>"]),
        stop_words=["<|im_end|>"],
        replace_eos=True,
    )


if __name__ == "__main__":
    main()
