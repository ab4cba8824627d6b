"""Where a run happened: versions, machine, command line. Never the environment variables: they hold secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.runs import durable

PACKAGES = (
    "tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "daft", "pydantic", "openai",
    "bitsandbytes",
)  # fmt: skip
SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"(://[^:/@\s]*):\S*@")


def describe(workspace: Path) -> dict[str, Any]:
    """Facts of this process and machine, for environment.json. Loads none of the packages it names."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),  # bits depend on it
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": durable.file_system(workspace),
    }


def command_line(arguments: list[str]) -> list[str]:
    """The command as it was typed, with the values of options that look like secrets, and passwords in URLs, left out."""
    shown: list[str] = []
    program = Path(arguments[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    for argument in [name, *arguments[1:]]:
        name, equals, _ = argument.partition("=")
        if shown and shown[-1].startswith("--") and "=" not in shown[-1] and SECRET.search(shown[-1]):
            shown.append("***")
        elif equals and SECRET.search(name) and name.startswith("--"):
            shown.append(f"{name}=***")
        else:
            shown.append(PASSWORD_IN_URL.sub(r"\1:***@", argument))
    return shown


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """What of two descriptions may change bits: {name: [old, new]}."""
    before, after = ({**told.get("packages", {}), **_machine(told)} for told in (old, new))
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def _machine(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told.get(name) for name in ("python", "commit", "platform", "cpu", "threads")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of tunesmith's own working copy; None when it was installed as a package."""
    source = Path(tunesmith.__path__[0]).parent
    if source.name != "src" or not (source.parent / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()
