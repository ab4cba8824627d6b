"""What a search finds: `python benchmarks/tune.py` -> results/tune.json. Times are not the figure; steps are.

With `--work FOLDER` the same command goes on after a stop, as every search does.

On the quickstart's rows (made on the spot) and the packaged model, LoRA, a fixed number of steps per trial:

1. `rates`: the validation loss over a grid of learning rates, LoRA and full, which the usual range of small models must hold.
2. For each seed: TPE with halving; then random search without halving that may take as many steps in all; and the recipe
   with the default learning rate. The validation loss is what was searched for, so the best of many is flattered by it;
   `test_perplexity` and `test_exact_match` are of the chosen recipes on the test rows that no trial saw.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, store

from tunesmith import api
from tunesmith.recipe import Recipe, load_recipe

NUM_TRAIN, NUM_VALIDATION = 1200, 64
TRIALS, SEEDS = 12, (17, 18, 19)
RATES = (1e-4, 1e-3, 1e-2, 3e-2)
RECIPE = """\
name: tune-benchmark
model: {{base: "builtin:tunesmith-tiny", precision: fp32}}
adapter: {{type: lora, rank: 16, alpha: 32}}
data:
  sources:
    - {{path: train.jsonl, split: train}}
    - {{path: validation.jsonl, split: validation}}
    - {{path: test.jsonl, split: test}}
  on_bad_row: quarantine
  max_bad_share: 0.05
  filters: {{quality: {{column: quality_score, above: 0.7}}}}
  max_tokens: 256
train: {{epochs: 100, max_steps: {steps}, batch_size: 16, evaluate_every: {every}, threads: 1}}
evaluate: {{metrics: [exact_match], max_new_tokens: 64, max_items: 48, batch_size: 48}}
gate: {{require: none}}
track: []
tune:
  trials: {trials}
  space: {{train.learning_rate: default, adapter.rank: default, adapter.alpha: default}}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        recipe = write_rows(arguments.work or Path(scratch), arguments.steps)
        figures: dict[str, Any] = {
            "model": "builtin:tunesmith-tiny, 3 M parameters",
            "rows": {"train": NUM_TRAIN, "validation": NUM_VALIDATION},
            "steps_per_trial": arguments.steps,
            "rates": {adapter: rates(recipe, adapter) for adapter in ("lora", "full")},
            "seeds": [compare(recipe, seed, arguments.steps) for seed in SEEDS[: arguments.seeds]],
        }
        store("tune", {**summary(figures), **figures})


def write_rows(folder: Path, steps: int) -> Path:
    """The quickstart's rows, shortened, beside a recipe."""
    made = folder / "made"
    folder.mkdir(parents=True, exist_ok=True)
    script = ROOT / "examples" / "quickstart" / "make_data.py"
    subprocess.run([sys.executable, str(script), str(made)], check=True, capture_output=True)
    for name, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION), ("test", None)):
        lines = (made / f"{name}.jsonl").read_bytes().split(b"\n")
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines[:count]))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(steps=steps, every=max(1, steps // 10), trials=TRIALS))
    return path


def rates(recipe: Path, adapter: str) -> dict[str, float | None]:
    """Learning rate -> validation loss; None where training broke."""
    grid = ", ".join(str(rate) for rate in RATES)
    overrides = [
        f"adapter={{type: {adapter}}}",
        f"tune.space={{train.learning_rate: {{choices: [{grid}]}}}}",
        "tune.prune=none",
    ]
    result = api.tune(recipe, overrides=overrides, workspace=recipe.parent / f"rates-{adapter}", say=say)
    found = {trial["values"]["train.learning_rate"]: trial["value"] for trial in result.trials}
    return {f"{rate:g}": found[rate] for rate in sorted(found)}


def compare(recipe: Path, seed: int, steps: int) -> dict[str, Any]:
    """A search with TPE and halving, random search of as many steps, and the default learning rate."""
    workspace = recipe.parent / f"seed-{seed}"
    tpe = api.tune(recipe, overrides=[f"tune.seed={seed}"], workspace=workspace / "tpe", say=say)
    spent = sum(trial["steps"] for trial in tpe.trials)
    overrides = [f"tune.seed={seed}", "tune.sampler=random", "tune.prune=none", f"tune.trials={max(1, spent // steps)}"]
    random = api.tune(recipe, overrides=overrides, workspace=workspace / "random", say=say)
    default = load_recipe(recipe, ["train.learning_rate=2.0e-4"])
    return {
        "seed": seed,
        "tpe_asha": described(tpe, workspace / "tpe"),
        "random_same_steps": described(random, workspace / "random"),
        "default_rate": {"value": tpe.trials[0]["value"], **on_test(default, workspace / "tpe")},
    }


def described(result: Any, workspace: Path) -> dict[str, Any]:
    counts = result.counts()
    return {
        "trials": len(result.trials),
        **counts,
        "pruned_share": round(counts.get("pruned", 0) / len(result.trials), 3),
        "steps": sum(trial["steps"] for trial in result.trials),
        "steps_without_pruning": sum(trial["num_steps"] for trial in result.trials),
        "best": {name: result.best[name] for name in ("number", "value", "values")},
        **on_test(load_recipe(result.files["best"]), workspace),
    }


def on_test(recipe: Recipe, workspace: Path) -> dict[str, float]:
    run = api.evaluate(recipe, workspace=workspace).run
    folder = (run.outputs("evaluate") or {})["evaluation"].path
    evaluation = json.loads((folder / "evaluation.json").read_bytes())
    metrics = evaluation["parts"]["test"]["metrics"]
    return {
        "test_perplexity": metrics["perplexity"]["tuned"]["value"],
        "test_exact_match": metrics["exact_match"]["tuned"]["value"],
    }


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Medians over the seeds."""

    def median(kind: str, *path: str) -> float:
        values = []
        for seed in figures["seeds"]:
            value = seed[kind]
            for name in path:
                value = value[name]
            values.append(value)
        return round(statistics.median(values), 4)

    return {
        "trials": TRIALS,
        "best": median("tpe_asha", "best", "value"),
        "pruned_share": median("tpe_asha", "pruned_share"),
        "steps_share": round(
            statistics.median(
                seed["tpe_asha"]["steps"] / seed["tpe_asha"]["steps_without_pruning"] for seed in figures["seeds"]
            ),
            3,
        ),
        "random_same_steps_best": median("random_same_steps", "best", "value"),
        "default_rate_loss": median("default_rate", "value"),
        "test_perplexity": {
            kind: median(kind, "test_perplexity") for kind in ("tpe_asha", "random_same_steps", "default_rate")
        },
        "test_exact_match": {
            kind: median(kind, "test_exact_match") for kind in ("tpe_asha", "random_same_steps", "default_rate")
        },
    }


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
