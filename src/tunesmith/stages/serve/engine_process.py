"""The engine as a child process: started, watched, waited for, stopped. It never outlives the process that started it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tunesmith.errors import ModelError

START_SECONDS = 1800.0
LOG_LINES_SHOWN = 12


class EngineProcess:
    """One engine for one model folder, behind a unix socket in a folder that only this user can enter.

    log_path: where the engine's output goes; its last lines are shown when it fails.
    """

    def __init__(self, model: Path, requests: int, log_path: Path) -> None:
        self.log_path = log_path
        # A short path of our own: a socket's path may have at most about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))
        self.socket = str(self._folder / "engine.sock")
        command = [sys.executable, "-m", "tunesmith.stages.serve.engine", str(model)]
        command += ["--socket", self.socket, "--requests", str(requests)]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log:
            # A session of its own: Ctrl-C on the terminal reaches us alone, and we end the engine after the last answer.
            self._process = subprocess.Popen(
                command,
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
        while not self._answers():
            for phase in self._phases():
                if phase not in told:
                    told.add(phase)
                    on_phase(phase)
            if not self.is_alive():
                raise self._failure(f"The engine ended with status {self._process.returncode} before it was ready.")
            if time.monotonic() > deadline:
                raise self._failure(f"The engine was not ready after {START_SECONDS:.0f} s.")
            if should_stop():
                return False
            time.sleep(0.05)
        return True

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

    def _phases(self) -> list[str]:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [line.removeprefix("phase: ") for line in lines if line.startswith("phase: ")]

    def _failure(self, what: str) -> ModelError:
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
        "PYTHONPATH": source if not inherited else os.pathsep.join([source, inherited]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }
