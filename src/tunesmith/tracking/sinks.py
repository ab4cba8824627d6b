"""Where events go besides events.jsonl. A sink is called with each event; one that fails is left out, the run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tunesmith.recipe.tree import Track
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
    """All sinks of a command, as one listener. They open with the first event, when the Run is there; a command that
    finds nothing to do opens none, unless a tracker has been left behind.

    track: the recipe's. folder: the run's. listeners: more to call with each event.
    """

    def __init__(self, track: Track, folder: Path, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        self.track, self.folder = track, folder
        self.calls: list[Callable[[Event], None]] = [*listeners]
        self.sinks: list[Sink] = []
        self.feeders: list[Feeder] = []
        self.is_open = False

    def __call__(self, event: Event) -> None:
        if not self.is_open:
            self._open(event.attempt, self.track.to)
        for call in list(self.calls):
            try:
                call(event)
            except Exception as error:  # a tracker that is down must not cost the run
                self.calls.remove(call)
                self._say_left_out(call, error)

    def close(self, end: str) -> None:
        """end: done, failed or stopped. Waits for the trackers, with a limit; raises nothing but KeyboardInterrupt."""
        if not self.is_open and end == "done":
            self._catch_up()
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

    def _open(self, attempt: int, names: Sequence[str]) -> None:
        self.is_open = True
        run = Run.open(self.folder)
        for name in names:
            try:
                if name in TRACKERS:
                    self.feeders.append(Feeder(name, run, attempt))
                    self.calls.append(self.feeders[-1])
                else:
                    self.sinks.append(Console() if name == "console" else MetricsFile(run.path))
                    self.calls.append(self.sinks[-1])
            except OSError as error:
                self._say_left_out(name, error)

    def _catch_up(self) -> None:
        """Nothing happened in this command, so nothing was told; what an earlier one could not tell goes out now."""
        wanted = [name for name in self.track.to if name in TRACKERS]
        behind = [name for name in wanted if TrackerState(self.folder, name).is_behind]
        if behind:
            self._open(Run.open(self.folder).attempt + 1, behind)  # all attempts are earlier ones

    def _close(self, sink: Sink, end: str) -> None:
        try:
            sink.close(end)
        except Exception as error:
            self._say_left_out(sink, error)

    def _say_left_out(self, what: object, error: Exception) -> None:
        name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
        print(f"tunesmith: tracker {name} failed and is left out from here on: {error!r}", file=sys.stderr)

    def _say_where(self) -> None:
        if "console" not in self.track.to:
            return
        for feeder in self.feeders:
            where = TrackerState(self.folder, feeder.name).known["where"]
            if where:
                print(f"  {feeder.name:<11} {where}", file=sys.stderr)
