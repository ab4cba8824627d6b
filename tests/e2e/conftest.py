"""The command line as a user runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def tunesmith(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `tunesmith ARGS`; asserts the exit status, 0 unless told otherwise."""

    def call(*arguments: object, status: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tunesmith", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
        assert done.returncode == status, f"{command}\nstatus {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture(scope="session")
def quickstart_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's rows and recipe in a folder of their own."""
    folder = tmp_path_factory.mktemp("quickstart")
    script = ROOT / "examples" / "quickstart" / "make_data.py"
    subprocess.run([sys.executable, str(script), str(folder / "data")], check=True, capture_output=True)
    (folder / "recipe.yaml").write_text((ROOT / "examples" / "quickstart" / "recipe.yaml").read_text())
    return folder


def json_of(done: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(done.stdout)
