"""Full fine-tuning of stories260K on SNIPS and banking77: `python benchmarks/real_data/run.py` -> results/real-data.json.

Needs TUNESMITH_TEST_DATA (the folder that holds data/intent and models/stories260K). Per set: rows made by make_rows.py, then the recipe beside
this file through the Python API up to evaluation, once per seed; 400 unseen rows are asked, greedy, and must be answered exactly.
train_s is the wall time of the training stage, model loading and checkpoints included. Rows that are not UTF-8 must end as
quarantined, each and no other. Seeds of the same rows and recipe are put together, so that each may have a quiet machine of
its own. Leaves with status 1 when a bar or a time is missed. choose.py tries other settings on held-out training rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import yaml  # noqa: E402
from make_rows import SETS, write_sets  # noqa: E402
from record import RESULTS, store  # noqa: E402

import tunesmith  # noqa: E402
from tunesmith.runs.dataset import Dataset  # noqa: E402

SEEDS = (1, 2, 3)
TIME_LIMIT_S = {"snips": 60.0, "banking77": 120.0}
BAR = {"snips": 0.93, "banking77": 0.45}
UNTUNED_LOOP = {"snips": 0.955, "banking77": 0.5}  # one seed of a plain loop in the same time: what the bars come from
CHOSEN_BY_TRIES = (
    "batch size, steps and rate: the best of the tries in real-data-choice.json, which train on 95 % of the training file and "
    "are scored on rows held out from it; the 400 test rows took no part. Micro-batch and attention: by seconds per step."
)
CHOSEN_BY_REASON = (
    "not by a search: the steps are what fits the time on 2 cores, micro-batch and attention the faster ones by seconds per step. "
    "SNIPS: rate 6e-3 and 420 steps, banking77: rate 3e-3 and 600 steps; longer trials of banking77 (800 steps of rate 6e-3, one "
    "seed: 0.739 on the test rows, 163 s) ran over the time and were shortened for that reason alone."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    shared = test_data()
    path = RESULTS / "real-data.json"
    kept = json.loads(path.read_text()).get("sets", {}) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-real-data-") as scratch:
        folder = Path(scratch)
        write_sets(shared / "data" / "intent", folder)
        for name in arguments.sets:
            shutil.copy(HERE / f"{name}.yaml", folder)
            made_of = _hash(folder / f"{name}_train.jsonl", folder / f"{name}_test.jsonl", folder / f"{name}.yaml")
            known = kept.get(name, {})
            runs = known["runs"] if known.get("made_of") == made_of else {}
            for seed in arguments.seeds:
                runs[str(seed)] = run_recipe(folder, name, seed, [f"model.base={shared / 'models' / 'stories260K'}"])
                print(f"{name} seed {seed}: {json.dumps(runs[str(seed)])}", flush=True)
                kept[name] = {**summary(name, runs), "made_of": made_of}
                store("real-data", {"base_model": "stories260K", "method": "full fine-tuning", "sets": kept})
    missed = [name for name in arguments.sets if not (kept[name]["reaches_bar"] and kept[name]["in_time"])]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


def test_data() -> Path:
    folder = os.environ.get("TUNESMITH_TEST_DATA", "")
    if not (Path(folder) / "models" / "stories260K").is_dir():
        sys.exit("TUNESMITH_TEST_DATA must name the folder that holds data/intent and models/stories260K")
    return Path(folder).absolute()


def run_recipe(folder: Path, name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One training and its evaluation."""
    overrides = [f"seed={seed}", "track=[]", *overrides]
    outcome = tunesmith.run(folder / f"{name}.yaml", overrides=overrides, workspace=folder / "work", until="evaluate")
    dataset = Dataset(outcome.run.outputs("prepare")["dataset"].path)
    evaluation = json.loads((outcome.run.outputs("evaluate")["evaluation"].path / "evaluation.json").read_text())
    (part,) = evaluation["parts"].values()
    scores = part["metrics"]["exact_match"]
    return {
        "train_s": round(next(stage.seconds for stage in outcome.stages if stage.name == "train"), 1),
        "exact_match": scores["tuned"]["value"],
        "base_exact_match": scores["base"]["value"],
        "n": part["n"],
        "rows": fates(folder, dataset),
    }


def fates(folder: Path, dataset: Dataset) -> dict[str, int]:
    """Rows by what became of them. Asserts that every line of the files is told of, and that exactly the lines that are not
    UTF-8 are quarantined."""
    ledger = list(dataset.ledger())
    lines = {file: (folder / file).read_bytes().splitlines() for file in {entry["file"] for entry in ledger}}
    # A line that is all white space is no row and has no entry.
    num_rows = sum(bool(line.strip()) for found in lines.values() for line in found)
    assert len(ledger) == num_rows, f"{len(ledger)} entries in the ledger, {num_rows} rows"
    broken = {(file, n) for file, found in lines.items() for n, line in enumerate(found, 1) if not is_utf8(line)}
    apart = {(entry["file"], entry["position"]) for entry in ledger if entry["status"] == "quarantined"}
    assert apart == broken, f"quarantined {sorted(apart)}, not UTF-8 {sorted(broken)}"
    return dict(Counter(entry["status"] for entry in ledger))


def is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def summary(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    scores = {seed: found["exact_match"] for seed, found in runs.items()}
    times = {seed: found["train_s"] for seed, found in runs.items()}
    mean = round(statistics.mean(scores.values()), 4)
    recipe = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    return {
        "train_s": max(times.values()),
        "train_s_per_seed": times,
        "time_limit_s": TIME_LIMIT_S[name],
        "in_time": max(times.values()) <= TIME_LIMIT_S[name],
        "exact_match": scores,
        "mean": mean,
        "bar": BAR[name],
        "reaches_bar": mean >= BAR[name],
        "untuned_loop": UNTUNED_LOOP[name],
        "base_exact_match": next(iter(runs.values()))["base_exact_match"],
        "n": next(iter(runs.values()))["n"],
        "rows": next(iter(runs.values()))["rows"],
        "rows_quarantined": next(iter(runs.values()))["rows"].get("quarantined", 0),
        "recipe": {key: recipe[key] for key in ("model", "adapter", "data", "train")},
        "chosen": CHOSEN_BY_TRIES if _is_best_try(name, recipe["train"]) else CHOSEN_BY_REASON,
        "runs": runs,
    }


def _is_best_try(name: str, train: dict[str, Any]) -> bool:
    """True where choose.py has scored tries and these settings are the best of them."""
    path = RESULTS / "real-data-choice.json"
    tries = json.loads(path.read_text())["sets"].get(name) if path.exists() else None
    best = tries["best"] if tries else {}
    return bool(best) and all(train[key] == best[key] for key in ("batch_size", "max_steps", "learning_rate"))


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
