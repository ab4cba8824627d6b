"""How a figure is stored: beside its date, commit, machine and command. Used by every script in this folder."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def provenance() -> dict[str, Any]:
    """Date, commit (with a mark when the tree is dirty), machine, library versions and the command that is running."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else ""),
        "machine": machine(),
        "versions": {
            name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "daft")
        },
        "command": " ".join(["python", name, *map(_told, sys.argv[1:])]),
    }


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    meminfo = Path("/proc/meminfo")
    ram_kib = int(meminfo.read_text().split()[1]) if meminfo.exists() else 0
    load = os.getloadavg()[0]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "ram_gib": round(ram_kib / 2**20, 1),
        "load_average_1min": round(load, 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def store(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`: the figures, then where they come from."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, "provenance": provenance()}, indent=2) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def _told(argument: str) -> str:
    """An argument as it is stored: a folder of the machine that measured means nothing elsewhere."""
    return "FOLDER" if Path(argument).is_absolute() else argument


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
