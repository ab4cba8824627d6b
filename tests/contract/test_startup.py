"""The command line answers at once: help and a bad recipe load nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "daft",
    "peft",
    "numpy",
    "tokenizers",
    "pyarrow",
    "openai",
    "fastapi",
    "wandb",
    "mlflow",
)
PROGRAM = """
import sys
from tunesmith.cli import main
try:
    main({arguments!r})
except SystemExit as leaving:
    status = leaving.code or 0
else:
    status = 0
heavy = [name for name in {heavy!r} if name in sys.modules]
print("STATUS", status, "HEAVY", ",".join(heavy), file=sys.stderr)
"""


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, heavy modules loaded, everything printed."""
    program = PROGRAM.format(arguments=list(arguments), heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    last = done.stderr.strip().splitlines()[-1].split(" ")
    return int(last[1]), last[3] if len(last) > 3 else "", done.stdout + done.stderr


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_teaches_and_loads_nothing_heavy(verb: str) -> None:
    status, heavy, text = call(*([verb] if verb else []), "--help")
    assert (status, heavy) == (0, "")
    assert "Usage:" in text


def test_a_bad_recipe_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {sources: a.jsonl}\nlr: 3\n")
    status, heavy, text = call("run", str(tmp_path / "r.yaml"))
    assert (status, heavy) == (64, "")
    assert "train.learning_rate" in text


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["chekc"], 2, "check"),
        (["run", "none.yaml"], 74, "RCP-001"),
        (["explain", "train.lr"], 2, "train.learning_rate"),
        (["run"], 2, "RECIPE"),
    ],
)
def test_mistakes_have_their_exit_status_and_a_next_move(arguments: list[str], status: int, told: str) -> None:
    found, _, text = call(*arguments)
    assert found == status
    assert told in text
    assert "Traceback" not in text
