"""How gradients become an update: alone, as replicas, in shards. The loop sees one interface, that of LocalEngine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Loaded on first use: the table of DeepSpeed's keys is asked for before anything heavy is imported.
_PLACES = {
    "LocalEngine": "local",
    "Verdict": "local",
    "ReplicaEngine": "replicas",
    "FsdpEngine": "fsdp",
    "DeepSpeedEngine": "deepspeed",
    "make_engine": "choice",
}

__all__ = ["DeepSpeedEngine", "FsdpEngine", "LocalEngine", "ReplicaEngine", "Verdict", "make_engine"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
