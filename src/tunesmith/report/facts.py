"""What a report tells, gathered from a Run's files and artifacts. Nothing is computed anew, nothing is invented."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from tunesmith.report.redaction import redact
from tunesmith.runs import ledger
from tunesmith.runs.events import Event
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

STAGES = ("prepare", "train", "evaluate", "export", "serve")
ENDS = ("stage/failed", "stage/held", "stage/stopped", "stage/pruned", "run/finished")
CURVES = (
    "train/loss",
    "validation/loss",
    "train/learning_rate",
    "train/tokens_per_second",
    "train/gradient_noise_scale",
)
SHOWN_EXAMPLES = 6
MAX_POINTS = 400  # of a curve; more are put together, else a long run's page would weigh megabytes
NOTES = {
    "artifact/damaged": "an artifact was damaged and made anew",
    "environment/changed": "the machine or its libraries changed between two attempts",
    "plan/unusual": "an unusual setting",
    "probe/out_of_memory": "the planned micro-batch did not fit, and a smaller one was taken",
    "run/network_file_system": "the workspace lies on a network file system, where a power cut may cost more",
    "train/no_validation": "no validation",
    "train/nonfinite": "a step was not finite and was withheld from the weights; its rows",
    "train/resumed": "training went on from a checkpoint, at step",
    "train/stopped_early": "training stopped early, at step",
    "train/threads_changed": "threads changed",
}


def gather(run: Run) -> dict[str, Any]:
    """Everything the page and report.json show, texts as report.texts lets them; a part that is not there yet is None."""
    events = run.events()
    outputs = {stage: run.outputs(stage) or {} for stage in STAGES}
    evaluation = _json(outputs["evaluate"].get("evaluation"), "evaluation.json")
    notes = [
        {"what": NOTES[event.name], "value": event.value, "step": event.step} for event in events if event.name in NOTES
    ]
    facts = {
        "run": run.id,
        "name": run.recipe.name,
        "recipe": run.recipe.model_dump(mode="json"),
        "parent": run.parent,
        "environment": run.environment,
        "status": _status(outputs, events),
        "statistics": _json(outputs["prepare"].get("dataset"), "statistics.json"),
        "samples": _json(outputs["prepare"].get("dataset"), "samples.json"),
        "evaluation": evaluation,
        "examples": _examples(outputs["evaluate"]["evaluation"], evaluation) if evaluation else None,
        "training": outputs["train"]["model"].notes if outputs["train"] else None,
        "curves": _curves(events),
        "plan": _plan_beside_measured(run, events),
        "parity": {stage: _json(outputs[stage].get("parity"), "parity.json") for stage in ("export", "serve")},
        "artifacts": {
            f"{stage}: {name}": {"kind": artifact.kind, "id": artifact.id}
            for stage, made in outputs.items()
            for name, artifact in made.items()
        },
        "notes": notes,
    }
    _name_places(facts, outputs["prepare"].get("dataset"))
    return redact(facts, run.recipe.report.texts)


def _name_places(facts: dict[str, Any], dataset: Artifact | None) -> None:
    """FILE:LINE for the rows that are shown by their ids, where the Dataset's ledger can be read."""
    items = [item for kind in (facts["examples"] or {"shown": {}})["shown"].values() for item in kind]
    withheld = [note for note in facts["notes"] if note["what"] == NOTES["train/nonfinite"]]
    rows = [item["row"] for item in items] + [row for note in withheld for row in note["value"]]
    found = ledger.places(dataset, rows) if dataset else {}
    for item in items:
        item["place"] = found.get(item["row"], item["place"])
    for note in withheld:
        note["value"] = [found.get(row, row) for row in note["value"]]


def _status(outputs: dict[str, dict[str, Artifact]], events: list[Event]) -> dict[str, Any]:
    ended = [event for event in events if event.name in ENDS]
    last = ended[-1] if ended else None
    trouble = last if last is not None and last.name != "run/finished" else None
    return {
        "stages": {stage: bool(made) for stage, made in outputs.items()},
        "seconds": {event.stage: event.value for event in events if event.name == "stage/seconds"},
        "trouble": {"stage": trouble.stage, "kind": trouble.name, "what": trouble.value} if trouble else None,
    }


def _json(artifact: Artifact | None, file: str) -> Any:
    path = artifact.path / file if artifact else None
    return json.loads(path.read_bytes()) if path and path.is_file() else None


def _examples(artifact: Artifact, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """A few items of each kind (fixed, broken, still right, still wrong), and how many there are of each.

    Judged by the gate's metric; by the first that judges answers where the gate's does not. None where nothing was asked.
    """
    metrics = evaluation["overall"]["metrics"]
    by_answers = [name for name, found in metrics.items() if "items" in found]
    judged = evaluation["gate"]["metric"]
    metric = judged if judged in by_answers else next(iter(by_answers), None)
    shown: dict[str, list[dict[str, Any]]] = {}
    for entry in _lines(artifact, "answers.jsonl"):
        kept = shown.setdefault(entry["changes"].get(metric, "asked"), [])
        if len(kept) < SHOWN_EXAMPLES:
            asked = {key: entry[key] for key in ("row", "part", "messages", "expected", "base", "tuned")}
            kept.append({**asked, "place": f"row {entry['row']}"})
    if not shown:
        return None
    counts = metrics[metric]["items"] if metric else {"asked": evaluation["overall"]["items"]}
    return {"metric": metric, "n": evaluation["overall"]["items"], "counts": counts, "shown": shown}


def _lines(artifact: Artifact, file: str) -> Iterator[dict[str, Any]]:
    with (artifact.path / file).open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _curves(events: list[Event]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    for event in events:
        is_number = isinstance(event.value, (int, float)) and math.isfinite(event.value)  # the rest is among the notes
        if event.name in curves and event.step is not None and is_number:
            curves[event.name].append((event.step, float(event.value)))
    return {name: _thinned(sorted(points)) for name, points in curves.items() if points}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: neighbours are put together, at their mean."""
    size = -(-len(points) // MAX_POINTS)
    if size == 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _plan_beside_measured(run: Run, events: list[Event]) -> list[dict[str, Any]] | None:
    plan = run.plan
    if not plan:
        return None
    measured: dict[str, float] = {}
    for event in events:
        if event.name in ("train/peak_memory", "train/steps"):
            measured[event.name.partition("/")[2]] = float(event.value)
    steps = _values(events, "train/step_seconds")
    if steps:
        measured["step_seconds"] = sum(steps) / len(steps)
        measured["train_seconds"] = sum(steps) + sum(_values(events, "validation/seconds"))
    return [{"name": name, **figure, "measured": measured.get(name)} for name, figure in plan["figures"].items()]


def _values(events: list[Event], name: str) -> list[float]:
    return [float(event.value) for event in events if event.name == name]
