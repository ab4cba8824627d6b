"""The quickstart as a user runs it, timed whole: `python benchmarks/quickstart.py` -> results/quickstart.json.

Generates the rows, runs the recipe in an empty workspace through the command line, and reads the scores from the
stored evaluation. Set-up (the virtual environment) is not part of the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import ROOT, store


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "work"
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "examples/quickstart/make_data.py", "examples/quickstart/data"], cwd=ROOT, check=True
        )
        command = [
            sys.executable,
            "-m",
            "tunesmith",
            "run",
            "examples/quickstart/recipe.yaml",
            "--workspace",
            str(workspace),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        wall_s = time.perf_counter() - started
        (run,) = (workspace / "runs").iterdir()
        outputs = json.loads((run / "outputs.json").read_text())

        def load(stage: str, name: str, file: str) -> dict:
            item = outputs[stage][name]
            return json.loads((workspace / "artifacts" / item["kind"].lower() / item["id"] / file).read_text())

        evaluation = load("evaluate", "evaluation", "evaluation.json")
        seen, unseen = (evaluation["parts"][part] for part in ("unseen rows", "unseen wording"))
        stage_seconds = {
            event["stage"]: round(event["value"], 1)
            for event in map(json.loads, (run / "events.jsonl").read_text().splitlines())
            if event["name"] == "stage/seconds"
        }
        store(
            "quickstart",
            {
                "wall_s": round(wall_s, 1),
                "stage_s": stage_seconds,
                "base_exact_match": seen["metrics"]["exact_match"]["base"]["value"],
                "tuned_exact_match": seen["metrics"]["exact_match"]["tuned"]["value"],
                "unseen_wording_exact_match": unseen["metrics"]["exact_match"]["tuned"]["value"],
                "unseen_wording_base_exact_match": unseen["metrics"]["exact_match"]["base"]["value"],
                "n": {"unseen rows": seen["n"], "unseen wording": unseen["n"]},
                "gain": {
                    part: evaluation["parts"][part]["metrics"]["exact_match"]["gain"] for part in evaluation["parts"]
                },
                "gate": evaluation["gate"]["verdict"],
                "parity": {stage: load(stage, "parity", "parity.json")["verdict"] for stage in ("export", "serve")},
            },
        )


if __name__ == "__main__":
    main()
