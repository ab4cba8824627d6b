"""What is asked: a Recipe, read from YAML, checked whole, frozen. Light: pydantic and yaml, nothing heavier."""

from tunesmith.recipe.load import (
    change_lines,
    code_named,
    difference,
    load_recipe,
    parse_recipe,
    training_code,
    with_values,
)
from tunesmith.recipe.tree import Full, Lora, Recipe, Source

__all__ = [
    "Full",
    "Lora",
    "Recipe",
    "Source",
    "change_lines",
    "code_named",
    "difference",
    "load_recipe",
    "parse_recipe",
    "training_code",
    "with_values",
]
