"""`python -m tunesmith.tuning REQUEST`: one of several workers of a search; how it ended stands beside the request."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.launch import orphans
from tunesmith.runs import durable
from tunesmith.tuning.progress import Progress
from tunesmith.tuning.search import Search
from tunesmith.tuning.worker import Worker


def main(request: str) -> int:
    path = Path(request)
    asked = json.loads(path.read_bytes())
    orphans.leave_with(asked["parent"])
    left = asked["seconds_left"]
    deadline = None if left is None else time.monotonic() + left
    progress = Progress(asked["workers"], deadline, None if asked["is_silent"] else _say)
    try:
        search = Search.from_json(asked["search"])
        study = search.open_study()
        Worker(search, study, progress, deadline).work()
        study.close()
    except TunesmithError as error:
        durable.write_json(path.with_suffix(".end"), {"family": type(error).__name__, "error": error.to_json()})
        return error.exit_status
    return 0


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    orphans.leave(main(sys.argv[1]))
