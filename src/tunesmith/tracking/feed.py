"""`python -m tunesmith.tracking.feed RUN_FOLDER TRACKER ATTEMPT PID`: tells one tracker what events.jsonl says.

A tracker has a process of its own, so that nothing it does reaches the training: not its import, not a server that
hangs, not a handler it leaves for the end of the process. events.jsonl is the queue: it is written anyway, it loses
nothing, and after a crash it is still there. On standard input comes one line, "END SECONDS", when the command has ended
(done, failed, stopped) and how long this process may go on; the input closed without it means the command was killed.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tunesmith.runs.events import Event, Tail, read_events
from tunesmith.runs.run import Run
from tunesmith.tracking.facts import End, Point, RunFacts, Summary, Tracker, point, summary
from tunesmith.tracking.state import TrackerState, without_secrets

POLL_S = 0.5
NOTE_EVERY_S = 5.0
RETRY_S = (1.0, 2.0, 5.0, 15.0)  # and then every 15 s
KILLED_LIMIT_S = 30.0
BATCH = 900  # points handed over at once; MLflow takes 1,000


class Feed:
    """One session with a tracker: each number once, in the order of steps.

    Numbers of earlier attempts wait until this attempt shows from which step on it works again: what it will tell anew is
    left to it, so that a tracker gets the last attempt of a step wherever it has not been told already.
    """

    def __init__(self, tracker: Tracker, run_folder: Path, attempt: int) -> None:
        self.tracker, self.attempt = tracker, attempt
        self.tail = Tail(run_folder / "events.jsonl", from_start=True)
        self.earlier: dict[tuple[str, int], Point] | None = {}  # None once it is known what of it holds
        self.resumed = 0  # the step this attempt goes on from
        self.waiting: list[Point] = []
        self.is_told: Callable[[Point], bool] | None = None
        self.step = 0  # last one told

    def turn(self, end: End | None = None) -> None:
        """Takes what has been written and hands it over. end: how the command ended, when it has."""
        for event in self.tail.read():
            self._take(event)
        if end is not None and self.earlier is not None:
            self._release(None)
        self._hand_over(end)

    @property
    def num_left(self) -> int:
        return len(self.waiting) + len(self.earlier or ())

    def _take(self, event: Event) -> None:
        found = point(event)
        if self.earlier is not None and event.attempt == self.attempt and event.stage == "train":
            if event.name == "train/resumed":
                self.resumed = int(event.value)
            elif event.name == "stage/reused":
                self._release(None)
            elif event.step is not None and event.step > self.resumed:
                self._release(event.step - 1)
        if found is None:
            return
        # Of the step it resumed from a validation may be made up for, or told once more: it takes the older one's place.
        if self.earlier is not None and event.step is not None:
            self.earlier.pop((found.name, found.step), None)
            self.earlier[found.name, found.step] = found
        else:
            self.waiting.append(found)

    def _release(self, up_to: int | None) -> None:
        """What earlier attempts told of steps up to `up_to` holds (None: all of it); the rest is told anew."""
        assert self.earlier is not None
        kept = [found for found in self.earlier.values() if up_to is None or found.step <= up_to]
        self.waiting = [*sorted(kept, key=lambda found: found.step), *self.waiting]
        self.earlier = None

    def _hand_over(self, end: End | None) -> None:
        ready, self.waiting = self._complete(end)
        if not ready:
            return
        if self.is_told is None:
            self.is_told = self.tracker.told({found.name for found in ready})
        ready = [found for found in ready if not self.is_told(found)]
        for start in range(0, len(ready), BATCH):
            part = ready[start : start + BATCH]
            self.tracker.log(part)
            self.step = max(self.step, part[-1].step)

    def _complete(self, end: End | None) -> tuple[list[Point], list[Point]]:
        """What can be told now, and what has to wait."""
        if self.earlier is not None:
            return [], self.waiting
        if not self.tracker.holds_last_step or end in ("done", "failed") or not self.waiting:
            return self.waiting, []
        last = self.waiting[-1].step
        return [p for p in self.waiting if p.step < last], [p for p in self.waiting if p.step >= last]


class Orders:
    """What the command says: how it ended, and until when this process may go on."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.deadline = float("inf")
        self._heard = threading.Event()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        line = sys.stdin.readline().split()
        self.end, limit = (line[0], float(line[1])) if len(line) == 2 else ("killed", KILLED_LIMIT_S)  # type: ignore[assignment]
        self.deadline = time.monotonic() + limit
        self._heard.set()
        time.sleep(limit)
        os._exit(1)  # a library may hang in a call that nothing else ends

    def wait(self, seconds: float) -> None:
        """Until so many seconds have passed or the command has ended, whichever comes first."""
        self._heard.wait(seconds)


def main(run_folder: str, name: str, attempt: str, pid: str) -> int:
    """Until the command has ended and the tracker knows everything. A tracker that fails is tried again."""
    orders = Orders()
    folder = Path(run_folder)
    _wait_for_the_one_before(folder, name)
    state = TrackerState(folder, name)
    failures = 0
    while True:
        try:
            _session(folder, name, int(attempt), int(pid), state, orders)
            return 0
        except Exception as error:
            _note_problem(folder, name, state, error)
            if orders.end is not None and time.monotonic() + 1.0 > orders.deadline:
                return 1
            pause = RETRY_S[min(failures, len(RETRY_S) - 1)]
            failures += 1
            if orders.end is None:
                orders.wait(pause)
            else:
                time.sleep(1.0)


def _wait_for_the_one_before(folder: Path, name: str) -> None:
    """The feed of a command that was killed may still be telling its last numbers. Held until this process ends."""
    (folder / "track").mkdir(exist_ok=True)
    fcntl.flock(os.open(folder / "track" / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666), fcntl.LOCK_EX)


def _session(folder: Path, name: str, attempt: int, pid: int, state: TrackerState, orders: Orders) -> None:
    run = Run.open(folder)
    tracker: Tracker = importlib.import_module(f"tunesmith.tracking.{name}").make(run.recipe)
    facts = RunFacts(run.id, state.key(), folder, run.workspace, run.recipe, run.recipe.model_dump(mode="json"), pid)
    where = tracker.open(facts)
    state.note(where=where, problem="")
    feed, noted = Feed(tracker, folder, attempt), time.monotonic()
    while True:
        end = orders.end
        feed.turn(end)
        if end is not None:
            break
        if time.monotonic() - noted > NOTE_EVERY_S:
            noted = time.monotonic()
            state.note(step=max(feed.step, state.known["step"]))
        orders.wait(POLL_S)
    size = feed.tail.position
    state.note(step=max(feed.step, state.known["step"]))
    tracker.close(_summary(run, end, folder))
    if feed.num_left == 0:
        state.note(bytes=size)


def _summary(run: Run, end: End, folder: Path) -> Summary:
    documents = {name: found for name in ("plan", "environment") if (found := getattr(run, name)) is not None}
    return summary(read_events(folder / "events.jsonl"), end, folder, documents)


def _note_problem(folder: Path, name: str, state: TrackerState, error: Exception) -> None:
    told = without_secrets(f"{type(error).__name__}: {error}")
    try:
        state.note(problem=told[:500])
        with (folder / "track" / f"{name}.log").open("a") as file:
            file.write(without_secrets(traceback.format_exc()) + "\n")
    except Exception:  # the disk may be full: then nobody can be told, and the training goes on all the same
        return


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    os._exit(status)  # handlers that libraries leave for the end may wait for a dead server
