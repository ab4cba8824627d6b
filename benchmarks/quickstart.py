"""The quickstart as a user runs it, timed whole: `python benchmarks/quickstart.py SEED ...` -> results/quickstart.json.

Per seed: generates the rows (data seed), runs the recipe (recipe seed, the same number) in an empty workspace through the
command line, and reads the scores from the stored evaluation. Set-up (the virtual environment) is not part of the time.
Seeds of the same data and recipe are put together, so that each may have a quiet machine of its own; headline figures are
means over the seeds. Every scoring of the two parts with other wordings is listed, whatever came of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, provenance, store

SEEDS = ("17", "18", "19")
QUICKSTART = ROOT / "examples" / "quickstart"
MADE_OF = (
    "make_data.py",
    "wordings.py",
    "wordings_composed.py",
    "wordings_validation.py",
    "wordings_free.py",
    "recipe.yaml",
)
PARTS = {
    "tuned": "unseen rows",
    "unseen_wording": "unseen wording",
    "free_wording": "free wording",
}  # by name of the figure
BASES = ("unseen_wording_base_exact_match", "free_wording_base_exact_match")
HEADLINES = ("wall_s", "base_exact_match", *(f"{name}_exact_match" for name in PARTS))
UNSEEN = (
    "A quarter of the templates in wordings.py, drawn once by HOLD_OUT_SEED before their first score, with product names and styles "
    "of order numbers that training never has."
)
FREE = (
    "Sentences written freely, without asking a model about them, and frozen by a commit before their first score. Up to the second "
    "scoring this part was called unseen wording (the file was renamed, one word of its docstring changed, no wording); its two earlier revisions were made after looking at their scores. Training has few "
    "of its words, and the model knows little English beyond its rows: this is how far the tuning carries, not a bar."
)


def main() -> None:
    path = RESULTS / "quickstart.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    scorings = {part: kept.get(part, {}).get("scorings", []) for part in ("unseen_wording", "free_wording")}
    made_of = {name: _hash(QUICKSTART / name) for name in MADE_OF}
    runs: dict[str, Any] = kept.get("runs", {}) if kept.get("made_of") == made_of else {}
    for seed in sys.argv[1:] or SEEDS:
        found = one(seed)
        runs[seed] = found
        when = provenance()
        for part, listed in scorings.items():
            score = found[f"{part}_exact_match"]
            listed.append({"seed": seed, "exact_match": score, "date": when["date"], "commit": when["commit"]})
        store("quickstart", summary(runs, scorings, made_of))


def one(seed: str) -> dict[str, Any]:
    """One whole quickstart."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-quickstart-") as scratch:
        folder, workspace = Path(scratch), Path(scratch) / "work"
        shutil.copy(QUICKSTART / "recipe.yaml", folder)
        make = [sys.executable, str(QUICKSTART / "make_data.py"), str(folder / "data"), "--seed", seed]
        command = [sys.executable, "-m", "tunesmith", "run", str(folder / "recipe.yaml"), "--workspace", str(workspace)]
        started = time.perf_counter()
        subprocess.run(make, check=True)
        subprocess.run([*command, "--set", f"seed={seed}"], check=True)
        wall_s = time.perf_counter() - started
        return {"wall_s": round(wall_s, 1), **figures(workspace)}


def figures(workspace: Path) -> dict[str, Any]:
    """What the finished run stored."""
    (run,) = (workspace / "runs").iterdir()
    outputs = json.loads((run / "outputs.json").read_text())

    def load(stage: str, name: str, file: str) -> dict:
        item = outputs[stage][name]
        return json.loads((workspace / "artifacts" / item["kind"].lower() / item["id"] / file).read_text())

    evaluation = load("evaluate", "evaluation", "evaluation.json")
    scores = {name: evaluation["parts"][part]["metrics"]["exact_match"] for name, part in PARTS.items()}
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return {
        "base_exact_match": scores["tuned"]["base"]["value"],
        **{f"{name}_exact_match": score["tuned"]["value"] for name, score in scores.items()},
        "unseen_wording_base_exact_match": scores["unseen_wording"]["base"]["value"],
        "free_wording_base_exact_match": scores["free_wording"]["base"]["value"],
        "gain": {PARTS[name]: score["gain"] for name, score in scores.items()},
        "n": {part: evaluation["parts"][part]["n"] for part in PARTS.values()},
        "gate": evaluation["gate"]["verdict"],
        "parity": {stage: load(stage, "parity", "parity.json")["verdict"] for stage in ("export", "serve")},
        "stage_s": {e["stage"]: round(e["value"], 1) for e in events if e["name"] == "stage/seconds"},
    }


def summary(runs: dict[str, Any], scorings: dict[str, list[dict[str, Any]]], made_of: dict[str, str]) -> dict[str, Any]:
    """Means first, then the seeds one by one, then what the parts with other wordings are and how often they were scored."""

    def each(name: str) -> list[float]:
        return [found[name] for found in runs.values()]

    means = {name: round(statistics.mean(each(name)), 4) for name in HEADLINES}
    return {
        **means,
        "wall_s_longest": max(each("wall_s")),
        **{name: round(statistics.mean(each(name)), 4) for name in BASES},
        "n": next(iter(runs.values()))["n"],
        "seeds": list(runs),
        "per_seed": {name: each(name) for name in HEADLINES},
        "what_a_seed_is": "both the seed of make_data.py and `seed` of the recipe",
        "unseen_wording": {"what": UNSEEN, **_counted(scorings["unseen_wording"])},
        "free_wording": {
            "what": FREE,
            "file": "examples/quickstart/wordings_free.py",
            "sha256": made_of["wordings_free.py"],
            **_counted(scorings["free_wording"]),
        },
        "runs": runs,
        "made_of": made_of,
    }


def _counted(scorings: list[dict[str, Any]]) -> dict[str, Any]:
    return {"times_scored": len(scorings), "scorings": scorings}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
