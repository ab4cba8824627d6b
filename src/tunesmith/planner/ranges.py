"""The usual range of the values that people tune: what a search tries by default, and what a plain run is warned about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import AdamW
from tunesmith.units import format_count

LARGE = 100_000_000  # parameters; below it a model takes, and needs, larger steps

# Learning rates of AdamW by (adapter, above LARGE). Large models: common practice; a LoRA takes about ten times the rate
# of full fine-tuning (Schulman et al., LoRA Without Regret, 2025). Small models: a superset of it, chosen and not measured;
# it holds the rates that benchmarks/real_data (full, 6e-3) and the quickstart (LoRA, 3e-3) use.
LEARNING_RATES = {
    ("full", True): (1e-5, 5e-4),
    ("lora", True): (1e-4, 2e-3),
    ("full", False): (1e-5, 1e-2),
    ("lora", False): (1e-4, 3e-2),
}


@dataclass(frozen=True)
class Usual:
    """low..high: what raises no eyebrow. choices: what a search tries; None: anything between, by the logarithm.

    too_low, too_high: what tends to happen outside.
    """

    low: float
    high: float
    choices: tuple[Any, ...] | None
    about: str
    too_low: str
    too_high: str


@dataclass(frozen=True)
class Unusual:
    """A value of a recipe out of its usual range, and why that matters."""

    key: str
    value: float
    low: float
    high: float
    why: str

    def __str__(self) -> str:
        return (
            f"{self.key}: {self.value:g} is outside {self.low:g} to {self.high:g}, {self.why}. "
            f"If you mean it: accept_unusual: [{self.key}]"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "text": str(self)}


def parameters_of(config: Mapping[str, Any]) -> int | None:
    """Weights of the base model by its config.json; None for an architecture whose sizes are not known."""
    try:
        return Shape.of(config).parameters
    except ModelError:
        return None


def usual_ranges(spec: Recipe, parameters: int | None) -> dict[str, Usual]:
    """Usual ranges of this recipe's keys. parameters: of the base model; None counts as large.

    Not every key has one: no learning rate is usual for SGD, and epochs do not matter beside max_steps.
    """
    ranges = {
        "train.batch_size": Usual(
            4,
            256,
            (8, 16, 32, 64),
            "examples per step",
            "few rows make a noisy gradient, and one bad row moves the weights",
            "steps are few; adapters learn less from large batches",
        )
    }
    if isinstance(spec.train.optimizer, AdamW):
        ranges["train.learning_rate"] = _learning_rate(spec, parameters)
    if spec.train.max_steps is None:
        ranges["train.epochs"] = Usual(
            0.2, 10, (1.0, 2.0, 3.0, 4.0), "epochs", "most rows are never seen", "rows are learned by heart"
        )
    if isinstance(spec.adapter, Lora):
        rank = spec.adapter.rank
        ranges["adapter.rank"] = Usual(
            4,
            256,
            (8, 16, 32, 64),
            "the rank of an adapter",
            "little more than a change of tone fits in",
            "the adapter costs much memory for little gain",
        )
        ranges["adapter.alpha"] = Usual(
            rank / 4,
            rank * 8,
            tuple(float(rank * factor) for factor in (0.5, 1, 2, 4)),
            f"alpha beside rank {rank}, as the update is multiplied by alpha / rank",
            "the adapter is scaled down to nearly nothing",
            "the adapter's steps are scaled up until they diverge",
        )
    return ranges


def _learning_rate(spec: Recipe, parameters: int | None) -> Usual:
    is_large = parameters is None or parameters > LARGE
    low, high = LEARNING_RATES[spec.adapter.type, is_large]
    what = "a LoRA" if spec.adapter.type == "lora" else "full fine-tuning"
    size = "unknown size" if parameters is None else f"{format_count(parameters)} parameters"
    return Usual(
        low,
        high,
        None,
        f"AdamW's rate for {what} on a model of {size}",
        "training hardly moves the weights",
        "training tends to diverge, or to forget what the base model knew",
    )


def unusual(spec: Recipe, config: Mapping[str, Any]) -> list[Unusual]:
    """Values out of their usual range that the recipe does not acknowledge by `accept_unusual`."""
    ranges = usual_ranges(spec, parameters_of(config))
    found = [outside(key, spec.value(key), usual) for key, usual in ranges.items() if key not in spec.accept_unusual]
    return [item for item in found if item is not None]


def outside(key: str, value: float, usual: Usual) -> Unusual | None:
    """What there is to say about one value; None where it is inside."""
    if usual.low <= value <= usual.high:
        return None
    why = usual.too_low if value < usual.low else usual.too_high
    return Unusual(
        key,
        value,
        usual.low,
        usual.high,
        f"usual for {usual.about}: {'below' if value < usual.low else 'above'}, {why}",
    )
