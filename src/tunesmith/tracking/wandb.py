"""Weights & Biases: online by its own upload process, offline as a folder for `wandb sync`.

Steps are W&B's own and only go up: what the server has of a step stays, later values for it are dropped. So online the
last step waits until it is complete, and a resumed run goes on behind the server's last step. Offline each session
writes one new folder from the first step on and then removes the ones before: one folder holds the whole run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.tracking.facts import Point, RunFacts, Summary
from tunesmith.tracking.preflight import wandb_server


def make(recipe: Recipe) -> Wandb:
    return Wandb(recipe)


class Wandb:
    def __init__(self, recipe: Recipe) -> None:
        self.settings = recipe.track.wandb
        self.is_online = self.settings.mode == "online"
        self.holds_last_step = self.is_online
        self.run: Any = None
        self.old: list[Path] = []

    def open(self, facts: RunFacts) -> str:
        import wandb

        if self.run is not None:  # the session before failed
            wandb.teardown()
        folder = facts.folder / "track"
        self.old = [] if self.is_online else sorted((folder / "wandb").glob(f"offline-run-*-{_id(facts)}"))
        settings = wandb.Settings(
            mode=self.settings.mode,
            base_url=wandb_server(self.settings),
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            program="tunesmith",
            init_timeout=30,
            x_stats_pid=facts.pid,
            x_transaction_log_flush_interval=1.0,  # what a killed machine may lose of an offline run
        )
        self.run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            id=_id(facts),
            name=self.settings.name or facts.id,
            tags=list(self.settings.tags) or None,
            resume="allow" if self.is_online else None,
            dir=str(folder),
            config=dict(facts.config),
            settings=settings,
        )
        self.start = self.run.starting_step if self.is_online else 0
        return self.run.url if self.is_online else f"wandb sync {Path(self.run.dir).parent}"

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        return lambda found: found.step < self.start

    def log(self, points: list[Point]) -> None:
        steps: dict[int, dict[str, float]] = {}
        for found in points:
            steps.setdefault(found.step, {})[found.name] = found.value
        for step, values in steps.items():
            self.run.log(values, step=step)
        self._remove_old()

    def close(self, summary: Summary) -> None:
        self.run.config.update(dict(summary.documents), allow_val_change=True)
        self.run.summary.update({**summary.numbers, **summary.texts, "end": summary.end})
        for path in summary.files:
            shutil.copyfile(path, Path(self.run.dir) / path.name)  # a link would be cut when the run's folder moves
            self.run.save(str(Path(self.run.dir) / path.name), base_path=self.run.dir, policy="now")
        self.run.finish(exit_code=0 if summary.end == "done" else 1)
        self._remove_old()

    def _remove_old(self) -> None:
        for path in self.old:
            shutil.rmtree(path, ignore_errors=True)
        self.old = []


def _id(facts: RunFacts) -> str:
    return f"{facts.id}-{facts.key}"
