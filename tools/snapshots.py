"""Writes tests/contract/snapshots/: what users and programs rely on, a line for each flag, public name and recipe key.

python tools/snapshots.py           write them, after a line in CHANGELOG.md
python tools/snapshots.py --check   fail when something differs
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import click  # noqa: E402

import tunesmith  # noqa: E402
from tunesmith.cli import VERBS, group  # noqa: E402
from tunesmith.recipe.keys import all_keys  # noqa: E402

FOLDER = ROOT / "tests" / "contract" / "snapshots"


def flags() -> dict[str, str]:
    """ "run --set" -> what it takes and its default."""
    found = {}
    context = click.Context(group)
    for verb in VERBS:
        command = group.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            name = parameter.human_readable_name if isinstance(parameter, click.Argument) else "/".join(parameter.opts)
            found[f"{verb} {name}"] = _words(parameter)
    return found


def _words(parameter: click.Parameter) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    words = [parameter.metavar or parameter.type.name]
    words += ["required"] if parameter.required else []
    words += ["repeatable"] if parameter.multiple or parameter.nargs == -1 else []
    default = parameter.to_info_dict().get("default")
    words += [f"default {default}"] if default not in (None, (), []) else []
    words += [f"env {parameter.envvar}"] if parameter.envvar else []
    return ", ".join(words)


def names() -> dict[str, str]:
    """Public name -> its parameters; what it returns may become more."""
    return {name: _signature(getattr(tunesmith, name)) for name in sorted(tunesmith.__all__) if name != "__version__"}


def _signature(found: Any) -> str:
    if inspect.isclass(found):
        return "class"
    return ", ".join(
        f"{'*, ' if first and parameter.kind is parameter.KEYWORD_ONLY else ''}{_parameter(parameter)}"
        for parameter, first in _marked(inspect.signature(found).parameters.values())
    )


def _marked(parameters: Any) -> list[tuple[inspect.Parameter, bool]]:
    """Each parameter, and whether it is the first that must be named."""
    seen, out = False, []
    for parameter in parameters:
        is_named = parameter.kind is parameter.KEYWORD_ONLY
        out.append((parameter, is_named and not seen))
        seen = seen or is_named
    return out


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


def keys() -> dict[str, str]:
    """Recipe key -> its default, then what it takes."""
    return {
        key.path: f"{json.dumps(key.default, default=lambda value: value.model_dump())}; {key.expected}"
        for key in all_keys().values()
    }


SNAPSHOTS = {"flags": flags, "names": names, "keys": keys}


def differences(name: str) -> list[str]:
    """A line for each entry that is new, gone or changed since the snapshot was written."""
    path = FOLDER / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    new = SNAPSHOTS[name]()
    lines = [f"gone: {key} ({old[key]})" for key in old if key not in new]
    lines += [f"new: {key} ({new[key]})" for key in new if key not in old]
    return lines + [f"{key}: {old[key]} -> {new[key]}" for key in new if key in old and old[key] != new[key]]


if __name__ == "__main__":
    if "--check" in sys.argv:
        found = [line for name in SNAPSHOTS for line in differences(name)]
        sys.exit("\n".join([*found, "changed: add a line to CHANGELOG.md and regenerate"]) if found else 0)
    FOLDER.mkdir(exist_ok=True)
    for name, make in SNAPSHOTS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n")
