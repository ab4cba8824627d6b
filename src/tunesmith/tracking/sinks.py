"""Event sinks: a sink is called with each event. One that fails is left out and never stops a run."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.units import format_bytes, format_count, format_seconds

Sink = Callable[[Event], None]
UNUSUAL = "plan/unusual"
NOTES = ("train/note",)
SHOWN = {
    "prepare/rows_read": "rows read",
    "prepare/rows_encoded": "rows encoded",
    "evaluate/base_answers": "base answers",
    "evaluate/tuned_answers": "tuned answers",
    "serve/answers": "served answers",
}


def open_sinks(names: tuple[str, ...], run: Run) -> list[Sink]:
    """The sinks a recipe asks for by `track`."""
    makers: dict[str, Callable[[], Sink]] = {"console": Console, "files": lambda: MetricsFile(run.path / "metrics.csv")}
    return [makers[name]() for name in names]


class Console:
    """Progress on standard error: one line that is rewritten on a terminal, a line every few seconds elsewhere."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.every_s = 0.2 if self.is_terminal else every_s
        self.last = 0.0
        self.loss = ""
        self.steps = 0
        self.started = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.name in NOTES or event.name == UNUSUAL:  # said once and worth keeping: not rewritten, not left out
            head = "warning:" if event.name == UNUSUAL else f"{event.stage:<7}"
            sys.stderr.write(("\r\x1b[2K" if self.is_terminal else "") + f"  {head} {event.value}\n")
            sys.stderr.flush()
            return
        line = self._line(event)
        if line is None or (time.monotonic() - self.last < self.every_s and event.name != "validation/perplexity"):
            return
        self.last = time.monotonic()
        if self.is_terminal:
            sys.stderr.write(f"\r\x1b[2K  {line}")
        else:
            sys.stderr.write(f"  {line}\n")
        sys.stderr.flush()

    def _line(self, event: Event) -> str | None:
        if event.name == "train/steps":
            self.steps, self.started = int(event.value), time.monotonic()
        if event.name == "train/loss":
            self.loss = f"{event.value:.4f}"
        if event.name == "train/tokens_per_second" and event.step:
            left = (time.monotonic() - self.started) / event.step * (self.steps - event.step)
            return f"train   step {event.step}/{self.steps}  loss {self.loss}  {format_count(event.value)} tokens/s  about {format_seconds(left)} left"
        if event.name == "validation/perplexity":
            return f"train   step {event.step}/{self.steps}  loss {self.loss}  validation perplexity {event.value:.3f}"
        if event.name in SHOWN:
            return f"{event.stage:<7} {format_count(event.value)} {SHOWN[event.name]}"
        if event.name == "run/base_model_bytes":
            return f"model   {format_bytes(event.value['done'])} of {format_bytes(event.value['total'])} fetched"
        if event.name == "serve/phase":
            return f"{event.stage:<7} {event.value}"
        return None


class MetricsFile:
    """metrics.csv beside the report: step, name, value, unit of every numeric event of a training step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if event.step is None or not isinstance(event.value, (int, float)):
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["attempt", "step", "name", "value", "unit"])
            writer.writerow([event.attempt, event.step, event.name, event.value, event.unit])
