"""Events: one JSON line each, append-only. Every tracker, the report and the page read them through `read_events`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Event:
    """time: seconds since 1970. attempt: counts from 1. step: None where the event belongs to no training step."""

    time: float
    attempt: int
    stage: str
    step: int | None
    name: str
    value: Any
    unit: str

    def to_line(self) -> str:
        """One line of strict JSON; numbers that JSON does not have are written as words."""
        fields = {**self.__dict__, "time": round(self.time, 3), "value": _writable(self.value)}
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str | bytes) -> Event | None:
        """The event, or None for a torn or foreign line."""
        try:
            fields = json.loads(line)
            value = fields["value"]
            if isinstance(value, str):
                value = NOT_FINITE.get(value, value)
            return cls(
                fields["time"], fields["attempt"], fields["stage"], fields["step"], fields["name"], value,
                fields["unit"],
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            return None


def _writable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        return _writable(value.item())
    return value


def read_lines(path: Path) -> list[Event]:
    """Every event of every attempt in the order written; torn lines are passed over. No file: no events."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for line in lines if line and (event := Event.from_line(line)) is not None]


def read_events(path: Path) -> list[Event]:
    """The events that count: of each (stage, step, name) only those of the last attempt that told it.

    A step redone after a crash is told once: by its last attempt, and there by its last line. An event without a step
    may be told several times in one attempt (progress, say); all of these are kept. Order is as written.
    """
    events = read_lines(path)
    last: dict[tuple[str, int | None, str], tuple[int, int]] = {}
    for position, event in enumerate(events):
        key = (event.stage, event.step, event.name)
        if key not in last or event.attempt >= last[key][0]:
            last[key] = (event.attempt, position)
    kept = []
    for position, event in enumerate(events):
        attempt, final = last[event.stage, event.step, event.name]
        if position == final or (event.step is None and event.attempt == attempt):
            kept.append(event)
    return kept


class Tail:
    """New events of a file that another process writes, from the moment this is made, or from its beginning.

    position: bytes read so far.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.path = Path(path)
        self.position = self.path.stat().st_size if self.path.exists() and not from_start else 0

    def read(self) -> list[Event]:
        """The events written since the last call; a line that is still being written waits for the next one."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        return [event for line in whole.split(b"\n") if line and (event := Event.from_line(line)) is not None]
