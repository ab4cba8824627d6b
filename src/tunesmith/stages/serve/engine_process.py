"""The engine as a child process: started, watched, waited for, stopped. It never outlives the process that started it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tunesmith.errors import ModelError, RecipeError, TunesmithError, UsageError
from tunesmith.stages.serve.engine_spec import EngineSpec

START_SECONDS = 1800.0
ERRORS: dict[str, type[TunesmithError]] = {kind.__name__: kind for kind in (ModelError, RecipeError, UsageError)}
LOG_LINES_SHOWN = 12


class EngineProcess:
    """One engine for one model folder, behind a unix socket in a folder that only this user can enter.

    log_path: where the engine's output goes; its last lines are shown when it fails.
    """

    def __init__(self, spec: EngineSpec, log_path: Path) -> None:
        self.spec, self.log_path = spec, log_path
        # A short path of our own: a socket's path may have at most about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))
        self.socket = str(self._folder / "engine.sock")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log:
            # A session of its own: Ctrl-C on the terminal reaches us alone, and we end the engine after the last answer.
            self._process = subprocess.Popen(
                spec.command(self.socket),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, on_phase: Callable[[str], None], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Until the engine answers; True then, False when should_stop says so. Phases such as "loading the model" go to
        on_phase once each. Raises: ModelError SRV-001 with the engine's last lines when it ends or takes too long."""
        told: set[str] = set()
        deadline = time.monotonic() + START_SECONDS
        while True:
            is_ready = self._answers()
            for phase in self._said("phase"):
                if phase not in told:
                    told.add(phase)
                    on_phase(phase)
            if is_ready:
                return True
            if not self.is_alive():
                raise self._failure(f"The engine ended with status {self._process.returncode} before it was ready.")
            if time.monotonic() > deadline:
                raise self._failure(f"The engine was not ready after {START_SECONDS:.0f} s.")
            if should_stop():
                return False
            time.sleep(0.05)

    def facts(self) -> dict[str, Any]:
        """What the engine measured of itself while it started: "attention", "quantised", "compile"."""
        found: dict[str, Any] = {}
        for line in self._said("fact"):
            found |= json.loads(line)
        return found

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def problem(self) -> str | None:
        """Why the engine no longer works, in one line; None while it does."""
        if not self.is_alive():
            return f"The engine ended with status {self._process.returncode}."
        return None

    def check(self) -> None:
        """Raises: ModelError SRV-002 with the engine's last lines when the process has ended."""
        if problem := self.problem():
            raise ModelError("SRV-002", f"{problem} It had been serving.", where=str(self.log_path), fix=self._tail())

    def stop(self) -> None:
        """End the process: by closing its input, then SIGTERM, then SIGKILL. Safe to call twice."""
        if self._process.stdin:
            self._process.stdin.close()
        for end in (None, self._process.terminate, self._process.kill):
            if end:
                end()
            try:
                self._process.wait(timeout=5)
                break
            except subprocess.TimeoutExpired:
                continue
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        if not Path(self.socket).exists():
            return False
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), timeout=5) as client:
                return client.get("http://engine/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _said(self, what: str) -> list[str]:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [line.removeprefix(f"{what}: ") for line in lines if line.startswith(f"{what}: ")]

    def _failure(self, what: str) -> TunesmithError:
        """The engine's own refusal where it made one, else its last lines."""
        for line in self._said("error") if self.spec.engine == "transformers" else []:
            told = json.loads(line)
            kind = ERRORS.get(told["kind"], ModelError)
            return kind(told["code"], told["what"], where=told["where"], expected=told["expected"], fix=told["fix"])
        return ModelError(
            "SRV-001", what, where=str(self.log_path), expected="an engine that loads the model", fix=self._tail()
        )

    def _tail(self) -> str:
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        return "read its last lines\n" + "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])


def _environment() -> dict[str, str]:
    """Ours, with this package importable from anywhere, without network and without progress bars in the log."""
    source = str(Path(__file__).parents[3])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "PYTHONPATH": source if not inherited else os.pathsep.join([source, inherited]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }
