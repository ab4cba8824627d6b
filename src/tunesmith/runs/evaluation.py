"""The Evaluation artifact as others read it: its numbers, and the gate's word. Light."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "evaluation.json"


def read_evaluation(folder: Path) -> dict[str, Any]:
    """folder: of the artifact."""
    return json.loads((folder / FILE).read_bytes())


def why_held(evaluation: Mapping[str, Any]) -> str | None:
    """The gate's reason where it does not say ship; None where the model may go on. Whoever hands a model out asks."""
    gate = evaluation["gate"]
    return None if gate["verdict"] == "ship" else str(gate["reason"])
