"""A full or failing disk is a pause: what could not be written is tried again for some minutes before the run leaves."""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tunesmith.errors import FileError, InterruptedRun, StoppedError, TunesmithError
from tunesmith.runs import durable
from tunesmith.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from tunesmith.runs.run import Run

T = TypeVar("T")
WAIT_S = 600.0  # less than the other training processes wait for the one that writes
CHECK_S = 5.0
POLL_S = 0.2  # between two looks for a stop
MAY_PASS = {*durable.FULL, errno.EIO}
NOTHING_LOST = "the last checkpoint is untouched; what was learned since it is lost"


class Clock:
    """Time, so that a test need not wait."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


clock = Clock()


def patiently(run: Run, act: Callable[[], T], *, needed: int) -> T:
    """The answer of `act`, which is called again every few seconds while the disk refuses; it must bear that.

    needed: bytes that it writes in all, as far as they are known. Says once that it waits, and what for. Raises StoppedError RUN-033 when the disk is still full after WAIT_S, the FileError of
    `act` when it still fails, InterruptedRun or the reason when a stop is asked for meanwhile; all else at once.
    """
    try:
        return act()
    except FileError as error:
        if not run.is_patient or _number(error) not in MAY_PASS:
            raise
        trouble = error
    started = clock.now()
    _say(run, "run/waiting", _words(trouble, needed))
    while True:
        _pause(run, trouble)
        try:
            answer = act()
        except FileError as error:
            if _number(error) not in MAY_PASS:
                raise
            trouble = error
        else:
            _say(run, "run/went_on", f"the disk takes files again; waited {format_seconds(clock.now() - started)}")
            return answer
        if clock.now() - started >= WAIT_S:
            raise _leaving(trouble, needed) from trouble


def _number(error: FileError) -> int | None:
    return getattr(error.__cause__, "errno", None)


def _told(error: FileError, needed: int) -> str:
    return f"{error.headline}; {format_bytes(needed)} needed in all" if needed else error.headline


def _words(error: FileError, needed: int) -> str:
    return (
        f"{_told(error, needed)}; waiting: trying again every {CHECK_S:.0f} s for {format_seconds(WAIT_S)}, "
        "then leaving; Ctrl-C leaves at once"
    )


def _pause(run: Run, trouble: FileError) -> None:
    """Until the next try. A stop has nothing to wait for: what cannot be written cannot be saved."""
    until = clock.now() + CHECK_S
    while clock.now() < until:
        if run.stop_signal is not None:
            name = signal.Signals(run.stop_signal).name
            raise InterruptedRun(
                run.stop_signal,
                f"stopped by {name} while nothing could be written ({trouble.headline}); {NOTHING_LOST}",
                fix="free some space, then run the same command again: it goes on from there",
            ) from trouble
        if run.stop_reason is not None:
            raise run.stop_reason from trouble
        clock.sleep(POLL_S)


def _leaving(trouble: FileError, needed: int) -> TunesmithError:
    if _number(trouble) not in durable.FULL:
        return trouble  # an error of the disk is nothing that time mends
    return StoppedError(
        "RUN-033",
        f"{_told(trouble, needed)}; waited {format_seconds(WAIT_S)} in vain",
        expected=f"room for the file; {NOTHING_LOST}",
        fix="free some space (tunesmith runs lists old runs), then run the same command again: it goes on from there",
    )


def _say(run: Run, name: str, words: str) -> None:
    """As an event if there is room for a line; to those who listen in any case."""
    event = run.event("run", name, words)
    with contextlib.suppress(FileError):
        durable.append_line(run.path / "events.jsonl", event.to_line())
    run.tell(event)
