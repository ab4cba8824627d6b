"""What the proof of serving depends on besides the recipe and its inputs: the other adapters. Light."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.runs.run import Run

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The content of each of `serve.adapters`. Raises: UsageError RUN-008 for a run that is not there."""
    return {name: _content(place, run.workspace) for name, place in sorted(spec.serve.adapters.items())}


def _content(place: str, workspace: Path) -> Any:
    """A run's exported adapter and its evaluation by their ids, a folder's weights by their hash."""
    if (Path(place) / "adapter_config.json").is_file():
        names = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")
        found = [Path(place) / name for name in names if (Path(place) / name).is_file()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    other = Run.open(place, workspace)
    outputs = {**(other.outputs("evaluate") or {}), **(other.outputs("export") or {})}
    return {name: outputs[name].id for name in ("evaluation", "adapter") if name in outputs}
