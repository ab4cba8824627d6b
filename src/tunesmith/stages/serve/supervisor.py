"""A program that ends when the process that started it does, also after a SIGKILL of that one.

    python -m tunesmith.stages.serve.supervisor COMMAND ARGUMENTS...

Runs the command and ends it, with all that it started, when standard input closes; leaves with the command's status. For
engines that are not ours (vLLM): they know nothing of us. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

GRACE_SECONDS = 5.0


def leave_with_parent(leave: Callable[[], None]) -> None:
    """Call `leave` when the parent's end of standard input closes."""

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        leave()

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    leave_with_parent(lambda: _end(child))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: _end(child))
    status = child.wait()
    _kill_group()  # what the command left behind, such as its own engine processes
    return status


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the command, then SIGKILL to our whole group: ourselves with it."""
    child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill_group(signal.SIGKILL)


def _kill_group(signum: int = signal.SIGTERM) -> None:
    if os.getpgrp() != os.getpid():
        return  # started without a group of our own: there is nobody else in it that is ours to end
    with contextlib.suppress(ProcessLookupError):
        if signum == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signum)


if __name__ == "__main__":
    sys.exit(main())
