"""Where a run happened: versions, machine, command line. Never the environment variables: they hold secrets."""

from __future__ import annotations

import hashlib
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
from tunesmith.planner import hardware
from tunesmith.runs import durable

PACKAGES = (
    "tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "daft", "pydantic", "openai",
    "bitsandbytes", "accelerate", "deepspeed", "liger-kernel", "flash-attn", "torchao", "triton", "pyarrow", "orjson", "xxhash",
)  # fmt: skip
# The few variables that decide how numbers are computed; none of them is a secret.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "MKL_DYNAMIC", "OMP_DYNAMIC",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF",
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
        "source": _source(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [gpu.name for gpu in hardware.detect().gpus],
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),  # bits depend on it
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
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
    names = ("python", "commit", "source", "platform", "cpu", "cores", "gpus", "threads")
    return {**{name: told.get(name) for name in names}, **told.get("variables", {})}


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


def _source() -> str:
    """Hash of tunesmith's own code, which a commit does not tell of a working copy that was edited."""
    root = Path(tunesmith.__path__[0])
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hashed.hexdigest()[:12]


def _cpu() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()
