"""Numerics: `doctor --numerics` by its command, two processes included.

A case is a way to train the packaged model; each of its comparisons is judged. That the judge sees what is broken is tested in
tests/numerics/test_doctor.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability.frame import Budget

PROMISE = (
    "On the user's own model grouping, recomputation, processes, resume, merge and evaluation batches change nothing"
)
ROOT = Path(__file__).resolve().parents[2]
CASES: dict[str, tuple[str, ...]] = {
    "lora, dropout": (
        "adapter.dropout=0.1",
        "adapter.targets=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]",
    ),
    "full": ("adapter={type: full}",),
    "quantised": ("model.quantisation=nf4",),
    "eager, rows padded": ("train.packing=off", "model.attention=eager"),
}


def check(budget: Budget) -> dict[str, Any]:
    """Four ways to train the packaged model; every comparison of each counts."""
    with tempfile.TemporaryDirectory(prefix="numerics-") as name:
        recipe = write_recipe(Path(name))
        for case in budget.cases(CASES):
            try:
                found = doctor(recipe, CASES[case])
            except RuntimeError as error:
                budget.judge(case, str(error)[-500:])
                continue
            for one in found["checks"]:
                place = f"{case}: {one['name']}"
                if one["verdict"] == "not tried":
                    budget.skip(place, one["note"])
                elif one["verdict"] != "unused":
                    off = f"{one['measured']:.1e} where {one['tolerance']:.0e} is allowed"
                    budget.judge(place, None if one["verdict"] == "holds" else off)
    return budget.result(PROMISE)


def write_recipe(folder: Path) -> Path:
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(120):
            asked = f"Please repeat the number {number} and say that it is done" + ", please" * (number % 7)
            answer = f"The number is {number}" + " indeed" * (number % 5)
            file.write(json.dumps({"prompt": asked, "completion": answer}) + "\n")
    (folder / "recipe.yaml").write_text("data: {sources: rows.jsonl}\ntrack: files\n")
    return folder / "recipe.yaml"


def doctor(recipe: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """By the command itself. Raises RuntimeError where it gives no table."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "tunesmith", "doctor", "--numerics", str(recipe), "--json", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=recipe.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = {}
    if "checks" not in found or (done.returncode == 0) != found["holds"]:
        raise RuntimeError(f"status {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
    return found
