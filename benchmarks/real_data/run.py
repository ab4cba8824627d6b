"""Full fine-tuning of stories260K on SNIPS and banking77: `python benchmarks/real_data/run.py` -> results/real-data.json.

Needs TUNESMITH_TEST_DATA (the folder that holds data/intent and models/stories260K). Per set: rows made by make_rows.py, then the recipe beside
this file through the Python API up to evaluation, once per seed; 400 unseen rows are asked, greedy, and must be answered exactly.
train_s is the wall time of the training stage, model loading and checkpoints included. Leaves with status 1 when a bar or a time is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from make_rows import SETS, write_sets  # noqa: E402
from record import store  # noqa: E402

import tunesmith  # noqa: E402

SEEDS = (1, 2, 3)
TIME_LIMIT_S = {"snips": 60.0, "banking77": 120.0}
BAR = {"snips": 0.93, "banking77": 0.45}
PART = "unseen rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="a.b=c, as on the command line")
    parser.add_argument("--dry", action="store_true", help="store nothing: for tries with other settings")
    arguments = parser.parse_args()
    shared = test_data()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-real-data-") as scratch:
        folder = Path(scratch)
        write_sets(shared / "data" / "intent", folder)
        for name in arguments.sets:
            shutil.copy(HERE / f"{name}.yaml", folder)
            base = f"model.base={shared / 'models' / 'stories260K'}"
            runs = [one(folder, name, seed, [base, *arguments.overrides]) for seed in arguments.seeds]
            figures[name] = summary(name, arguments.seeds, runs)
            print(name, json.dumps(figures[name]))
    if not arguments.dry:
        store("real-data", {"base_model": "stories260K", "method": "full fine-tuning", "sets": figures})
    missed = [name for name, found in figures.items() if not (found["reaches_bar"] and found["in_time"])]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


def test_data() -> Path:
    folder = os.environ.get("TUNESMITH_TEST_DATA", "")
    if not (Path(folder) / "models" / "stories260K").is_dir():
        sys.exit("TUNESMITH_TEST_DATA must name the folder that holds data/intent and models/stories260K")
    return Path(folder).absolute()


def one(folder: Path, name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One training and its evaluation."""
    workspace = folder / "work"
    overrides = [f"seed={seed}", "track=[]", *overrides]
    outcome = tunesmith.run(folder / f"{name}.yaml", overrides=overrides, workspace=workspace, until="evaluate")
    made = outcome.run.outputs("evaluate")["evaluation"].path / "evaluation.json"
    evaluation = json.loads(made.read_text())
    part = evaluation["parts"][PART]
    scores = part["metrics"]["exact_match"]
    funnel = json.loads((outcome.run.outputs("prepare")["dataset"].path / "statistics.json").read_text())["funnel"]
    found = {
        "train_s": round(next(stage.seconds for stage in outcome.stages if stage.name == "train"), 1),
        "exact_match": scores["tuned"]["value"],
        "base_exact_match": scores["base"]["value"],
        "n": part["n"],
        "left_out": {entry["rule"]: entry["dropped"] for entry in funnel},
    }
    print(f"{name} seed {seed}: {json.dumps(found)}", flush=True)
    return found


def summary(name: str, seeds: list[int], runs: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [found["exact_match"] for found in runs]
    times = [found["train_s"] for found in runs]
    return {
        "train_s": max(times),
        "train_s_per_seed": times,
        "time_limit_s": TIME_LIMIT_S[name],
        "in_time": max(times) <= TIME_LIMIT_S[name],
        "exact_match": dict(zip(map(str, seeds), scores, strict=True)),
        "mean": round(statistics.mean(scores), 4),
        "bar": BAR[name],
        "reaches_bar": statistics.mean(scores) >= BAR[name],
        "base_exact_match": runs[0]["base_exact_match"],
        "n": runs[0]["n"],
        "rows_left_out": runs[0]["left_out"],
    }


if __name__ == "__main__":
    main()
