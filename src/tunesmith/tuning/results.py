"""What came of a search: the table of trials, the best recipe, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tunesmith.recipe import Recipe, Source, with_values
from tunesmith.runs import durable
from tunesmith.tuning import page
from tunesmith.tuning.progress import show_value
from tunesmith.tuning.space import Dimension, values_of
from tunesmith.tuning.study import Study, Trial, hide_password
from tunesmith.units import format_seconds

if TYPE_CHECKING:
    from tunesmith.tuning.search import Search

TABLE, PAGE, BEST = "trials.json", "search.html", "best.yaml"


@dataclass(frozen=True)
class Result:
    """trials: in order, each {number, state, value, values, why, steps, num_steps, seconds, run, worker, curve, reused};
    best: one of them. importance: share of each key, {} where trials are too few. files: by what they are."""

    search: str
    folder: str
    storage: str
    metric: str
    direction: str
    space: dict[str, str]
    trials: list[dict[str, Any]]
    best: dict[str, Any] | None
    importance: dict[str, float]
    budget: dict[str, float | None]
    files: dict[str, str]
    best_recipe: str | None

    @property
    def running(self) -> int:
        """Trials that are at work elsewhere, or saved until the search goes on."""
        return sum(trial["state"] == "running" for trial in self.trials)

    def counts(self) -> dict[str, int]:
        states = [trial["state"] for trial in self.trials]
        return {state: states.count(state) for state in ("complete", "pruned", "failed", "running") if state in states}

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        del told["best_recipe"]
        return {**told, "counts": self.counts()}


def gather(search: Search, study: Study) -> Result:
    """Of all trials that take a place in the budget, as things stand."""
    best = study.best()
    trials = [_told(trial, search) for trial in study.trials() if trial.counts and trial.state != "waiting"]
    folder = search.folder
    files = {"table": str(folder / TABLE), "page": str(folder / PAGE)}
    recipe = None
    if best is not None:
        files["best"] = str(folder / BEST)
        recipe = commented(search, best, len(trials))
    return Result(
        search.id,
        str(folder),
        hide_password(study.url),
        search.objective.metric,
        search.objective.direction,
        {key: str(dimension) for key, dimension in search.space.items()},
        trials,
        next((trial for trial in trials if best is not None and trial["number"] == best.number), None),
        study.importance(),
        {"trials": search.spec.tune.trials, "minutes": search.spec.tune.minutes},
        files,
        recipe,
    )


def write(result: Result, search: Search) -> None:
    durable.write_json(search.folder / TABLE, result.to_json())
    durable.write_text(search.folder / PAGE, page.render(result, search))
    if result.best_recipe:
        durable.write_text(search.folder / BEST, result.best_recipe)


def _told(trial: Trial, search: Search) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "values": values_of(search.space, trial.drawn),
        "why": trial.get("why"),
        "steps": trial.get("steps"),
        "num_steps": trial.get("num_steps"),
        "seconds": trial.get("seconds"),
        "run": trial.get("run"),
        "worker": trial.get("owner"),
        "reused": bool(trial.get("reused", False)),
        "curve": [
            [share / 1000, loss if abs(loss) != float("inf") else None] for share, loss in sorted(trial.curve.items())
        ],
    }


# ------------------------------------------------------------------------------------------------------------- table


def table(result: Result) -> list[str]:
    """Lines for a terminal, the best trials first; the best one has a star."""
    if not result.trials:
        return ["no trial yet"]
    keys = list(result.space)
    head = ["trial", result.metric.replace("_", " "), "state", "steps", "time", *keys]
    rows = [[_mark(trial, result), _value(trial), _state(trial), _steps(trial), _time(trial), *_values(trial, keys)]
            for trial in sorted(result.trials, key=lambda trial: _order(trial, result))]  # fmt: skip
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    why = [f"trial {trial['number']} failed: {trial['why']}" for trial in result.trials if trial["state"] == "failed"]
    return [*lines, *why]


def _order(trial: Mapping[str, Any], result: Result) -> tuple[int, float, int]:
    place = {"complete": 0, "running": 1, "pruned": 2, "failed": 3}[trial["state"]]
    value = trial["value"] if trial["value"] is not None else -(trial["steps"] or 0)
    sign = -1 if result.direction == "maximize" and trial["value"] is not None else 1
    return place, sign * value, trial["number"]


def _mark(trial: Mapping[str, Any], result: Result) -> str:
    return f"{trial['number']}{' *' if result.best and trial['number'] == result.best['number'] else ''}"


def _value(trial: Mapping[str, Any]) -> str:
    return "" if trial["value"] is None else f"{trial['value']:.4f}"


def _state(trial: Mapping[str, Any]) -> str:
    word = {"running": "unfinished"}.get(trial["state"], trial["state"])
    return f"{word}, reused" if trial["reused"] and trial["state"] == "complete" else word


def _steps(trial: Mapping[str, Any]) -> str:
    return f"{trial['steps'] or 0}/{trial['num_steps']}" if trial["num_steps"] else ""


def _time(trial: Mapping[str, Any]) -> str:
    return format_seconds(trial["seconds"]) if trial["seconds"] else ""


def _values(trial: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [show_value(trial["values"].get(key, "")) for key in keys]


# -------------------------------------------------------------------------------------------------------- best recipe


def recipe_of(search: Search, trial: Trial) -> Recipe:
    """What to run next: the recipe with the trial's values, and as it was in all else."""
    return with_values(search.base, values_of(search.space, trial.drawn))


def commented(search: Search, best: Trial, num_trials: int) -> str:
    """The best trial's recipe as YAML: every value that differs from its default, the searched ones with a comment.

    Loaded again it equals the trial's recipe; for a metric of answers, which a trial is asked on validation rows, it
    equals it but for `evaluate.split`.
    """
    recipe = recipe_of(search, best)
    own = search.base
    comments = {}
    for key, dimension in search.space.items():
        comments[key] = f"searched: {_searched(dimension)}; was {_was(own, key)}"
    content = _spelled(recipe, tuple(search.space))
    body = "\n".join(_lines(content, comments))
    value = f"{search.objective.words} {best.value:.6g}"
    return f"""\
# Written by `tunesmith tune`: the best of {num_trials} trials of search {search.id}.
# Trial {best.number}, run {best.get("run")}: {value} on validation rows.
# Next: tunesmith run {BEST}: it takes up what the trial prepared and trained, then evaluates on the test rows, exports,
# and proves that it serves. The other trials are in {PAGE} beside the search.

{body}
"""


def _searched(dimension: Dimension) -> str:
    text = str(dimension)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _was(recipe: Recipe, key: str) -> str:
    try:
        return show_value(recipe.value(key))[:40]
    except (KeyError, TypeError):
        return "not there"


def _spelled(recipe: Recipe, always: tuple[str, ...]) -> dict[str, Any]:
    """The recipe as nested plain data, without what stands at its default; `always`: keys that are shown anyway."""
    content = recipe.model_dump(mode="json")
    del content["tune"]
    default = Recipe.model_validate({"data": {"sources": [{"path": "."}]}}).model_dump(mode="json")
    kept = _differing(content, default, "", always)
    plain_source = Source(path=".").model_dump(mode="json")
    kept["data"]["sources"] = [
        {name: value for name, value in source.items() if name == "path" or value != plain_source[name]}
        for source in content["data"]["sources"]
    ]
    kept["model"] = {"base": content["model"]["base"], **kept.get("model", {})}
    kept["adapter"] = {"type": content["adapter"]["type"], **kept.get("adapter", {})}
    return {name: kept[name] for name in content if name in kept}


def _differing(node: dict[str, Any], default: Any, path: str, always: tuple[str, ...]) -> dict[str, Any]:
    kept = {}
    same_type = isinstance(default, dict) and node.get("type") == default.get("type")
    for name, value in node.items():
        child = f"{path}.{name}" if path else name
        other = default.get(name) if same_type else None
        if isinstance(value, dict) and value:
            inner = _differing(value, other, child, always)
            if inner:
                kept[name] = inner
        elif child in always or not same_type or name not in default or value != other:
            kept[name] = value
    return kept


def _lines(node: Mapping[str, Any], comments: Mapping[str, str], path: str = "", depth: int = 0) -> Iterable[str]:
    for name, value in node.items():
        child = f"{path}.{name}" if path else name
        indent = "  " * depth
        note = f"   # {comments[child]}" if child in comments else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:{note}"
            yield from _lines(value, comments, child, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{name}:{note}"
            yield from (f"{indent}  - {_inline(item)}" for item in value)
        else:
            yield f"{indent}{name}: {_inline(value)}{note}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n...\n").strip()
