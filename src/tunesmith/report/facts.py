"""What a report tells, gathered from a Run's files and artifacts. Nothing is computed anew, nothing is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.runs.events import Event
from tunesmith.runs.run import Run

SHOWN_EXAMPLES = 8
MEASURED = {"train_seconds": "train", "peak_memory": "train/peak_memory", "steps": "train/steps"}


def gather(run: Run) -> dict[str, Any]:
    """Everything the page and report.json show; a part that is not there yet is None."""
    events = run.events()
    evaluation = _artifact_json(run, "evaluate", "evaluation", "evaluation.json")
    return {
        "run": run.id,
        "name": run.recipe.name,
        "recipe": run.recipe.model_dump(mode="json"),
        "parent": run.parent,
        "environment": run.environment,
        "status": _status(run, events),
        "statistics": _artifact_json(run, "prepare", "dataset", "statistics.json"),
        "samples": _artifact_json(run, "prepare", "dataset", "samples.json"),
        "evaluation": evaluation,
        "examples": _examples(run) if evaluation else None,
        "curves": _curves(events),
        "plan": _plan_beside_measured(run, events),
        "parity": {stage: _artifact_json(run, stage, "parity", "parity.json") for stage in ("export", "serve")},
        "artifacts": {
            f"{stage}: {name}": {"kind": artifact.kind, "id": artifact.id}
            for stage in ("prepare", "train", "evaluate", "export", "serve")
            for name, artifact in (run.outputs(stage) or {}).items()
        },
        "warnings": [
            event.value
            for event in events
            if event.name in ("artifact/damaged", "environment/changed", "train/nonfinite")
        ],
    }


def _status(run: Run, events: list[Event]) -> dict[str, Any]:
    stages = {stage: run.outputs(stage) is not None for stage in ("prepare", "train", "evaluate", "export", "serve")}
    ended = [event for event in events if event.name in ("stage/failed", "stage/held", "stage/stopped", "run/finished")]
    last = ended[-1] if ended else None
    trouble = last if last is not None and last.name != "run/finished" else None
    seconds = {event.stage: event.value for event in events if event.name == "stage/seconds"}
    return {
        "stages": stages,
        "seconds": seconds,
        "trouble": {"stage": trouble.stage, "kind": trouble.name, "what": trouble.value} if trouble else None,
    }


def _artifact_json(run: Run, stage: str, name: str, file: str) -> Any:
    outputs = run.outputs(stage)
    if not outputs or name not in outputs:
        return None
    path = outputs[name].path / file
    return json.loads(path.read_bytes()) if path.is_file() else None


def _examples(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Items that the tuned model got right and the base wrong, and the reverse, by the metric the gate judged."""
    outputs = run.outputs("evaluate")
    evaluation = _artifact_json(run, "evaluate", "evaluation", "evaluation.json")
    metric = evaluation["gate"].get("metric")
    fixed, broken, counts = [], [], {"fixed": 0, "broken": 0}
    for line in (Path(outputs["evaluation"].path) / "answers.jsonl").open(encoding="utf-8"):  # type: ignore[index]
        entry = json.loads(line)
        base, tuned = entry["scores"].get(metric, [0, 0])
        kept, name = (fixed, "fixed") if tuned > base else (broken, "broken")
        wrong = tuned < 1 and tuned <= base
        if tuned == base and not wrong:
            continue
        counts[name] += 1
        if len(kept) < SHOWN_EXAMPLES:
            kept.append({key: entry[key] for key in ("row", "part", "messages", "expected", "base", "tuned")})
    return {"fixed": fixed, "broken": broken, "counts": counts, "metric": metric}  # type: ignore[dict-item]


def _curves(events: list[Event]) -> dict[str, list[tuple[int, float]]]:
    names = (
        "train/loss",
        "validation/loss",
        "train/learning_rate",
        "train/tokens_per_second",
        "train/gradient_noise_scale",
    )
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for event in events:
        if event.name in curves and event.step is not None and isinstance(event.value, (int, float)):
            curves[event.name].append((event.step, float(event.value)))
    return {name: sorted(points) for name, points in curves.items() if points}


def _plan_beside_measured(run: Run, events: list[Event]) -> list[dict[str, Any]] | None:
    plan = run.plan
    if not plan:
        return None
    measured: dict[str, float] = {}
    for event in events:
        if event.name in ("train/peak_memory", "train/steps"):
            measured[event.name.partition("/")[2]] = float(event.value)
    steps = [float(event.value) for event in events if event.name == "train/step_seconds"]
    if steps:
        measured["step_seconds"] = sum(steps) / len(steps)
        measured["train_seconds"] = sum(steps)
    return [{"name": name, **figure, "measured": measured.get(name)} for name, figure in plan["figures"].items()]
