"""metrics.csv beside the report, for a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

from tunesmith.runs.events import Event, read_events

HEAD = ("attempt", "step", "name", "value", "unit")


class MetricsFile:
    """attempt, step, name, value, unit of every numeric event of a training step.

    Lines are added as events come; at the end the file is written anew from the events that count, so that a step that
    was redone after a crash stands there once.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.events = folder / "metrics.csv", folder / "events.jsonl"

    def __call__(self, event: Event) -> None:
        row = _row(event)
        if row is None:
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([HEAD, row] if is_new else [row])

    def close(self, end: str) -> None:
        rows = [row for event in read_events(self.events) if (row := _row(event)) is not None]
        if not rows:
            return
        aside = self.path.with_suffix(".csv.new")
        with aside.open("w", newline="") as file:
            csv.writer(file).writerows([HEAD, *rows])
        aside.replace(self.path)


def _row(event: Event) -> tuple[object, ...] | None:
    if event.step is None or not isinstance(event.value, (int, float)):
        return None
    return event.attempt, event.step, event.name, event.value, event.unit
