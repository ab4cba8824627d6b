"""What every tracker is told, in the same words: points by name and step, and at the end a summary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.recipe import Recipe
from tunesmith.runs.events import Event

FOREIGN = re.compile(r"[^A-Za-z0-9_./ -]")  # what MLflow, the strictest one, refuses in a name
# killed: nobody said how the command ended. stopped: by Ctrl-C or a signal.
End = Literal["done", "failed", "stopped", "killed"]


@dataclass(frozen=True)
class Point:
    """One number of one step. time: seconds since 1970, when it was measured."""

    name: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class RunFacts:
    """Who the run is. key: made once by us, never changes; the same run goes on in the tracker under it.

    folder: the run's; workspace: that of all runs. config: the recipe, nested. pid: the process that trains.
    """

    id: str
    key: str
    folder: Path
    workspace: Path
    recipe: Recipe
    config: Mapping[str, Any]
    pid: int


@dataclass(frozen=True)
class Summary:
    """What is known at the end. numbers: of no step, scores among them, by name. texts: verdict and the like.

    step: whose weights were scored. documents: plan and environment, by name. files: report and recipe.
    """

    end: End
    step: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


class Tracker(Protocol):
    """One service. It lives in a process of its own, so it may take its time; it raises when something is wrong.

    holds_last_step: True where nothing can be added to a step once another session has begun, so that the last step
    waits until it is known to be complete.
    """

    holds_last_step: bool

    def open(self, facts: RunFacts) -> str:
        """Begin the run there, or go on with it. Returns how a person finds it."""

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        """Says of a number with one of these names whether it is stored there already and cannot be taken back."""

    def log(self, points: list[Point]) -> None:
        """Hand over numbers, steps ascending."""

    def close(self, summary: Summary) -> None:
        """Hand over the summary and end the session."""


def point(event: Event) -> Point | None:
    """The event as a number of a step; None where it is none."""
    value = event.value
    if event.step is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return Point(clean(event.name), event.step, float(value), event.time)


def clean(name: str) -> str:
    return FOREIGN.sub("_", name)


def summary(events: Iterable[Event], end: End, run_folder: Path, documents: Mapping[str, Any]) -> Summary:
    """Of the events that count."""
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    step = last_step = 0
    for event in events:
        last_step = max(last_step, event.step or 0)
        if event.step is not None:
            continue
        if event.name == "train/result_step":
            step = int(event.value)
        name = f"{event.stage}/seconds" if event.name == "stage/seconds" else clean(event.name)
        numbers.update(_numbers(name, event.value))
        if event.name == "evaluate/gate":
            texts[name] = str(event.value)
    names = ("report.html", "recipe.json")
    files = tuple(path for name in names if (path := run_folder / name).exists())
    return Summary(end, step or last_step, numbers, texts, documents, files)


def _numbers(name: str, value: Any) -> dict[str, float]:
    """A score {part, base, tuned} becomes name/part/base and name/part/tuned."""
    if isinstance(value, Mapping):
        below = clean(f"{name}/{value['part']}") if isinstance(value.get("part"), str) else name
        return {
            full: number
            for key, item in value.items()
            if key != "part"
            for full, number in _numbers(clean(f"{below}/{key}"), item).items()
        }
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {name: float(value)} if is_number and math.isfinite(value) else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 2}} -> {"train.epochs": 2}"""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            out.update(flat(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out
