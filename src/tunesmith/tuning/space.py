"""What is searched: `tune.space` with its defaults filled in, values as the study stores them, and what is unusual."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import Problem, RecipeError
from tunesmith.planner.ranges import outside, usual_ranges
from tunesmith.recipe import Lora, Recipe, with_values
from tunesmith.recipe.keys import all_keys
from tunesmith.recipe.space import PERPLEXITY, VALIDATION_LOSS, is_whole
from tunesmith.runner.stages import STAGES, load_stages


@dataclass(frozen=True)
class Span:
    """Any number from low to high, both included; log: drawn evenly by the logarithm; whole: no fractions."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def contains(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' by the logarithm' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """One of some values of any kind, as JSON texts: so the study stores them, and so two of them are compared."""

    texts: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Choices:
        return cls(tuple(dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)))

    @property
    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.texts]

    def __str__(self) -> str:
        return f"one of {', '.join(self.texts)}"


Dimension = Span | Choices
Space = dict[str, Dimension]
Drawn = dict[str, float | str]  # as stored: the number of a Span, the text of a choice


def resolve(spec: Recipe, parameters: int | None, until: str) -> Space:
    """The dimensions of the search. parameters: of the base model. until: the last stage that a trial runs.

    Raises RecipeError naming every key that no trial would notice (TUN-001), and every `default` that is not known for
    this recipe (TUN-002).
    """
    asked = spec.tune.space or _default_space(spec)
    ranges = usual_ranges(spec, parameters)
    noticed = {key for stage in load_stages(STAGES, until) for key in stage.info.keys}
    space: Space = {}
    problems = []
    for key, dimension in asked.items():
        if not any(key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in noticed):
            problems.append(_unnoticed(key, until))
        elif dimension != "default":
            space[key] = _written(key, dimension)
        elif key in ranges:
            usual = ranges[key]
            space[key] = Choices.of(usual.choices) if usual.choices else Span(usual.low, usual.high, log=True)
        else:
            problems.append(_no_default(key, sorted(ranges)))
    if problems:
        raise RecipeError("TUN-003", "the search cannot begin", problems=problems)
    return space


def _default_space(spec: Recipe) -> dict[str, Any]:
    return {"train.learning_rate": "default"} | ({"adapter.rank": "default"} if isinstance(spec.adapter, Lora) else {})


def _written(key: str, dimension: Mapping[str, Any]) -> Dimension:
    if "choices" in dimension:
        return Choices.of(dimension["choices"])
    return Span(dimension["low"], dimension["high"], dimension.get("log", False), is_whole(all_keys()[key]))


def _unnoticed(key: str, until: str) -> Problem:
    return Problem(
        "TUN-001",
        f"tune.space.{key}",
        f"no trial would notice it: a trial ends with {until}",
        f"a key that changes what {until} gives",
        "leave it out, or choose a tune.metric that depends on it",
    )


def _no_default(key: str, known: list[str]) -> Problem:
    return Problem(
        "TUN-002",
        f"tune.space.{key}",
        "no range of it is known for this recipe",
        f"default for one of {', '.join(known)}; else a range or choices",
        f"tune.space: {{{key}: {{low: ..., high: ...}}}}",
    )


# ------------------------------------------------------------------------------------------------------------ values


def values_of(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the recipe, by key."""
    return {
        key: json.loads(drawn[key]) if isinstance(dimension, Choices) else drawn[key]
        for key, dimension in space.items()
        if key in drawn
    }


def own_point(spec: Recipe, space: Space) -> Drawn | None:
    """The recipe's own values as a point of the space; None where one of them lies outside."""
    point: Drawn = {}
    for key, dimension in space.items():
        try:
            value = spec.value(key)
        except (KeyError, TypeError):  # a key of another adapter, or of a section that is null
            return None
        if isinstance(dimension, Span):
            if not dimension.contains(value):
                return None
            point[key] = value
        else:
            same = [text for text in dimension.texts if _takes(spec, key, json.loads(text)) == value]
            if not same:
                return None
            point[key] = same[0]
    return point


def _takes(spec: Recipe, key: str, value: Any) -> Any:
    """The value as it stands in the recipe: `lora` becomes the section it stands for."""
    return with_values(spec, {key: value}).value(key)


def size(space: Space) -> int | None:
    """How many points there are; None for no end of them."""
    count = 1
    for dimension in space.values():
        if isinstance(dimension, Choices):
            count *= len(dimension.texts)
        elif dimension.whole:
            count *= int(dimension.high - dimension.low) + 1
        else:
            return None
    return count


def points(space: Space) -> Iterator[Drawn]:
    """Every point of a space that has an end."""
    sides: list[Iterable[float | str]] = [
        dimension.texts if isinstance(dimension, Choices) else range(int(dimension.low), int(dimension.high) + 1)
        for dimension in space.values()
    ]
    for values in itertools.product(*sides):
        yield dict(zip(space, values, strict=True))


# ---------------------------------------------------------------------------------------------------------- warnings


def warnings(spec: Recipe, space: Space, parameters: int | None) -> list[str]:
    """What a person should know before the search begins; nothing here stops it."""
    ranges = usual_ranges(spec, parameters)
    told = []
    for key, dimension in space.items():
        usual = ranges.get(key)
        if usual is None or key in spec.accept_unusual:
            continue
        ends = (dimension.low, dimension.high) if isinstance(dimension, Span) else dimension.values
        found = [item for value in ends if (item := outside(key, value, usual))]
        told += [f"tune.space.{item}" for item in found]
    told += [
        str(item)
        for key, usual in ranges.items()
        if key not in space and key not in spec.accept_unusual and (item := outside(key, spec.value(key), usual))
    ]
    moved = [key for key in space if key == "seed" or key.startswith(("data", "model.base", "model.template"))]
    if moved and spec.tune.metric in (VALIDATION_LOSS, PERPLEXITY):
        told.append(
            f"{', '.join(moved)} may change the rows or the tokens that {spec.tune.metric} is measured on: "
            "compare trials with care, or search by a metric of answers on rows with `split: validation`"
        )
    return told
