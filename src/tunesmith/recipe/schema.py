"""The recipe as a JSON schema (draft 07): completion, documentation and checks while it is written in an editor.

Written from the tree, with the shorthands that `load` spells out; `tools/recipe_page.py` keeps a copy beside this file, which
`tunesmith init` names in the first line of what it writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.recipe.keys import typed_sections, variants_of
from tunesmith.recipe.tree import Recipe

FILE = Path(__file__).with_name("recipe.schema.json")
OURS = ("owner", "other", "unit")  # for tests and pages; no keywords of JSON schema
PASSED_ON = ("description", "default")


def schema() -> dict[str, Any]:
    """The schema, without references, so that every editor shows a key's text where it stands."""
    raw = Recipe.model_json_schema()
    tree = _plain(raw, raw["$defs"])
    for path, default in typed_sections().items():
        for properties, name in _places(tree, path):
            properties[name] = _typed(properties[name], list(variants_of(path)), default)
    data = tree["properties"]["data"]["properties"]
    data["sources"] = _sources(data["sources"])
    tree["properties"]["track"] = _track(tree["properties"]["track"])
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tunesmith recipe",
        "description": "What a fine-tuning run is asked to do. `tunesmith explain KEY` says more about a key.",
    }
    return {**head, **{key: value for key, value in tree.items() if key not in head}}


def editor_line(recipe: Path) -> str:
    """The comment by which editors find the schema: relative where the package lies below the recipe's folder, say in .venv."""
    folder = recipe.resolve().parent
    place = os.path.relpath(FILE, folder) if FILE.is_relative_to(folder) else str(FILE)
    return f"# yaml-language-server: $schema={place}"


def _plain(node: Any, definitions: dict[str, Any]) -> Any:
    """Without references, titles and what is ours; the unit joins the description."""
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = {**definitions[node["$ref"].rsplit("/", 1)[-1]], **{k: v for k, v in node.items() if k != "$ref"}}
    out = {
        key: {name: _plain(child, definitions) for name, child in value.items()}
        if key == "properties"
        else value
        if key == "default"
        else _plain(value, definitions)
        for key, value in node.items()
        if key not in (*OURS, "$defs", "title", "discriminator")
    }
    if node.get("unit") and "description" in out:
        out["description"] += f" Unit: {node['unit']}."
    if "oneOf" in out:
        out["anyOf"] = out.pop("oneOf")
    return out


def _places(tree: dict[str, Any], path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(properties, name) of each place where a path stands; a section with variants has several."""
    nodes = [tree]
    *above, name = path.split(".")
    for part in above:
        nodes = [below for node in nodes for below in _below(node, part)]
    for node in nodes:
        for variant in _variants(node):
            if name in variant.get("properties", {}):
                yield variant["properties"], name


def _below(node: dict[str, Any], part: str) -> Iterator[dict[str, Any]]:
    for variant in _variants(node):
        if part == "0" and "items" in variant:
            yield variant["items"]
        elif part in variant.get("properties", {}):
            yield variant["properties"][part]


def _variants(node: dict[str, Any]) -> list[dict[str, Any]]:
    return node.get("anyOf", [node])


def _typed(node: dict[str, Any], words: list[str], default: str | None) -> dict[str, Any]:
    """A section chosen by its type: the word alone, or an object whose type may be left out where it is the default."""
    variants = []
    for variant in _variants(node):
        variant = {key: value for key, value in variant.items() if key not in PASSED_ON}
        kind = variant.get("properties", {}).get("type")
        if kind is not None and default not in kind.get("enum", [kind.get("const")]):
            variant["required"] = [*variant.get("required", []), "type"]
        variants.append(variant)
    told = {key: node[key] for key in PASSED_ON if key in node}
    return {**told, "anyOf": [{"enum": words}, *variants]}


def _sources(node: dict[str, Any]) -> dict[str, Any]:
    """One path, one source, or a list of either."""
    one = {"anyOf": [{"type": "string"}, node["items"]]}
    return {"description": node["description"], "anyOf": [*one["anyOf"], {**node, "items": one}]}


def _track(node: dict[str, Any]) -> dict[str, Any]:
    """One name, a list of names, or the section with settings."""
    name = node["properties"]["to"]["items"]
    section = {key: value for key, value in node.items() if key not in PASSED_ON}
    return {"description": node["description"], "anyOf": [name, {"type": "array", "items": name}, section]}
