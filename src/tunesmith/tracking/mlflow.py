"""MLflow: a run in an experiment of a tracking server or of a database, through MLflow's own client.

Points carry the time at which they were measured. What MLflow has been told it keeps: there is no taking back, so that of
a step that is done again after a crash the first telling stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.tracking.facts import End, Point, RunFacts, Summary, flat
from tunesmith.tracking.preflight import mlflow_uri

KEY_TAG = "tunesmith.key"
STATUS: dict[End, str] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "killed": "KILLED"}
MAX_PARAMS, MAX_PARAM_LENGTH = 100, 6000  # of one request; of one value


def make(recipe: Recipe) -> Mlflow:
    return Mlflow(recipe)


class Mlflow:
    holds_last_step = False

    def __init__(self, recipe: Recipe) -> None:
        self.track, self.settings = recipe.track, recipe.track.mlflow
        self.client: Any = None
        self.run_id = ""
        self.is_new = True

    def open(self, facts: RunFacts) -> str:
        # A server that hangs is given up after seconds and asked again, rather than waited for in one call of minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = mlflow_uri(self.track) or f"sqlite:///{facts.workspace / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(uri, facts)
        found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{facts.key}'", max_results=1)
        self.is_new = not found
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            tags = {KEY_TAG: facts.key, "tunesmith.run": facts.id, **{tag: "" for tag in self.settings.tags}}
            self.run_id = self.client.create_run(
                experiment, tags=tags, run_name=self.settings.name or facts.id
            ).info.run_id
        params = [Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in flat(facts.config).items()]
        for start in range(0, len(params), MAX_PARAMS):  # the same values again are no error
            self.client.log_batch(self.run_id, params=params[start : start + MAX_PARAMS])
        shown = uri.rpartition("@")[2] if "@" in uri else uri
        if uri.startswith("sqlite:"):
            return f"mlflow ui --backend-store-uri {uri}"
        return f"{shown.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def _experiment(self, uri: str, facts: RunFacts) -> str:
        found = self.client.get_experiment_by_name(self.settings.experiment)
        if found is not None:
            return found.experiment_id
        # Beside the database, not in the folder that somebody happens to stand in; a server knows its own place.
        place = str(facts.workspace / "mlflow-artifacts") if uri.startswith("sqlite:") else None
        return self.client.create_experiment(self.settings.experiment, artifact_location=place)

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        if self.is_new:
            return lambda found: False
        known = {(name, m.step) for name in names for m in self.client.get_metric_history(self.run_id, name)}
        return lambda found: (found.name, found.step) in known

    def log(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(found.name, found.value, round(found.time * 1000), found.step) for found in points]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, summary: Summary) -> None:
        now = time.time()
        known = self.client.get_run(self.run_id).data.metrics
        fresh = {name: value for name, value in summary.numbers.items() if known.get(name) != value}
        if fresh:
            self.log([Point(name, summary.step, value, now) for name, value in fresh.items()])
        for name, text in summary.texts.items():
            self.client.set_tag(self.run_id, name, text)
        for name, document in summary.documents.items():
            self.client.log_dict(self.run_id, dict(document), f"{name}.json")
        for path in summary.files:
            self.client.log_artifact(self.run_id, str(path))
        self.client.set_terminated(self.run_id, STATUS[summary.end])
