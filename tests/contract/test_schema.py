"""The JSON schema for editors says of a recipe what the loader says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.errors import RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.keys import all_keys
from tunesmith.recipe.load import _Loader
from tunesmith.recipe.schema import FILE, schema

ROOT = Path(__file__).parents[2]
LEAST = "data: {sources: rows.jsonl}\n"
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
KEYWORDS = {"propertyNames", 
    "$schema", "title", "description", "default", "type", "enum", "const", "anyOf", "properties", "required", "items",
    "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "pattern", "maxItems",
}  # fmt: skip

GOOD = [
    LEAST,
    "data: {sources: [a.jsonl, {path: b.csv, split: test, fields: {prompt: q, completion: a}}]}\nadapter: full\n",
    "data: {sources: {path: a.jsonl}, filters: {quality: null, length: {min_characters: 1}}}\nadapter: {rank: 4}\n",
    LEAST + "train: {schedule: linear, optimizer: {type: sgd, momentum: 0.9}, micro_batch: 4, max_steps: null}\n",
    LEAST + "train: {optimizer: {beta1: 0.8}, early_stopping: {patience: 1}, threads: auto, learning_rate: 1e-4}\n",
    LEAST + "track: wandb\ntrain: {schedule: {type: wsd, decay: 100, warmup: 0.1}, callbacks: ['a.py:A']}\n",
    LEAST + "track: {wandb: {mode: offline, tags: [a]}, mlflow: {}}\n",
    LEAST + "seed: 3\nname: mine\ntrack: [console]\nexport: {merged: false}\ngate: {require: none}\n",
]
BAD = [
    "seed: 3\n",
    "data: {}\n",
    "data: {sources: []}\n",
    "data: {sources: [{split: test}]}\n",
    LEAST + "lr: 0.1\n",
    LEAST + "name: 'two words'\n",
    LEAST + "adapter: lorra\n",
    LEAST + "adapter: {type: full, rank: 8}\n",
    LEAST + "adapter: {rank: 0}\n",
    LEAST + "train: {epochs: many}\n",
    LEAST + "train: {epochs: 0}\n",
    LEAST + "train: {micro_batch: often}\n",
    LEAST + "train: {micro_batch: 0}\n",
    LEAST + "train: {optimizer: {momentum: 0.9}}\n",
    LEAST + "train: {schedule: {type: cosin}}\n",
    LEAST + "serve: {port: 99999}\n",
    LEAST + "track: [console, smoke]\n",
    LEAST + "track: {wandb: {mode: sometimes}}\n",
    LEAST + "train: {schedule: {type: cosine, decay: 0.1}}\n",
    LEAST + "train: 3\n",
    "data: {sources: rows.jsonl, on_bad_row: no}\n",
    "data: {sources: rows.jsonl, filters: {length: {min: 3}}}\n",
]


def fits(node: dict[str, Any], value: Any) -> bool:
    """A validator for the keywords that the schema uses; one that it does not know fails the test."""
    assert set(node) <= KEYWORDS, f"a keyword this validator does not know: {set(node) - KEYWORDS}"
    if "anyOf" in node and not any(fits(part, value) for part in node["anyOf"]):
        return False
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = node.get("type")
    if kind in TYPES and not isinstance(value, TYPES[kind]):
        return False
    if kind in ("number", "integer") and not (is_number and (kind == "number" or value == int(value))):
        return False
    if ("enum" in node and value not in node["enum"]) or ("const" in node and value != node["const"]):
        return False
    if is_number:
        return (
            value >= node.get("minimum", value) and value <= node.get("maximum", value)
            and ("exclusiveMinimum" not in node or value > node["exclusiveMinimum"])
            and ("exclusiveMaximum" not in node or value < node["exclusiveMaximum"])
        )  # fmt: skip
    if isinstance(value, str):
        return re.search(node.get("pattern", ""), value) is not None
    if isinstance(value, list):
        length = node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value))
        return length and all(fits(node.get("items", {}), item) for item in value)
    if isinstance(value, dict):
        known, extra = node.get("properties", {}), node.get("additionalProperties", True)
        if not all(fits(node.get("propertyNames", {}), key) for key in value):
            return False
        return set(node.get("required", ())) <= set(value) and all(
            fits(known[key], item) if key in known else extra if isinstance(extra, bool) else fits(extra, item)
            for key, item in value.items()
        )
    return True


def loads(text: str) -> bool:
    try:
        parse_recipe(text)
    except RecipeError:
        return False
    return True


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes_fit_the_schema_and_load(text: str) -> None:
    assert (fits(schema(), yaml.load(text, _Loader)), loads(text)) == (True, True)


@pytest.mark.parametrize("text", BAD)
def test_mistakes_fit_neither(text: str) -> None:
    assert (fits(schema(), yaml.load(text, _Loader)), loads(text)) == (False, False)


def test_shipped_recipes_fit() -> None:
    paths = [*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("recipes/*.yaml"), *ROOT.glob("benchmarks/**/*.yaml")]
    assert paths
    for path in paths:
        assert fits(schema(), yaml.load(path.read_text(), _Loader)), path


def test_every_key_stands_in_the_schema_with_its_doc() -> None:
    texts = json.dumps(schema(), ensure_ascii=False)
    for key in all_keys().values():
        assert f'"{key.path.rsplit(".", 1)[-1]}": {{' in texts, key.path
        assert json.dumps(key.doc, ensure_ascii=False)[1:-1] in texts, key.path


@pytest.mark.parametrize("key", [key for key in all_keys().values() if key.other is not None], ids=lambda key: key.path)
def test_a_value_other_than_the_default_fits_as_well(key) -> None:
    """The value that the effects are tested with; set at its place, in the variant that has the key."""
    node = schema()
    for part in key.path.split("."):
        nodes = [node, *node.get("anyOf", [])]
        node = next(
            (n["properties"][part] if part in n.get("properties", {}) else n["items"])
            for n in nodes
            if part in n.get("properties", {}) or (part == "0" and "items" in n)
        )
    assert fits(node, json.loads(json.dumps(key.other)))


def test_the_package_ships_it() -> None:
    assert json.loads(FILE.read_text()) == schema()
    assert "recipe.schema.json" in (ROOT / "pyproject.toml").read_text()
