"""Ctrl-C, SIGTERM and a closed terminal: while a stage works the first asks it to save and leave, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from tunesmith.runs.run import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handled(run: Run) -> Iterator[None]:
    """Within the block signals set `run.stopping`."""

    def handle(signum: int, frame: FrameType | None) -> None:
        # Only a flag and one write to the terminal: a handler may have interrupted anything, a file lock included.
        if run.stop_signal is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        run.stop(signum)
        with contextlib.suppress(OSError):
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: saving, then leaving; once more leaves at once\n".encode())

    with handlers(handle):
        yield


@contextlib.contextmanager
def noted(ask: Callable[[int], None]) -> Iterator[None]:
    """Within the block each signal calls `ask` with its number and does nothing else; `handled` may stand inside."""
    with handlers(lambda signum, frame: ask(signum)):
        yield


@contextlib.contextmanager
def handlers(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block the signals call `handle`, those before afterwards. Signals that are ignored (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
