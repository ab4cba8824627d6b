"""From YAML to a frozen Recipe: strict keys, all problems at once, each with its line, its expectation and a next move."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunesmith.errors import FileError, Problem, RecipeError, UsageError
from tunesmith.recipe import space
from tunesmith.recipe.keys import all_keys, caution, did_you_mean, sections, typed_sections, variants_of
from tunesmith.recipe.tree import ANSWER_METRICS, Data, DeepSpeed, Lora, Recipe, Track, Train, Tune

MAX_BYTES = 1_000_000
MAX_ALIASES = 100
MAX_VALUES = 50_000  # keys and values of a recipe, what an alias stands for counted each time
MAX_DIGITS = 40
MAX_UNKNOWN = 50  # keys that are no keys, told at once
DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz")
Lines = dict[str, int | str]  # key path -> its line, or "--set"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses what would silently mean something else: double keys, alias bombs; 1e-4 is a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.lines: Lines = {}
        self.problems: list[Problem] = []
        self.aliases = self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def note_lines(self, node: yaml.Node, path: str = "") -> None:
        """Remember the line of each key and report keys written twice. Goes through all that aliases stand for, and stops a
        recipe that unfolds without end."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values, with what its aliases stand for")
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value):,} characters")
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
    if path.is_dir() or path.suffix.lower() in DATA_SUFFIXES:
        raise _no_recipe(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = ", ".join(_near(path))
        raise FileError(
            "RCP-001",
            f"the recipe {path} cannot be read: {error}",
            expected="a YAML file in UTF-8",
            fix=f"did you mean {near}?" if near else "check the path; `tunesmith init DATA` writes a new recipe",
        ) from error
    return parse_recipe(text, overrides, folder=path.resolve().parent, name=str(path))


def _no_recipe(path: Path) -> UsageError:
    """A folder or a file of rows where a recipe was expected."""
    if path.is_dir():
        inside = sorted(str(found) for found in path.glob("*.y*ml"))
        fix = f"{inside[0]}" if inside else f"tunesmith init {path} looks at the rows in it and writes a recipe"
        return UsageError("RCP-015", f"{path} is a folder", expected="a recipe, which is a YAML file", fix=fix)
    fix = f"tunesmith init {path} looks at it and writes a recipe"
    return UsageError("RCP-016", f"{path} looks like data", expected="a recipe, which is a YAML file", fix=fix)


def _near(path: Path) -> list[str]:
    """Recipes beside where one was expected, the likeliest first."""
    folder = path.parent if path.parent.is_dir() else Path()
    found = [str(other) for other in sorted(folder.glob("*.y*ml")) if other != path]
    return difflib.get_close_matches(str(path), found, n=2, cutoff=0.6) or found[:1]


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
        lines = {path: line for path, line in lines.items() if path != key and not path.startswith(key + ".")}
        lines[key] = "--set"
    content = _spell_out(content)
    problems += itertools.islice(_unknown_keys(content, lines), MAX_UNKNOWN)
    recipe, invalid = _validate(content, lines)
    problems += invalid
    if recipe is not None and not problems:
        problems = [replace(problem, where=_place(problem.where, lines)) for problem in _contradictions(recipe)]
    if problems:
        raise RecipeError(
            "RCP-003", f"{name} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems=problems
        )
    assert recipe is not None
    recipe = Recipe.model_validate(_absolute_paths(recipe.model_dump(mode="json"), folder or Path.cwd()))
    recipe._origins.update(origins)
    return recipe


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some values put in and its search taken out: what one trial of a search runs.

    values: by dotted key; paths in them are absolute. Raises RecipeError RCP-048 naming everything that is wrong then.
    """
    content, problems = _put_in(recipe, values)
    made, invalid = _validate(content, {})
    problems += invalid
    if made is not None and not problems:
        problems = list(_contradictions(made))
    if problems or made is None:
        shown = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise RecipeError("RCP-048", f"the recipe cannot be run with {shown}", problems=problems)
    made._origins.update(recipe._origins, **dict.fromkeys(values, "--set"))
    return made


def _put_in(recipe: Recipe, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    content = {**recipe.model_dump(mode="json"), "tune": Tune().model_dump(mode="json")}
    for key, value in values.items():
        _set(content, key, value)
    content = _spell_out(content)
    return content, list(_unknown_keys(content, {}))


def _attempt(recipe: Recipe, values: Mapping[str, Any]) -> list[Problem]:
    content, problems = _put_in(recipe, values)
    return problems + _validate(content, {})[1]


def difference(old: Recipe, new: Recipe) -> dict[str, list[Any]]:
    """Keys whose values differ: {key: [old, new]}; a key that only one side has shows null for the other.

    An entry that only one side lists, such as a further source, shows what it says itself and none of its defaults.
    """
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key) and not (_is_listed(key) and _adds_nothing(key, before, after))
    }


def change_lines(changed: Mapping[str, Sequence[Any]]) -> list[str]:
    """What `difference` found, for people: a line `key: old -> new` each."""
    return [f"{key}: {_in_words(old)} -> {_in_words(new)}" for key, (old, new) in changed.items()]


def _in_words(value: Any) -> str:
    """As a recipe would say it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_in_words(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)


def _is_listed(key: str) -> bool:
    return any(part.isdigit() for part in key.split("."))


def _adds_nothing(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a key that one side alone has holds there what it would hold if nobody had written it."""
    if key in before and key in after:
        return False
    known = all_keys().get(".".join("0" if part.isdigit() else part for part in key.split(".")))
    value = before.get(key, after.get(key))
    return value in ([], {}) or (known is not None and value == known.default)


def code_named(recipe: Recipe) -> list[str]:
    """Python code that the recipe names, as "file.py:function"; it runs only with --allow-code."""
    named = [*recipe.evaluate.metrics, *training_code(recipe)]
    return list(dict.fromkeys(name for name in named if ".py:" in name))


def training_code(recipe: Recipe) -> list[str]:
    """The part of it that training runs: callbacks, and metrics that it measures itself."""
    train = recipe.train
    named = [*train.callbacks, *train.validation.metrics, train.best_metric]
    named += [train.early_stopping.metric] if train.early_stopping else []
    return list(dict.fromkeys(name for name in named if ".py:" in name))


# --------------------------------------------------------------------------------------------------------- reading


def _parse_yaml(text: str, name: str) -> tuple[dict[str, Any], Lines, list[Problem]]:
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
        node = loader.get_single_node()
        if node is not None:
            loader.note_lines(node)
        return key, loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(
            "RCP-007",
            f"--set {key}: {value!r} is not YAML",
            expected="a value such as 3, 2e-4, text or [a, b]",
            fix=f"quote it: --set '{key}=\"...\"'",
        ) from error


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at a path; what lies on the way is made, and shorthands become the sections they stand for.

    Raises UsageError RCP-017 for a position that a list does not have.
    """
    parts = key.split(".")
    node: Any = content
    for depth, part in enumerate(parts[:-1], 1):
        child = _child(node, part, key)
        following = parts[depth]
        if not isinstance(child, (dict, list)):
            child = _section(".".join(parts[:depth]), child, following)
        elif isinstance(child, dict) and following.isdigit() and part == "sources":
            child = [child]
        elif isinstance(child, list) and part == "track":
            child = _spell_out_track(child)
        _put(node, part, child, key)
        node = child
    _put(node, parts[-1], value, key)


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    return node[int(part)] if part.isdigit() and int(part) < len(node) else None


def _put(node: Any, part: str, value: Any, key: str) -> None:
    if isinstance(node, dict):
        node[part] = value
    elif part.isdigit() and int(part) < len(node):
        node[int(part)] = value
    elif part.isdigit() and int(part) == len(node):
        node.append(value)
    else:
        raise UsageError(
            "RCP-017",
            f"--set {key}: the list has {len(node)} item{'s' * (len(node) != 1)}, and no item {part!r}",
            expected=f"a position from 0 to {len(node)}",
            fix=f"--set {key.replace(f'.{part}', f'.{max(0, len(node) - 1)}', 1)}=...",
        )


def _section(path: str, written: Any, following: str) -> Any:
    """What a key below `path` is put into, when something short stands there or nothing."""
    if path == "track" and isinstance(written, str):
        return _spell_out_track(written)
    if path == "data.sources":
        sources = [] if written is None else [written]
        return sources if following.isdigit() else {}
    if re.fullmatch(r"data\.sources\.\d+", path) and isinstance(written, str):
        return {"path": written}
    if path in typed_sections() and isinstance(written, str):
        return {"type": written}
    # A number where keys are expected stays a problem of its own only when nothing is put below it.
    return {}


def _spell_out(content: dict[str, Any]) -> dict[str, Any]:
    """Shorthands become what they stand for: one path is a list of sources, `adapter: lora` is {type: lora}."""
    content = dict(content)
    for path, default in typed_sections().items():
        _spell_out_type(content, path.split("."), default)
    data = content.get("data")
    if isinstance(data, dict) and "sources" in data:
        sources = data["sources"] if isinstance(data["sources"], list) else [data["sources"]]
        content["data"] = {**data, "sources": [{"path": item} if isinstance(item, str) else item for item in sources]}
    tune = content.get("tune")
    if isinstance(tune, dict) and "space" in tune:
        content["tune"] = {**tune, "space": space.flatten(tune["space"])}
    if "track" in content:
        content["track"] = _spell_out_track(content["track"])
    return content


def _spell_out_track(track: Any) -> Any:
    """`wandb` and `[console, wandb]` are {to: [...]}; a tracker whose section is written is one that is wanted."""
    if isinstance(track, (str, list)):
        return {"to": [track] if isinstance(track, str) else track}
    if isinstance(track, dict) and "to" not in track:
        named = [name for name, settings in track.items() if isinstance(settings, dict)]
        return {"to": [*Track().to, *(name for name in named if name in Track.model_fields)], **track}
    return track


def _spell_out_type(node: dict[str, Any], parts: list[str], default: str | None) -> None:
    name, *below = parts
    child = node.get(name)
    if below:
        if isinstance(child, dict):
            node[name] = dict(child)
            _spell_out_type(node[name], below, default)
    elif isinstance(child, str):
        node[name] = {"type": child}
    elif isinstance(child, dict) and default is not None:
        node[name] = {"type": default, **child}


# -------------------------------------------------------------------------------------------------------- checking


def _place(path: str, lines: Mapping[str, int | str]) -> str:
    """The path with where it was written; for a key that is missing, or stands in a shorthand, the path alone."""
    where = lines.get(path)
    return path if where is None else f"{path} (line {where})" if isinstance(where, int) else f"{path} ({where})"


def _generic(path: str) -> str:
    """data.sources.3.path -> data.sources.0.path: one name for all elements."""
    return re.sub(r"\.\d+(?=\.|$)", ".0", path)


def _unknown_keys(content: Any, lines: Mapping[str, int | str], path: str = "") -> Iterable[Problem]:
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
            asked = f"did you mean this? {caution(known)}".rstrip()
            fix = f"{guess}  ({asked})" if guess else f"one of: {', '.join(_siblings(path))}"
            yield Problem("RCP-008", _place(child, lines), "no such key", "a key of the recipe", fix)
        else:
            yield from _unknown_keys(value, lines, child)


def _siblings(path: str) -> list[str]:
    depth = path.count(".") + 1 if path else 0
    prefix = f"{_generic(path)}." if path else ""
    return list(dict.fromkeys(key.split(".")[depth] for key in all_keys() if key.startswith(prefix)))


def _validate(content: dict[str, Any], lines: Mapping[str, int | str]) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(content), []
    except ValidationError as error:
        return None, list(_problems(error, content, lines))


def _problems(error: ValidationError, content: dict[str, Any], lines: Mapping[str, int | str]) -> Iterable[Problem]:
    """One problem per key: a union reports one error per alternative, the user made one mistake."""
    found: dict[str, Problem] = {}
    for item in error.errors():
        path = _existing(item["loc"])
        if item["type"] == "extra_forbidden":
            problem = _of_another_variant(item["loc"], content, lines)
        elif item["type"] == "missing":
            key = all_keys().get(_generic(path))
            fix = "data: {sources: rows.jsonl}" if path.startswith("data") else f"{path}: ..."
            problem = Problem("RCP-009", path, "missing", key.expected if key else "a value", fix)
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            problem = _unknown_type(path, item["ctx"], lines)
        else:
            problem = _wrong_value(path, item["msg"], content, lines)
        if problem is not None:
            found.setdefault(path, problem)
    # An element that is wrong makes its list too short as well: said once.
    return [problem for path, problem in found.items() if not any(other.startswith(f"{path}.") for other in found)]


def _of_another_variant(
    location: tuple[int | str, ...], content: dict[str, Any], lines: Mapping[str, int | str]
) -> Problem | None:
    """A key that exists, but not with the type that is asked for. Keys that exist nowhere are `_unknown_keys`' matter."""
    section, name = _existing(location[:-1]), str(location[-1])
    variants = variants_of(_generic(section))
    owners = [word for word, keys in variants.items() if name in keys]
    if not owners:
        return None
    chosen = _value_at(content, f"{section}.type")
    keys = [key for key in variants.get(str(chosen), ()) if key != "type"]
    return Problem(
        "RCP-018",
        _place(f"{section}.{name}", lines),
        f"{section} is {chosen!r}, which has no {name}",
        ", ".join(keys) or "no further keys",
        f"remove it, or {section}.type: {owners[0]}",
    )


def _unknown_type(path: str, context: Mapping[str, Any], lines: Mapping[str, int | str]) -> Problem:
    words = str(context.get("expected_tags", "")).replace("'", "") or ", ".join(variants_of(_generic(path)))
    where = f"{path}.type" if f"{path}.type" in lines or path not in lines else path
    near = difflib.get_close_matches(str(context.get("tag")), words.split(", "), n=1)
    return Problem(
        "RCP-010",
        _place(where, lines),
        f"is {context.get('tag')!r}" if "tag" in context else "names no type",
        words,
        f"{path}: {(near or words.split(', '))[0]}",
    )


def _wrong_value(path: str, message: str, content: dict[str, Any], lines: Mapping[str, int | str]) -> Problem:
    value, key = _value_at(content, path), all_keys().get(_generic(path))
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    if key is not None:
        fix = f"{path}: {_as_yaml(key.default if key.default is not None else key.other)}"
        return Problem("RCP-011", _place(path, lines), f"is {shown}", key.expected, fix)
    below, words = _siblings(path), list(variants_of(_generic(path)))
    if below[:1] == ["0"]:
        expected, fix = f"at least one of {{{', '.join(_siblings(f'{path}.0'))}}}, or its path", f"{path}: [rows.jsonl]"
    elif below:
        expected = f"keys and values: {', '.join(below)}" + (f"; or a word: {', '.join(words)}" if words else "")
        fix = f"{path}: {words[0]}" if words else f"{path}: {{{below[0]}: ...}}"
    else:
        expected, fix = message, "see docs/recipe.md"
    return Problem("RCP-011", _place(path, lines), f"is {shown}", expected, fix)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=200).removesuffix("\n...\n").strip()


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
    yield from _bound_contradictions(data)
    if recipe.model.quantisation.type != "none" and not isinstance(recipe.adapter, Lora):
        yield Problem(
            "RCP-030",
            "model.quantisation",
            f"is {recipe.model.quantisation.type}, and adapter: {recipe.adapter.type} would train the quantised weights themselves",
            "a quantised base stays frozen: an adapter trains beside it",
            "adapter: lora; or model.quantisation: none",
        )
    engine = recipe.train.engine
    if isinstance(engine, DeepSpeed) and engine.offload_parameters == "cpu" and engine.zero_stage in (1, 2):
        yield Problem(
            "RCP-021",
            "train.engine.offload_parameters",
            f"is cpu, and zero_stage {engine.zero_stage} keeps all weights on every process",
            "zero_stage: 3 where weights are to be offloaded",
            "--set train.engine.zero_stage=3",
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
    yield from space.problems(recipe, _attempt)
    yield from _tracking_contradictions(recipe.track)
    yield from _unknown_training_metrics(recipe.train)


def _bound_contradictions(data: Data) -> Iterable[Problem]:
    """Bounds that judge nothing, or leave nothing."""
    columns = [(f"data.filters.columns.{place}", column) for place, column in enumerate(data.filters.columns)]
    if data.filters.quality is not None:
        columns.insert(0, ("data.filters.quality", data.filters.quality))
    bounded: list[tuple[str, Any]] = [
        *columns,
        *([("data.quality", data.quality)] if data.quality.type != "none" else []),
    ]
    for key, section in bounded:
        above, below = section.above, section.below
        if above is None and below is None and key != "data.quality":
            yield Problem(
                "RCP-022",
                key,
                f"{section.column} has neither above nor below, so it judges nothing",
                "at least one bound",
                f"{key}: {{column: {section.column}, above: 0.5}}",
            )
        elif above is not None and below is not None and above >= below:
            yield Problem(
                "RCP-023", key, f"nothing is above {above:g} and below {below:g}", "above < below", "swap the two"
            )


def _tracking_contradictions(track: Track) -> Iterable[Problem]:
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        if name not in track.to and getattr(track, name) != Track.model_fields[name].get_default(
            call_default_factory=True
        ):
            yield Problem(
                "RCP-051",
                f"track.{name}",
                f"has settings, and {name} is not in track.to",
                "settings of a tracker that is used",
                f"track.to: [{', '.join([*track.to, name])}], or remove track.{name}",
            )
    for key, url in (("track.wandb.url", track.wandb.url), ("track.mlflow.uri", track.mlflow.uri)):
        if (
            url and "@" in url.partition("://")[2].partition("/")[0]
        ):  # the recipe is stored with the run; a secret is not
            yield Problem(
                "RCP-052",
                key,
                f"{re.sub(r'//[^/]*@', '//***@', url)} holds a name or a password",
                "an address without them",
                "put them into the environment: WANDB_API_KEY; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI",
            )
    uri = track.mlflow.uri
    if uri and (("://" not in uri and not uri.startswith("databricks")) or uri.startswith("file:")):
        yield Problem(
            "RCP-053",
            "track.mlflow.uri",
            f"is {uri!r}: MLflow no longer writes plain folders",
            "http(s)://..., sqlite:///file.db or another database",
            "track.mlflow.uri: sqlite:///mlflow.db",
        )


def _unknown_training_metrics(train: Train) -> Iterable[Problem]:
    """Said here, because a name that is off would else be noticed at the first validation."""
    stopping = train.early_stopping
    named = [("train.best_metric", train.best_metric)]
    named += [("train.early_stopping.metric", stopping.metric)] if stopping and stopping.metric != "auto" else []
    named += [(f"train.validation.metrics.{place}", name) for place, name in enumerate(train.validation.metrics)]
    for key, name in named:
        known = ANSWER_METRICS if key.startswith("train.validation") else ("loss", "perplexity", *ANSWER_METRICS)
        if name not in known and ".py:" not in name:
            near = difflib.get_close_matches(name, known, n=1)
            yield Problem(
                "RCP-054",
                key,
                f"there is no metric {name!r}",
                f"{', '.join(known)}, or path/to/file.py:function",
                f"did you mean {near[0]}?" if near else f"{key}: {known[0]}",
            )


# ----------------------------------------------------------------------------------------------------------- paths


def _absolute_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative files become absolute, seen from the recipe's folder; hub names and builtin: stay as they are."""
    for source in content["data"]["sources"]:
        path = source["path"]
        if path.startswith("sqlite:///") and not path.startswith("sqlite:////"):
            source["path"] = f"sqlite:///{folder / path.removeprefix('sqlite:///')}"
        elif "://" not in path and path != "-":
            source["path"] = str(folder / path)
    watched = content["data"]["leaks"]
    if "against" in watched:
        watched["against"] = [path if "://" in path else str(folder / path) for path in watched["against"]]
    base = content["model"]["base"]
    if base.startswith((".", "~")) or (folder / base).is_dir():
        content["model"]["base"] = str(folder / Path(base).expanduser())
    if content["model"]["template"].endswith(".jinja"):
        content["model"]["template"] = str(folder / content["model"]["template"])
    engine = content["train"]["engine"]
    if engine.get("config"):
        engine["config"] = str(folder / Path(engine["config"]).expanduser())
    train = content["train"]
    for section, name in (
        (content["evaluate"], "metrics"),
        (train["validation"], "metrics"),
        (train, "callbacks"),
        (train, "best_metric"),
        (train["early_stopping"] or {}, "metric"),
    ):
        if name in section:
            section[name] = _absolute_code(section[name], folder)
    uri = content["track"]["mlflow"]["uri"]
    if uri and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        content["track"]["mlflow"]["uri"] = f"sqlite:///{folder / uri.removeprefix('sqlite:///')}"
    events = content["track"]["tensorboard"]["folder"]
    if events:
        content["track"]["tensorboard"]["folder"] = str(folder / Path(events).expanduser())
    if ".py:" in content["gate"]["metric"]:
        content["gate"]["metric"] = str(folder / content["gate"]["metric"])
    adapters = content["serve"]["adapters"]
    for name, place in adapters.items():  # what is no folder is a run of the workspace
        if place.startswith((".", "~")) or (folder / place).is_dir():
            adapters[name] = str(folder / Path(place).expanduser())
    for key, dimension in content["tune"]["space"].items():
        if isinstance(dimension, dict) and "choices" in dimension:
            dimension["choices"] = [_absolute_choice(content, key, value, folder) for value in dimension["choices"]]
    return content


def _absolute_choice(content: dict[str, Any], key: str, value: Any, folder: Path) -> Any:
    """A value that a search may put in, with its paths as they would be had they been written in its place."""
    if not key.startswith(("model", "data.sources", "evaluate.metrics", "train.callbacks", "train.best_metric")):
        return value
    tried = {**copy.deepcopy(content), "tune": {"space": {}}}
    _set(tried, key, value)
    node: Any = _absolute_paths(Recipe.model_validate(_spell_out(tried)).model_dump(mode="json"), folder)
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def _absolute_code(named: Any, folder: Path) -> Any:
    if isinstance(named, str):
        return str(folder / named) if ".py:" in named else named
    return [_absolute_code(name, folder) for name in named]


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {
            key: value for name, child in node.items() for key, value in _flatten(child, f"{prefix}{name}.").items()
        }
    if isinstance(node, list) and any(isinstance(child, dict) for child in node):
        return _flatten({str(place): child for place, child in enumerate(node)}, prefix)
    return {prefix.rstrip("."): node}
