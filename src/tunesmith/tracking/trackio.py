"""Trackio: its local store, a SQLite file per project under TRACKIO_DIR, else trackio/ in the workspace.

Its log() hands over to a thread and never says that something went wrong, so what was told is looked up in the store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.tracking.facts import Point, RunFacts, Summary, flat

STORED_WITHIN_S = 5.0


def make(recipe: Recipe) -> Trackio:
    return Trackio(recipe)


class Trackio:
    holds_last_step = False

    def __init__(self, recipe: Recipe) -> None:
        self.settings = recipe.track.trackio
        self.run: Any = None

    def open(self, facts: RunFacts) -> str:
        folder = os.environ.setdefault("TRACKIO_DIR", str(facts.workspace / "trackio"))
        import trackio

        project = self.settings.project
        self.run = trackio.init(
            project,
            name=self.settings.name or facts.id,
            resume="allow",
            config=flat(facts.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return f"TRACKIO_DIR={folder} trackio show --project {project}"

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        known = self._stored()
        return lambda found: (found.name, found.step) in known

    def log(self, points: list[Point]) -> None:
        steps: dict[int, dict[str, float]] = {}
        for found in points:
            steps.setdefault(found.step, {})[found.name] = found.value
        self._store(list(steps.items()))

    def close(self, summary: Summary) -> None:
        known = self._stored()
        fresh = {name: value for name, value in summary.numbers.items() if (name, summary.step) not in known}
        self._store([(summary.step, {**fresh, **summary.texts, "end": summary.end})])
        self.run.finish()

    def _store(self, entries: list[tuple[int, dict[str, Any]]]) -> None:
        """Raises RuntimeError when they are not in the store within seconds."""
        wanted = self._count() + len(entries)
        for step, values in entries:
            self.run.log(values, step=step)
        deadline = time.monotonic() + STORED_WITHIN_S
        while (count := self._count()) < wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{wanted - count} steps did not reach Trackio's store within {STORED_WITHIN_S:g} s")
            time.sleep(0.05)

    def _count(self) -> int:
        from trackio.sqlite_storage import SQLiteStorage

        return SQLiteStorage.get_log_count(self.settings.project, self.run.name, run_id=self.run.id)

    def _stored(self) -> set[tuple[str, int]]:
        from trackio.sqlite_storage import SQLiteStorage

        logs = SQLiteStorage.get_logs(self.settings.project, self.run.name, run_id=self.run.id)
        return {(name, entry["step"]) for entry in logs for name in entry}
