"""Where events go besides events.jsonl. A sink is called with each event; one that fails is left out, the run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.tracking.console import Console
from tunesmith.tracking.feeder import Feeder
from tunesmith.tracking.files import MetricsFile
from tunesmith.tracking.preflight import TRACKERS
from tunesmith.tracking.state import TrackerState

DRAIN_S = 30.0  # how long trackers may take at the end of a command; waiting is for them only, all else is done
HURRIED_DRAIN_S = 8.0  # after Ctrl-C or SIGTERM: somebody waits


class Sink(Protocol):
    """It must not wait for anything but this machine's disk: what may is a Feeder."""

    def __call__(self, event: Event) -> None: ...

    def close(self, end: str) -> None:
        """The command has ended: done, failed or stopped."""


class Sinks:
    """All sinks of a command, as one listener of its Run. names: those of the recipe's track.to that are wanted."""

    def __init__(self, names: Sequence[str], run: Run, attempt: int | None = None) -> None:
        self.names, self.run = names, run
        self.calls: list[Sink | Feeder] = []
        self.sinks: list[Sink] = []
        self.feeders: list[Feeder] = []
        for name in names:
            try:
                self._open(name, attempt or run.attempt)
            except OSError as error:
                self._say_left_out(name, error)

    def _open(self, name: str, attempt: int) -> None:
        if name in TRACKERS:
            self.feeders.append(Feeder(name, self.run, attempt))
            self.calls.append(self.feeders[-1])
        else:
            self.sinks.append(Console() if name == "console" else MetricsFile(self.run.path))
            self.calls.append(self.sinks[-1])

    def __call__(self, event: Event) -> None:
        for call in list(self.calls):
            try:
                call(event)
            except Exception as error:  # a tracker that is down must not cost the run
                self.calls.remove(call)
                self._say_left_out(call, error)

    def close(self, end: str) -> None:
        """end: done, failed or stopped. Waits for the trackers, with a limit; raises nothing but KeyboardInterrupt."""
        limit = HURRIED_DRAIN_S if end == "stopped" else DRAIN_S
        deadline = time.monotonic() + limit
        try:
            for feeder in self.feeders:
                feeder.ask_to_end(end, limit)
            for sink in self.sinks:
                if sink in self.calls:
                    self._close(sink, end)
            for feeder in self.feeders:
                feeder.wait(deadline)
        finally:  # a second Ctrl-C
            for feeder in self.feeders:
                feeder.kill()
        self._say_where()

    def _close(self, sink: Sink, end: str) -> None:
        try:
            sink.close(end)
        except Exception as error:
            self._say_left_out(sink, error)

    def _say_left_out(self, what: object, error: Exception) -> None:
        name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
        print(f"tunesmith: tracker {name} failed and is left out from here on: {error!r}", file=sys.stderr)

    def _say_where(self) -> None:
        if "console" not in self.names:
            return
        for feeder in self.feeders:
            where = TrackerState(self.run.path, feeder.name).known["where"]
            if where:
                print(f"  {feeder.name:<11} {where}", file=sys.stderr)


def catch_up(names: Sequence[str], run: Run) -> None:
    """For a command that found nothing to do: what an earlier one could not tell goes out now."""
    behind = [name for name in names if name in TRACKERS and TrackerState(run.path, name).is_behind]
    if behind:
        Sinks(behind, run, attempt=run.attempt + 1).close("done")  # all attempts are earlier ones
