"""`python -m tunesmith.launch.agent RUN_PATH PROCESSES LAUNCHER_PID`: torchrun, which notes who failed first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tunesmith.launch import orphans
from tunesmith.runs import durable


def main(run_path: str, processes: str, launcher: str) -> int:
    orphans.leave_with(int(launcher))
    os.environ["TUNESMITH_AGENT"] = str(os.getpid())
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", processes, "--max-restarts", "0"]
    worker = ["-m", "tunesmith.launch.worker", run_path]
    try:
        torchrun.run(torchrun.parse_args([*options, "--monitor-interval", "0.2", *worker]))
    except ChildFailedError as error:
        statuses = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        durable.write_json(Path(run_path, "launch", "failures.json"), statuses)
        return 1
    return 0


if __name__ == "__main__":
    orphans.leave(main(*sys.argv[1:]))
