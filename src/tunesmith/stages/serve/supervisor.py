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
from collections.abc import Callable

GRACE_SECONDS = 3.0  # less than EngineProcess.stop waits before it ends us


def leave_with_parent(leave: Callable[[], None]) -> None:
    """Call `leave` when the parent's end of standard input closes."""

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        leave()

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    # A group of its own, so that what the command starts can be ended with it, and we outlive them to tell its status.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0)

    def end(*_: object) -> None:
        child.terminate()
        hard = threading.Timer(GRACE_SECONDS, _kill_group, [child.pid])
        hard.daemon = True
        hard.start()

    leave_with_parent(end)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    status = child.wait()
    _kill_group(child.pid)  # what the command left behind, such as its own engine processes
    return status if status >= 0 else 128 - status


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
