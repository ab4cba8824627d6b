"""Preparation from a JSONL file of chats to a Dataset, beside TRL's and LLaMA-Factory's own and beside a floor -> results/prepare.json.

All sides get the same file, tokenizer and chat template, and packing is on for the peers; ours is a Dataset and the plan
of every training step of an epoch (which examples, in which micro-batches). Imports are made before any clock starts and
process starts are stated apart (`started_s`); what a side starts within its time, such as our workers, is part of it.
Each measurement is a process of its own with new caches; quick sides go in turn, floor, ours, floor, ours ..., and their
medians count. Of the peers each number of workers is tried and the best counts. Memory that forked workers share is
counted in each of them.

Ids and labels are compared in the same run: every document of each side, unpacked, as a multiset.

The floor parses with orjson, joins the text of each chat by hand, encodes it with the same fast tokenizer on all threads
and writes Arrow IPC: no checks, no labels, no ledger. `bare_hf` is `encode_batch_fast` of `tokenizers` alone on that text.

    python benchmarks/prepare.py --trl PYTHON --llamafactory PYTHON [--rows 100000] [--big 1000000] [--tokenizer FOLDER]

Without --tokenizer it is `minimind` under TUNESMITH_TEST_DATA. gigatoken must be importable for the fast tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from chats import write_chats
from peers.documents import compare, load, of_dataset
from record import ROOT, store
from watched import SideFailed, run_side

LENGTH = 1024  # tokens of a packed row, and the longest document
BATCH = 8192  # chats that the floor encodes at a time
# ChatML without the line end behind <|im_end|>: LLaMA-Factory learns all that its template puts behind an answer, the
# others stop at the end token, so that this form is the one that all three can express.
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
WHOLE = {"split": {"validation": 0, "test": 0}}
# What `data` of the recipe holds besides the source and max_tokens.
MODES: dict[str, dict[str, Any]] = {
    "plain": {  # what the peers do: no filter, no duplicates, no leaks, no split
        "filters": {
            "length": None,
            "quality": None,
            "control_characters": "off",
            "secrets": {"api_keys": "off", "private_keys": "off", "tokens": "off"},
        },
        "deduplicate": "none",
        "leaks": "keep",
        **WHOLE,
    },
    "default": {},  # as a user gets it: length, secrets flagged, exact duplicates, leaks, two held-out parts
    "cleaned": {  # all cleaning but language and model-based steps; near-duplicates, leaks by likeness and by runs of words
        "filters": {
            "control_characters": "remove",
            "residue": {},
            "refusals": {},
            "repetition": {},
            "where": ["characters >= 20"],
            "secrets": {"api_keys": "redact", "private_keys": "redact", "tokens": "redact"},
            "pii": {name: "redact" for name in ("email", "phone", "iban", "card", "ip", "national_id")},
            "accept_drop_share": 1.0,
        },
        "deduplicate": {"type": "near"},
        "leaks": {"type": "drop", "near": 0.8, "overlap": 0.5},
    },
}
MODES["scored"] = {
    **MODES["cleaned"],
    "quality": {"type": "heuristics"},
}  # and a score of each answer by rules of thumb
MODES["fallback"] = MODES["plain"]  # by `tokenizers`: its process cannot import gigatoken
SLOW = ("fallback", "bare_hf")
# Loaded before the clock starts, where they are installed.
IMPORTS = (
    "numpy", "orjson", "pyarrow", "pyarrow.ipc", "pyarrow.compute", "pyarrow.parquet", "daft", "jinja2", "tokenizers",
    "transformers", "transformers.models.auto.tokenization_auto", "transformers.models.llama.configuration_llama", "gigatoken", "awkward", "rensa", "tunesmith.runner",
    "tunesmith.tracking", "tunesmith.report", "tunesmith.stages.prepare.run", "tunesmith.stages.prepare.externals",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl", help="a Python that has trl")
    parser.add_argument("--llamafactory", help="a Python that has llamafactory")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--big", type=int, default=1_000_000, help="rows of a second input for ours and the floor; 0: none"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeats", type=int, default=3, help="of the quick sides")
    parser.add_argument("--peer-repeats", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the peers, each tried")
    parser.add_argument("--dry", action="store_true", help="print, store nothing")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        name, folder, rows = asked.side
        print("RESULT " + json.dumps(SIDES[name](Path(folder), Path(rows))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(asked, Path(scratch))
    print(json.dumps(figures, indent=1))
    sides = figures["sides"] | {f"big {name}": side for name, side in figures.get("big", {}).get("sides", {}).items()}
    failed = [name for name, side in sides.items() if "failed" in side or "failed_runs" in side]
    if failed:
        raise SystemExit(f"nothing is stored: {', '.join(failed)} failed")
    if not asked.dry:
        store("prepare", figures)


def measure(asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    model = make_model(scratch / "model", asked.tokenizer or default_tokenizer())
    rows = scratch / "rows.jsonl"
    size = write_chats(rows, asked.rows)
    peers = {name: python for name in ("trl", "llamafactory") if (python := getattr(asked, name))}
    found: dict[str, list[dict[str, Any]]] = {}
    for repeat in range(asked.repeats):
        for name in ("floor", *asked.modes, "bare_hf"):
            if repeat == 0 or name not in SLOW:
                take(found, name, partial(ours, name, scratch / f"{name}-{repeat}", rows, model))
    for _ in range(asked.peer_repeats):
        for name, python in peers.items():
            for workers in asked.workers:
                side = f"{name}, {workers} {'worker' if workers == 1 else 'workers'}"
                folder = scratch / side.replace(", ", "-").replace(" ", "-")
                take(found, side, partial(peer, python, name, rows, model, folder, workers))
    sides = {name: summary(runs, asked.rows, size) for name, runs in found.items()}
    figures = headline(sides, asked.rows) | equality(scratch, peers, sides)
    if asked.big:
        figures["big"] = big(asked, scratch, model)
    return figures | {
        "bytes": size,
        "bytes_per_row": round(size / asked.rows, 1),
        "sides": sides,
        "settings": {
            "tokenizer": (asked.tokenizer or default_tokenizer()).name,
            "template": TEMPLATE,
            "length": LENGTH,
            "packing": {
                "trl": "bfd",
                "llamafactory": "neat_packing",
                "tunesmith": "micro-batches of every step, packed",
            },
            "modes": {name: MODES[name] for name in asked.modes},
            "cores": len(os.sched_getaffinity(0)),
            "repeats": asked.repeats,
            "peer_repeats": asked.peer_repeats,
        },
        "versions": {name: version(name) for name in ("gigatoken", "tokenizers", "pyarrow", "daft", "orjson")},
    }


def take(found: dict[str, list[dict[str, Any]]], name: str, run: Callable[[], dict[str, Any]]) -> None:
    """One measurement more of a side; a side that fails says so in its place and ends nothing."""
    try:
        found.setdefault(name, []).append(run())
    except SideFailed as error:
        found.setdefault(name, []).append({"failed": str(error)})
    last = found[name][-1]
    print(
        f"{name:28} {last['wall_s']:8.2f} s" if "wall_s" in last else f"{name:28} failed: {last['failed']}", flush=True
    )


# --------------------------------------------------------------------------------------------------- one measurement


def ours(name: str, folder: Path, rows: Path, model: Path) -> dict[str, Any]:
    """The floor, bare_hf, or a mode of ours with its step plan, in processes of their own."""
    if name in ("floor", "bare_hf"):
        folder.mkdir()
        (folder / "tokenizer").symlink_to(model)
        return side(name, folder, rows)
    made = prepared(folder, rows, model, MODES[name], hide="gigatoken" if name == "fallback" else None)
    plan = side("plan", folder, rows)
    made |= {"prepare_s": made["wall_s"], "plan_s": plan["wall_s"], "wall_s": made["wall_s"] + plan["wall_s"]}
    return made | {"steps": plan["steps"], "micro_batches": plan["micro_batches"]}


def prepared(folder: Path, rows: Path, model: Path, data: dict[str, Any], hide: str | None = None) -> dict[str, Any]:
    """One preparation of ours in a new workspace of its own. hide: a package that its processes cannot import."""
    folder.mkdir()
    shadows = folder / "without"
    if hide:
        shadows.mkdir()
        (shadows / f"{hide}.py").write_text('raise ImportError("this side goes without it")\n')
    recipe = {
        "name": "speed",
        "model": {"base": str(model)},
        "data": {"sources": [str(rows)], "max_tokens": LENGTH, **data},
        "track": {"to": []},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return side("prepare", folder, rows, [shadows] if hide else [])


def side(name: str, folder: Path, rows: Path, ahead: Sequence[Path] = ()) -> dict[str, Any]:
    """A function of SIDES in a process of its own. ahead: folders that its imports look at first."""
    paths = [*map(str, ahead), os.environ.get("PYTHONPATH", ""), str(ROOT / "src")]
    command = [sys.executable, str(Path(__file__).resolve()), "--side", name, str(folder), str(rows)]
    return run_side(command, {"PYTHONPATH": os.pathsep.join(filter(None, paths))})


def peer(python: str, name: str, rows: Path, model: Path, folder: Path, workers: int) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    script = Path(__file__).parent / "peers" / f"{name}_prepare.py"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            python,
            str(script),
            str(rows),
            str(model),
            scratch,
            "--length",
            str(LENGTH),
            "--workers",
            str(workers),
        ]
        # The peers' processes must not see our source tree or overlays.
        found = run_side(command, {"PYTHONPATH": ""})
        if not (folder / "documents").exists():  # of the first repeat
            (Path(scratch) / "documents").replace(folder / "documents")
    return found


def prepare_side(folder: Path, rows: Path) -> dict[str, Any]:
    """What `tunesmith prepare` does, by the API; the process ends with the Dataset on disk."""
    load_modules()
    import tunesmith

    began, start = time.time(), time.perf_counter()
    tunesmith.prepare(folder / "recipe.yaml", workspace=folder / "work", quiet=True)
    wall = time.perf_counter() - start
    made = dataset_of(folder)
    counts = json.loads((made / "dataset.json").read_bytes())
    found = {"began": began, "wall_s": wall, "examples": counts["examples"], "tokens": counts["tokens"]}
    return found | {"tokenizer": tokenizer_used(folder)}


def tokenizer_used(folder: Path) -> str:
    """What this process encodes this model's tokenizer with, and why: the proof made again."""
    from tokenizers import Tokenizer

    from tunesmith.text.fast import best_encoder

    base = json.loads((folder / "recipe.yaml").read_bytes())["model"]["base"]
    _, proof = best_encoder(Tokenizer.from_file(str(Path(base) / "tokenizer.json")))
    return f"{'gigatoken' if proof.fast else 'tokenizers'}: {proof.why}"


def plan_side(folder: Path, rows: Path) -> dict[str, Any]:
    """Every step of an epoch: its examples, laid out in packed micro-batches."""
    from tunesmith.modeling.forward import micro_batches
    from tunesmith.recipe import load_recipe
    from tunesmith.runs.dataset import Dataset
    from tunesmith.stages.train.batches import Order

    spec = load_recipe(folder / "recipe.yaml")
    began, start = time.time(), time.perf_counter()
    dataset = Dataset(dataset_of(folder))
    lengths = dataset.lengths()
    order = Order.of(
        dataset.split("train"), spec.seed, spec.train.model_copy(update={"epochs": 1.0, "max_steps": None})
    )
    made = sum(
        len(micro_batches(order.step(number), lengths, LENGTH, "packed")) for number in range(1, order.num_steps + 1)
    )
    wall = time.perf_counter() - start
    return {"began": began, "wall_s": wall, "steps": order.num_steps, "micro_batches": made}


def floor_side(folder: Path, rows: Path) -> dict[str, Any]:
    load_modules()
    import gigatoken
    import numpy as np
    import pyarrow as pa

    began, start = time.time(), time.perf_counter()
    tokenizer = gigatoken.Tokenizer(folder / "tokenizer" / "tokenizer.json")
    schema = pa.schema([("ids", pa.large_list(pa.int32()))])
    tokens = 0
    with pa.OSFile(str(folder / "floor.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for texts in rendered(rows):
            layout = tokenizer.encode_batch(texts, parallel=True).layout
            offsets = np.asarray(layout.offsets.data, np.int64)
            ids = pa.array(np.asarray(layout.content.data).view(np.int32))
            writer.write_batch(pa.record_batch([pa.LargeListArray.from_arrays(pa.array(offsets), ids)], schema=schema))
            tokens += int(offsets[-1] - offsets[0])
    return {"began": began, "wall_s": time.perf_counter() - start, "tokens": tokens}


def bare_hf_side(folder: Path, rows: Path) -> dict[str, Any]:
    load_modules()
    from tokenizers import Tokenizer

    texts = list(rendered(rows))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    began, start = time.time(), time.perf_counter()
    for batch in texts:
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    return {"began": began, "wall_s": time.perf_counter() - start}


SIDES = {"prepare": prepare_side, "plan": plan_side, "floor": floor_side, "bare_hf": bare_hf_side}


def rendered(rows: Path) -> Iterator[list[str]]:
    """Batches of chats as TEMPLATE renders them, parsed by orjson and joined by hand."""
    import orjson

    batch: list[str] = []
    with rows.open("rb") as file:
        for line in file:
            messages = orjson.loads(line)["messages"]
            batch.append("".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>" for turn in messages))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def load_modules() -> None:
    import contextlib
    import importlib

    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


# -------------------------------------------------------------------------------------------------- input and model


def default_tokenizer() -> Path:
    data = os.environ.get("TUNESMITH_TEST_DATA")
    if not data:
        raise SystemExit("--tokenizer FOLDER is needed where TUNESMITH_TEST_DATA is not set")
    return Path(data) / "data" / "tokenizers" / "minimind"


def make_model(folder: Path, tokenizer: Path) -> Path:
    """The tokenizer with TEMPLATE, beside the configuration and the random weights of a tiny model."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    known = json.loads((tokenizer / "tokenizer_config.json").read_bytes())
    known |= {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_bytes())
    size = 1 + max([*vocabulary["model"]["vocab"].values(), *(token["id"] for token in vocabulary["added_tokens"])])
    end = next(token["id"] for token in vocabulary["added_tokens"] if token["content"] == "<|im_end|>")
    (folder / "config.json").write_text(json.dumps({**MODEL, "vocab_size": size, "eos_token_id": end}))
    hidden, inner = MODEL["hidden_size"], MODEL["intermediate_size"]
    layer = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    shapes = {f"layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {f"layers.0.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"embed_tokens.weight": (size, hidden), "norm.weight": (hidden,)}
    random = np.random.Generator(np.random.PCG64(0))
    weights = {f"model.{name}": random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def dataset_of(folder: Path) -> Path:
    """The Dataset in a workspace that holds one."""
    (found,) = {path.parent.resolve() for path in (folder / "work").rglob("dataset.json")}
    return found


# ---------------------------------------------------------------------------------------------------------- figures


def summary(runs: list[dict[str, Any]], rows: int, size: int) -> dict[str, Any]:
    """Medians over the runs that came through, with each wall time."""
    good = [run for run in runs if "wall_s" in run]
    if not good:
        return {"failed": runs[-1]["failed"]}
    names = [name for name, value in good[-1].items() if isinstance(value, (int, float))]
    out: dict[str, Any] = {
        name: round(statistics.median(run[name] for run in good), 3)
        for name in names
        if all(name in run for run in good)
    }
    out["rows_per_s"] = round(rows / out["wall_s"], 1)
    out["mb_per_s"] = round(size / 1e6 / out["wall_s"], 2)
    out["walls_s"] = [round(run["wall_s"], 3) for run in good]
    out |= {name: good[-1][name] for name in ("versions", "tokenizer") if name in good[-1]}
    return out | ({"failed_runs": len(runs) - len(good)} if len(good) < len(runs) else {})


def headline(sides: dict[str, dict[str, Any]], rows: int) -> dict[str, Any]:
    """The figures that the bars are about; those of a side that is absent are absent."""

    def rate(name: str) -> float | None:
        rates = [
            side["rows_per_s"] for key, side in sides.items() if key.split(",")[0] == name and "rows_per_s" in side
        ]
        return max(rates, default=None)

    def ratio(one: float | None, other: float | None) -> float | None:
        return round(one / other, 3) if one and other else None

    figures = {
        "rows": rows,
        "rows_per_s": rate("plain"),
        "trl_rows_per_s": rate("trl"),
        "llamafactory_rows_per_s": rate("llamafactory"),
        "floor_rows_per_s": rate("floor"),
        "bare_hf_rows_per_s": rate("bare_hf"),
        "ratio_vs_trl": ratio(rate("plain"), rate("trl")),
        "ratio_vs_llamafactory": ratio(rate("plain"), rate("llamafactory")),
        "ratio_to_floor": ratio(rate("floor"), rate("plain")),
        "default_ratio_vs_trl": ratio(rate("default"), rate("trl")),
        "cleaned_ratio_vs_trl": ratio(rate("cleaned"), rate("trl")),
        "fallback_share_of_bare": ratio(rate("fallback"), rate("bare_hf")),
    }
    return {name: value for name, value in figures.items() if value is not None}


def equality(scratch: Path, peers: dict[str, str], sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours, plain and by the fallback, beside each peer and each other."""
    made = {name: scratch / f"{name}-0" for name in ("plain", "fallback") if "wall_s" in sides.get(name, {})}
    if "plain" not in made:
        return {"ids_equal": None, "labels_equal": None}
    mine = of_dataset(dataset_of(made["plain"]))
    compared = {}
    if "fallback" in made:
        compared["fallback"] = compare(mine, of_dataset(dataset_of(made["fallback"])))
    for side in sides:
        folder = scratch / side.replace(", ", "-").replace(" ", "-") / "documents"
        if side.split(",")[0] in peers and folder.exists():
            compared[side] = compare(mine, load(folder))
    against = {name: found for name, found in compared.items() if name.split(",")[0] in peers}
    figures: dict[str, Any] = {
        key: all(found[key] for found in against.values()) if against else None for key in ("ids_equal", "labels_equal")
    }
    return figures | {"compared": compared}


def big(asked: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """Ours and the floor on many more rows, in turn."""
    rows = scratch / "big.jsonl"
    size = write_chats(rows, asked.big, seed=1)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("floor", *(mode for mode in asked.modes if mode != "fallback")):
        take(found, name, partial(ours, name, scratch / f"big-{name}", rows, model))
        shutil.rmtree(scratch / f"big-{name}")  # the disk need not hold them all
    sides = {name: summary(runs, asked.big, size) for name, runs in found.items()}
    return headline(sides, asked.big) | {"bytes": size, "sides": sides}


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
