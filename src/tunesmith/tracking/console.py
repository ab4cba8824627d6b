"""Progress for the person who waits, on standard error."""

from __future__ import annotations

import sys
import time

from tunesmith.runs.events import Event
from tunesmith.units import format_bytes, format_count, format_seconds

UNUSUAL = "plan/unusual"
NETWORK = "run/network_file_system"
NOTES = ("prepare/note", "train/note", "run/waiting", "run/went_on")
SHOWN = {
    "prepare/rows_read": "rows read",
    "prepare/rows_judged": "rows judged",
    "prepare/rows_scored": "rows scored by the base model",
    "prepare/rows_encoded": "rows encoded",
    "evaluate/base_answers": "base answers",
    "evaluate/tuned_answers": "tuned answers",
    "serve/answers": "served answers",
}


class Console:
    """Progress on standard error: one line that is rewritten on a terminal, a line every few seconds elsewhere."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.every_s = 0.2 if self.is_terminal else every_s
        self.last = 0.0
        self.shown = ""
        self.held = ""  # the latest count that was too soon to be shown
        self.loss = ""
        self.steps = self.first = 0
        self.started = time.monotonic()

    def __call__(self, event: Event) -> None:
        if self.held and event.name != self.shown and (event.name in SHOWN or event.name in NOTES):
            sys.stderr.write(
                ("\r\x1b[2K" if self.is_terminal else "") + f"  {self.held}\n"
            )  # where the step before ended
            self.held = ""
        if event.name in (*NOTES, UNUSUAL, NETWORK):  # said once and worth keeping: not rewritten, not left out
            head = f"{event.stage:<7}" if event.name in NOTES else "warning:"
            value = event.value
            if event.name == NETWORK:
                value = f"the workspace lies on a network file system ({value}): a power cut may cost more than on a local disk"
            sys.stderr.write(("\r\x1b[2K" if self.is_terminal else "") + f"  {head} {value}\n")
            sys.stderr.flush()
            return
        line = self._line(event)
        if line is None:
            return
        # What begins is said at once; more of the same waits.
        is_new = event.name in SHOWN and event.name != self.shown
        is_soon = time.monotonic() - self.last < self.every_s
        if is_soon and not is_new and event.name != "validation/perplexity":
            self.held = line if event.name in SHOWN else self.held
            return
        self.held = ""
        self.last, self.shown = time.monotonic(), event.name
        if self.is_terminal:
            sys.stderr.write(f"\r\x1b[2K  {line}")
        else:
            sys.stderr.write(f"  {line}\n")
        sys.stderr.flush()

    def _line(self, event: Event) -> str | None:
        if event.name == "train/steps":
            self.steps, self.first, self.started = int(event.value), 0, time.monotonic()
        if event.name == "train/loss":
            self.loss = f"{event.value:.4f}"
        if event.name == "train/tokens_per_second" and event.step:
            self.first = self.first or event.step  # of this command: a resumed one does not begin with step 1
            pace = (time.monotonic() - self.started) / (event.step - self.first + 1)
            left = pace * (self.steps - event.step)
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

    def close(self, end: str) -> None:
        """Nothing is held back."""
