"""The side of a slow tracker that lives in the command: it starts the feed, looks at it now and then, ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.tracking.state import TrackerState

LOOK_EVERY_S = 5.0
GRACE_S = 2.0  # over what the feed was granted, before it is killed


class Feeder:
    """A sink that hands nothing over by itself: events.jsonl is what its process reads. An event costs a look at a clock."""

    def __init__(self, name: str, run: Run, attempt: int) -> None:
        self.name, self.run = name, run
        self.__name__ = name
        self.looked = time.monotonic()
        self.told = ""  # the problem that was said last
        command = [sys.executable, "-P", "-m", "tunesmith.tracking.feed", str(run.path), name, str(attempt)]
        self.process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # libraries print what they like, secrets included
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the command, which ends this process in its own time
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, event: Event) -> None:
        if time.monotonic() - self.looked > LOOK_EVERY_S:
            self.looked = time.monotonic()
            self.look()

    def look(self) -> None:
        """Says once why the tracker does not work, when it does not."""
        problem = TrackerState(self.run.path, self.name).known["problem"]
        if problem and not self.told:
            print(f"tunesmith: tracker {self.name} does not work: {problem}", file=sys.stderr)
            print("tunesmith: training goes on, and it is tried again", file=sys.stderr)
        self.told = problem

    def ask_to_end(self, end: str, limit_s: float) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has gone already
            self.process.stdin.write(f"{end} {limit_s}\n".encode())
            self.process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Until it has ended, by time.monotonic(). One that has not is killed, and what it leaves untold is said."""
        try:
            self.process.wait(max(0.0, deadline + GRACE_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()
        state = TrackerState(self.run.path, self.name)
        if state.is_behind:
            why = f" ({state.known['problem']})" if state.known["problem"] else ""
            print(
                f"tunesmith: tracker {self.name} has been told up to step {state.known['step']} only{why}; "
                "the rest is in events.jsonl and goes out when the same command is run again",
                file=sys.stderr,
            )

    def kill(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
