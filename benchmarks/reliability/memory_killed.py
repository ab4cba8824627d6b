"""The train stage in a worker that the system kills for want of memory, once: what memory.py launches."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tunesmith.stages.train.loop import Loop
from tunesmith.stages.train.run import run as train

begin = Loop.begin


def run(spec: Any, inputs: Any, run: Any) -> Any:
    Loop.begin = killed  # type: ignore[method-assign]
    return train(spec, inputs, run)


def killed(self: Loop, number: int) -> Any:
    """In the fourth step, behind a checkpoint, on the second process, as long as the counter says that none was killed."""
    counter = Path(os.environ["RELIABILITY_COUNTER"])
    if number == 4 and self.engine.rank == 1 and counter.read_text().endswith("oom_kill 0\n"):
        counter.write_text("oom 1\noom_kill 1\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return begin(self, number)
