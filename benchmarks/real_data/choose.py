"""Settings for the recipes beside this file, tried on training rows: `python benchmarks/real_data/choose.py SET` -> results/real-data-choice.json.

Each try trains on most rows of the *training* file and is scored on rows of the same file that were held out from it; the
test file is not read. The tries of a set spend about the same training time, so that what is compared is how to spend it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from make_rows import SETS, write_sets  # noqa: E402
from record import RESULTS, store  # noqa: E402
from run import run_recipe, test_data  # noqa: E402

SEED = 11  # not one of those that are reported
NUM_ITEMS = 400

# The steps are those that fit the time, by seconds per step on 2 cores.
SETTINGS = ("batch_size", "max_steps", "learning_rate")
TRIES = {
    "snips": [
        (32, 780, 3e-3), (32, 780, 6e-3), (32, 780, 1e-2), (16, 1300, 3e-3), (16, 1300, 6e-3),
    ],
    "banking77": [
        (32, 900, 3e-3), (32, 900, 6e-3), (32, 900, 1e-2), (16, 1600, 3e-3), (16, 1600, 6e-3),
    ],
}  # fmt: skip


def main() -> None:
    path = RESULTS / "real-data-choice.json"
    kept = json.loads(path.read_text())["sets"] if path.exists() else {}
    shared = test_data()
    with tempfile.TemporaryDirectory(prefix="tunesmith-choice-") as scratch:
        folder = Path(scratch)
        write_sets(shared / "data" / "intent", folder)
        for name in sys.argv[1:] or SETS:
            (folder / f"{name}_test.jsonl").unlink()
            shutil.copy(HERE / f"{name}.yaml", folder)
            base = f"model.base={shared / 'models' / 'stories260K'}"
            tries = kept.get(name, {}).get("tries", [])  # a stopped choice goes on
            for settings in TRIES[name]:
                if settings not in [tuple(tried[key] for key in SETTINGS) for tried in tries]:
                    tries.append(one(folder, name, base, dict(zip(SETTINGS, settings, strict=True))))
                best = max(tries, key=lambda tried: tried["validation_exact_match"])
                kept[name] = {"seed": SEED, "n": NUM_ITEMS, "tries": tries, "best": best}
                store("real-data-choice", {"scored_on": "rows held out from the training file", "sets": kept})


def one(folder: Path, name: str, base: str, settings: dict[str, float]) -> dict[str, Any]:
    """One try: trained without the held-out rows, scored on them."""
    held_out = [f"data.sources=[{{path: {name}_train.jsonl, split: auto}}]", "data.split={validation: 0.05, test: 0.0}"]
    overrides = [base, *held_out, f"evaluate.max_items={NUM_ITEMS}", "train.threads=1"]
    overrides += [f"train.{key}={value}" for key, value in settings.items()]
    found = run_recipe(folder, name, SEED, overrides)
    tried = {**settings, "validation_exact_match": found["exact_match"]}
    print(name, json.dumps(tried), flush=True)
    return tried


if __name__ == "__main__":
    main()
