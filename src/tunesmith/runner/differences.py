"""What changed since a stage last began in a Run, in words that say where to look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import hub
from tunesmith.runs.store import plain

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

SHORT = 12  # characters of a hash that are shown


def named(what: dict[str, Any], spec: Recipe) -> dict[str, Any]:
    """A stage's ingredients as flat names and values; contents are told file by file."""
    what = plain(what)
    found = dict(_flat(what.get("recipe", {})))
    for name, value in what.get("inputs", {}).items():
        found[f"input {name}"] = value
    for name in ("version", "went_on_from"):
        if name in what:
            found[f"stage {name}"] = what[name]
    for name, value in what.get("externals", {}).items():
        found.update(_external(name, value, spec))
    return found


def between(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, list[Any]]:
    """{name: [old, new]} of what differs, null where one side has nothing; hashes are cut short."""
    if old is None:
        return {}
    names = [*old, *(name for name in new if name not in old)]
    return {name: [_short(old.get(name)), _short(new.get(name))] for name in names if old.get(name) != new.get(name)}


def _external(name: str, value: Any, spec: Recipe) -> dict[str, Any]:
    if name == "sources":  # hashes of each source's files
        return {
            f"{source.path}, file {place + 1}" if len(hashes) > 1 else str(source.path): sha256
            for source, hashes in zip(spec.data.sources, value, strict=True)
            for place, sha256 in enumerate(hashes)
        }
    if name in ("base", "tokenizer"):
        files = hub.resolve(spec.model.base, spec.model.revision, weights=name == "base")
        return {f"{spec.model.base}/{file}": sha256 for file, sha256 in files.hashes.items()}
    return {f"{name} {place}" if place else name: one for place, one in _flat(value)}


def _flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for key, one in value.items() for pair in _flat(one, f"{place}.{key}" if place else str(key))]
    if isinstance(value, list) and value and not all(isinstance(one, (str, int, float)) for one in value):
        return [pair for number, one in enumerate(value) for pair in _flat(one, f"{place}[{number}]")]
    return [(place, value)]


def _short(value: Any) -> Any:
    is_hash = isinstance(value, str) and len(value) >= 20 and all(letter in "0123456789abcdef" for letter in value)
    return value[:SHORT] if is_hash else value
