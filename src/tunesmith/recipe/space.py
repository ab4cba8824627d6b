"""What `tune.space` may say: a key of the recipe, and the values that it may take. Checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tunesmith.errors import Problem
from tunesmith.recipe.keys import Key, all_keys, did_you_mean, sections
from tunesmith.recipe.tree import Recipe

WORDS = {"low", "high", "log", "choices"}
EXAMPLE = "{low: 1.0e-5, high: 1.0e-3, log: true}"
PERPLEXITY, VALIDATION_LOSS = "perplexity", "validation_loss"

# Puts values into a recipe and returns what is wrong with the result.
Attempt = Callable[[Recipe, Mapping[str, Any]], list[Problem]]


def flatten(space: Any) -> Any:
    """Nested keys become dotted ones: {train: {epochs: default}} -> {train.epochs: default}."""
    if not isinstance(space, dict):
        return space
    flat: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and value and not WORDS & set(value):
            flat |= {f"{key}.{below}": inner for below, inner in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def is_whole(key: Key) -> bool:
    """True for keys that take whole numbers and no others."""
    return bool(re.search(r"\bwhole number\b", key.expected)) and not re.search(r"(?<!whole )\bnumber\b", key.expected)


def problems(recipe: Recipe, attempt: Attempt) -> Iterable[Problem]:
    """Everything that is wrong with the section `tune`."""
    tune = recipe.tune
    if tune.trials is None and tune.minutes is None:
        yield Problem("RCP-045", "tune", "neither trials nor minutes end the search", "a budget", "tune.trials: 20")
    yield from _metric_problems(recipe)
    for key, dimension in tune.space.items():
        found = list(_dimension_problems(key, dimension))
        yield from found or _value_problems(recipe, key, dimension, attempt)


def _metric_problems(recipe: Recipe) -> Iterable[Problem]:
    metric, measured = recipe.tune.metric, recipe.evaluate.metrics
    if metric != VALIDATION_LOSS and not any(name == metric or name.endswith(f"/{metric}") for name in measured):
        yield Problem(
            "RCP-044",
            "tune.metric",
            f"{metric!r} is not measured",
            f"{VALIDATION_LOSS}, or one of evaluate.metrics: {', '.join(measured)}",
            f"evaluate.metrics: [{', '.join([*measured, metric])}]",
        )


def _dimension_problems(key: str, dimension: Any) -> Iterable[Problem]:
    where = f"tune.space.{key}"
    known = all_keys().get(_generic(key))
    if known is None and _generic(key) not in sections():
        guess = did_you_mean(key)
        yield Problem(
            "RCP-040",
            where,
            "no such key",
            "a key of the recipe",
            f"tune.space: {{{guess}: ...}}  (did you mean this?)" if guess else "tunesmith explain KEY; docs/recipe.md",
        )
        return
    if dimension == "default":
        return
    shape = f"default, {EXAMPLE} or {{choices: [...]}}"
    if not isinstance(dimension, dict) or not (
        set(dimension) == {"choices"} or {"low", "high"} <= set(dimension) <= {"low", "high", "log"}
    ):
        yield Problem("RCP-041", where, f"is {dimension!r}", shape, f"tune.space: {{{key}: {EXAMPLE}}}")
    elif "choices" in dimension:
        choices = dimension["choices"]
        if not isinstance(choices, list) or not choices:
            yield Problem("RCP-043", f"{where}.choices", f"is {choices!r}", "a list of values", "choices: [8, 16, 32]")
    elif known is None:
        yield Problem(
            "RCP-047", where, "a section has no range", "choices", f"tune.space: {{{key}: {{choices: [...]}}}}"
        )
    else:
        yield from _range_problems(where, dimension, is_whole(known))


def _range_problems(where: str, dimension: Mapping[str, Any], whole: bool) -> Iterable[Problem]:
    low, high, log = dimension["low"], dimension["high"], dimension.get("log", False)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not isinstance(log, bool) or low >= high:
        what = f"low {low!r}, high {high!r}, log {log!r}"
        yield Problem("RCP-043", where, what, "numbers with low < high; log: true or false", EXAMPLE)
    elif log and low <= 0:
        yield Problem("RCP-043", where, f"low {low!r} has no logarithm", "low > 0 with log: true", "log: false")
    elif whole and not (float(low).is_integer() and float(high).is_integer()):
        yield Problem("RCP-043", where, f"low {low!r}, high {high!r}", "whole numbers", "low: 1, high: 4")


def _value_problems(recipe: Recipe, key: str, dimension: Any, attempt: Attempt) -> Iterable[Problem]:
    """Values that the key does not take, each tried alone in the recipe."""
    if dimension == "default":
        return
    values = dimension["choices"] if "choices" in dimension else [dimension["low"], dimension["high"]]
    for value in values:
        for found in attempt(recipe, {key: value})[:1]:
            yield Problem(
                "RCP-042", f"tune.space.{key}", f"{value!r}: {found.where} {found.what}", found.expected, found.fix
            )


def _generic(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".0", path)
