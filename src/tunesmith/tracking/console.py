"""Progress for the person who waits, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.runs.events import Event
from tunesmith.units import format_bytes, format_count, format_seconds

UNUSUAL = "plan/unusual"
NOTES = ("prepare/note", "train/note", "run/waiting", "run/went_on")
# Worth a line of their own, which says where to look; the events hold the rest.
WARNINGS: dict[str, Callable[[Event], str]] = {
    UNUSUAL: lambda event: str(event.value),
    "run/network_file_system": lambda event: (
        f"the workspace lies on a network file system ({event.value}): a power cut may cost more than on a local disk"
    ),
    "run/continued": lambda event: f"goes on with {_changes(event.value)}",
    "environment/changed": lambda event: (
        f"not as at the last attempt, so last bits may differ: {_changes(event.value)}"
    ),
    "stage/changed": lambda event: f"{event.stage} begins anew, because of {_changes(event.value)}",
    "train/threads_changed": lambda event: str(event.value),
    "train/processes_changed": lambda event: str(event.value),
    "train/nonfinite": lambda event: f"step {event.step} was not finite and changed no weight; it is tried once more",
    "train/nonfinite_cause": lambda event: _cause(event),
    "train/out_of_memory": lambda event: (
        f"memory ran out {event.value['where']}: micro-batches of {event.value['from_now_on']} instead of "
        f"{event.value['micro_batch']} from here on, the steps stay the same"
    ),
    "train/spike": lambda event: f"step {event.step}: {_spike(event.value)}",
}
SHOWN_CHANGES = 6
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
        if event.name in NOTES or event.name in WARNINGS:  # said once and worth keeping: not rewritten, not left out
            told = (
                f"warning: {WARNINGS[event.name](event)}"
                if event.name in WARNINGS
                else f"{event.stage:<7} {event.value}"
            )
            sys.stderr.write(("\r\x1b[2K" if self.is_terminal else "") + f"  {told}\n")
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


def _changes(changed: Mapping[str, Sequence[Any]]) -> str:
    told = [f"{name}: {_word(old)} -> {_word(new)}" for name, (old, new) in list(changed.items())[:SHOWN_CHANGES]]
    more = len(changed) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _cause(event: Event) -> str:
    cause = event.value
    if cause["cause"] == "hardware":
        return f"step {event.step} was finite at its second try: not the rows, the hardware; nothing is lost"
    names = [str(name) for name in (*cause["weights"], *cause["rows"])]
    told = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"step {event.step} was not finite again and is left out, because of {told or 'all its rows together'}"


def _spike(value: Mapping[str, Any]) -> str:
    found = [f"{name} {pair[0]:.3g}, usually {pair[1]:.3g}" for name, pair in value.items() if name != "rows"]
    return f"{' and '.join(found)}; its rows are in the events"
