"""From YAML to a frozen Recipe: strict keys, all problems at once, each with its line, its expectation and a next move."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunesmith.errors import FileError, Problem, RecipeError, UsageError
from tunesmith.recipe.keys import all_keys, did_you_mean, sections
from tunesmith.recipe.tree import Recipe

MAX_BYTES = 1_000_000
MAX_ALIASES = 100


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses what would silently mean something else: double keys, alias bombs; 1e-4 is a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def note_lines(self, node: yaml.Node, path: str = "") -> None:
        """Remember the line of each key and report keys written twice."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, value_node in node.value:
                key = str(key_node.value)
                child = f"{path}.{key}" if path else key
                line = key_node.start_mark.line + 1
                if key in seen:
                    self.problems.append(
                        Problem(
                            "RCP-002", child, f"written twice (line {line})", "each key once", "remove one of the two"
                        )
                    )
                seen.add(key)
                self.lines[child] = line
                self.note_lines(value_node, child)
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                self.lines[f"{path}.{position}"] = item.start_mark.line + 1
                self.note_lines(item, f"{path}.{position}")


# YAML 1.1 reads 1e-4 as text, and on, off, yes, no as truth values; here numbers are numbers and words are words.
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0].rsplit(":", 1)[1] not in ("timestamp", "float", "bool")]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and check a recipe file.

    overrides: "a.b=value" texts, the value in YAML. Relative paths in the recipe are taken from the recipe's folder.
    Raises RecipeError (all problems at once), FileError RCP-001 when the file cannot be read.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            "RCP-001",
            f"the recipe {path} cannot be read: {error}",
            expected="a YAML file in UTF-8",
            fix="check the path; `tunesmith init DATA` writes a new recipe",
        ) from error
    return parse_recipe(text, overrides, folder=path.resolve().parent, name=str(path))


def parse_recipe(
    text: str, overrides: Iterable[str] = (), *, folder: Path | None = None, name: str = "recipe"
) -> Recipe:
    """As `load_recipe`, from text. folder: what relative paths are relative to (default: the current one)."""
    content, lines, problems = _parse_yaml(text, name)
    # Only what was really written decides: a section that holds some keys leaves its others at their defaults.
    origins = {path: "file" for path in lines if not any(other.startswith(path + ".") for other in lines)}
    for override in overrides:
        key, value = _parse_override(override)
        _set(content, key, value)
        origins[key] = "--set"
    content = _spell_out(content)
    problems += list(_unknown_keys(content, lines))
    recipe, invalid = _validate(content, lines)
    problems += invalid
    if recipe is not None and not problems:
        problems = list(_contradictions(recipe))
    if problems:
        raise RecipeError(
            "RCP-003", f"{name} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems=problems
        )
    assert recipe is not None
    recipe = Recipe.model_validate(_absolute_paths(recipe.model_dump(), folder or Path.cwd()))
    recipe._origins.update(origins)
    return recipe


def difference(old: Recipe, new: Recipe) -> dict[str, list[Any]]:
    """Keys whose values differ: {key: [old, new]}; a key that only one side has shows null for the other."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(set(after) - set(before))]
        if before.get(key) != after.get(key)
    }


def code_named(recipe: Recipe) -> list[str]:
    """Python code that the recipe names, as "file.py:function"; it runs only with --allow-code."""
    return [metric for metric in recipe.evaluate.metrics if ".py:" in metric]


# --------------------------------------------------------------------------------------------------------- reading


def _parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, int], list[Problem]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise yaml.YAMLError("it is empty")
        loader.note_lines(node)
        content = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error) or "nested too deeply"
        raise RecipeError(
            "RCP-004",
            f"not YAML: {what}",
            where=where,
            expected="keys and values, indented by blanks",
            fix="mend this line; quote text that holds : # or {",
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(
            "RCP-005",
            f"the recipe is a {type(content).__name__}",
            where=name,
            expected="keys and values",
            fix="begin with `data: {sources: rows.jsonl}`",
        )
    return content, loader.lines, loader.problems


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(
            "RCP-006", f"--set {text!r} names no value", expected="--set key.path=value", fix="--set train.epochs=2"
        )
    loader = _Loader(value)
    try:
        return key, loader.get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(
            "RCP-007",
            f"--set {key}: {value!r} is not YAML",
            expected="a value such as 3, 2e-4, text or [a, b]",
            fix=f"quote it: --set '{key}=\"...\"'",
        ) from error


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    node: Any = content
    parts = key.split(".")
    for part, following in itertools.pairwise(parts):
        if isinstance(node, list):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else {}
            continue
        child = node.get(part)
        if not isinstance(child, (dict, list)):
            # A word such as `adapter: lora` becomes the section it stands for.
            child = {"type": child} if isinstance(child, str) and part in ("adapter", "schedule", "optimizer") else {}
            if part == "sources" and following.isdigit():
                child = [node[part]] if isinstance(node.get(part), str) else []
            node[part] = child
        node = child
    last = parts[-1]
    if isinstance(node, list):
        if last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        else:
            node.append(value)
    else:
        node[last] = value


def _spell_out(content: dict[str, Any]) -> dict[str, Any]:
    """Shorthands become what they stand for: one path is a list of sources, `adapter: lora` is {type: lora}."""
    content = dict(content)
    if isinstance(content.get("adapter"), str):
        content["adapter"] = {"type": content["adapter"]}
    elif isinstance(content.get("adapter"), dict):
        content["adapter"] = {"type": "lora", **content["adapter"]}
    data = content.get("data")
    if isinstance(data, dict) and "sources" in data:
        sources = data["sources"] if isinstance(data["sources"], list) else [data["sources"]]
        content["data"] = {**data, "sources": [{"path": item} if isinstance(item, str) else item for item in sources]}
    train = content.get("train")
    if isinstance(train, dict):
        train = dict(train)
        for name, default in (("schedule", "cosine"), ("optimizer", "adamw")):
            if isinstance(train.get(name), str):
                train[name] = {"type": train[name]}
            elif isinstance(train.get(name), dict):
                train[name] = {"type": default, **train[name]}
        content["train"] = train
    return content


# -------------------------------------------------------------------------------------------------------- checking


def _place(path: str, lines: Mapping[str, int]) -> str:
    return f"{path} (line {lines[path]})" if path in lines else path


def _generic(path: str) -> str:
    """data.sources.3.path -> data.sources.0.path: one name for all elements."""
    return re.sub(r"\.\d+(?=\.|$)", ".0", path)


def _unknown_keys(content: Any, lines: Mapping[str, int], path: str = "") -> Iterable[Problem]:
    if isinstance(content, list):
        for position, item in enumerate(content):
            yield from _unknown_keys(item, lines, f"{path}.{position}")
        return
    if not isinstance(content, dict) or _generic(path) in all_keys():
        return
    for name, value in content.items():
        child = f"{path}.{name}" if path else str(name)
        known = _generic(child)
        if known not in all_keys() and known not in sections():
            guess = did_you_mean(known)
            fix = f"{guess}  (did you mean this?)" if guess else f"one of: {', '.join(_siblings(path))}"
            yield Problem("RCP-008", _place(child, lines), "no such key", "a key of the recipe", fix)
        else:
            yield from _unknown_keys(value, lines, child)


def _siblings(path: str) -> list[str]:
    depth = path.count(".") + 1 if path else 0
    prefix = f"{_generic(path)}." if path else ""
    return list(dict.fromkeys(key.split(".")[depth] for key in all_keys() if key.startswith(prefix)))


def _validate(content: dict[str, Any], lines: Mapping[str, int]) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(content), []
    except ValidationError as error:
        return None, _problems(error, content, lines)


def _problems(error: ValidationError, content: dict[str, Any], lines: Mapping[str, int]) -> list[Problem]:
    """One problem per key: a union reports one error per alternative, the user made one mistake."""
    found: dict[str, Problem] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            continue  # _unknown_keys says it better
        path = _existing(item["loc"])
        if path in found:
            continue
        key = all_keys().get(_generic(path))
        expected = key.expected if key else item["msg"]
        if item["type"] == "missing":
            fix = "data: {sources: rows.jsonl}" if path.startswith("data") else f"{path}: ..."
            found[path] = Problem("RCP-009", path, "missing", expected or "a value", fix)
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tags = str(item["ctx"].get("expected_tags", "")).replace("'", "")
            found[path] = Problem(
                "RCP-010",
                _place(f"{path}.type", lines),
                f"is {item['ctx'].get('tag')!r}",
                tags or item["msg"],
                f"{path}: {{type: {tags.split(',')[0]}}}",
            )
        else:
            value = _value_at(content, path)
            fix = f"{path}: {key.default if key.default is not None else key.other}" if key else "see docs/recipe.md"
            found[path] = Problem("RCP-011", _place(path, lines), f"is {value!r}", expected, fix)
    return list(found.values())


def _existing(location: tuple[int | str, ...]) -> str:
    """The key path of a pydantic location, which also names union members and types."""
    path = ""
    for part in location:
        child = f"{path}.{part}" if path else str(part)
        if _generic(child) in all_keys() or _generic(child) in sections() or (isinstance(part, int)):
            path = child
    return path


def _value_at(content: Any, path: str) -> Any:
    for part in path.split("."):
        try:
            content = content[int(part)] if isinstance(content, list) else content[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return content


def _contradictions(recipe: Recipe) -> Iterable[Problem]:
    data = recipe.data
    if data.split.validation + data.split.test >= 1:
        yield Problem(
            "RCP-012",
            "data.split",
            f"validation {data.split.validation} and test {data.split.test} leave nothing to train on",
            "a sum below 1",
            "data.split: {validation: 0.05, test: 0.05}",
        )
    length = data.filters.length
    if length and length.min_characters > length.max_characters:
        yield Problem(
            "RCP-013",
            "data.filters.length",
            f"min_characters {length.min_characters} > max_characters {length.max_characters}",
            "min_characters <= max_characters",
            "swap the two",
        )
    metric = recipe.gate.metric
    if metric != "auto" and metric not in recipe.evaluate.metrics:
        yield Problem(
            "RCP-014",
            "gate.metric",
            f"{metric!r} is not measured",
            f"one of evaluate.metrics: {', '.join(recipe.evaluate.metrics)}",
            f"evaluate.metrics: [{', '.join([*recipe.evaluate.metrics, metric])}]",
        )


# ----------------------------------------------------------------------------------------------------------- paths


def _absolute_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative files become absolute, seen from the recipe's folder; hub names and builtin: stay as they are."""
    for source in content["data"]["sources"]:
        if "://" not in source["path"]:
            source["path"] = str(folder / source["path"])
    base = content["model"]["base"]
    if base.startswith((".", "~")) or (folder / base).is_dir():
        content["model"]["base"] = str(folder / Path(base).expanduser())
    if content["model"]["template"].endswith(".jinja"):
        content["model"]["template"] = str(folder / content["model"]["template"])
    content["evaluate"]["metrics"] = [
        str(folder / metric) if ".py:" in metric else metric for metric in content["evaluate"]["metrics"]
    ]
    return content


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {
            key: value for name, child in node.items() for key, value in _flatten(child, f"{prefix}{name}.").items()
        }
    return {prefix.rstrip("."): node}
