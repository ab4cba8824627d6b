"""What we keep of a tracker in the run's folder: track/<name>.json. The tracker itself knows what it has been told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from tunesmith.runs import durable

SECRET_NAME = re.compile(r"token|key|secret|passw|credential", re.IGNORECASE)
IN_ADDRESS = re.compile(r"//[^/\s@]+@")


class TrackerState:
    """key: names the run in the tracker, made once. where: how a person finds it there. step: the last one told.
    bytes: how far events.jsonl has been told. problem: why it does not work at the moment, "" when it does."""

    def __init__(self, run_folder: Path, name: str) -> None:
        self.path, self.events = run_folder / "track" / f"{name}.json", run_folder / "events.jsonl"
        self.known: dict[str, Any] = {"key": "", "where": "", "step": 0, "bytes": 0, "problem": ""}
        # It may not be there yet, or be cut by a full disk: the tracker knows what it has.
        with contextlib.suppress(OSError, ValueError):
            self.known.update(json.loads(self.path.read_bytes()))

    def key(self) -> str:
        if not self.known["key"]:
            self.note(key=uuid.uuid4().hex[:12])
        return self.known["key"]

    def note(self, **changes: Any) -> None:
        if any(self.known.get(name) != value for name, value in changes.items()):
            self.known.update(changes)
            durable.write_json(self.path, self.known)

    @property
    def is_behind(self) -> bool:
        """True when events are written that the tracker has not been told of."""
        size = self.events.stat().st_size if self.events.exists() else 0
        return self.known["bytes"] < size


def without_secrets(text: str) -> str:
    """The text without what the environment holds under a name that looks like a secret, and without names and passwords
    in addresses: libraries quote both in their errors."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return IN_ADDRESS.sub("//***@", text)
