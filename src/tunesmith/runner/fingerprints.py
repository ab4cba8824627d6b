"""What decides a stage's outcome, as one hash; and the memory of which outputs belong to which hash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError
from tunesmith.runner.stages import Stage
from tunesmith.runs import durable
from tunesmith.runs.store import Artifact, Store, fingerprint

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def ingredients(stage: Stage, spec: Recipe, inputs: Mapping[str, Artifact], run: Run | None) -> dict[str, Any]:
    """All that decides what the stage makes: its version, its keys of the recipe, its inputs, what lies outside.

    Where a file lies does not matter, what is in it does: if the stage hashes what lies outside, paths count by their
    last part only, so that a moved folder prepares and trains nothing anew. run: None where nothing is to be made, of a
    stage that asks nothing of its Run.
    """
    info = stage.info
    asked = spec.slice(info.keys)
    return {
        "stage": info.name,
        "version": info.version,
        "recipe": _without_folders(asked) if info.externals else asked,
        "inputs": {name: inputs[name].id for name in info.needs},
        "externals": stage.externals(spec, run),
    }


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return value


def remember(store: Store, key: str, what: Mapping[str, Any], outputs: Mapping[str, Artifact], seconds: float) -> None:
    """Notes that these outputs belong to this key, so that any Run of the workspace can take them up."""
    entry = {name: {"kind": artifact.kind, "id": artifact.id} for name, artifact in outputs.items()}
    durable.write_json(_path(store, key), {**what, "outputs": entry, "seconds": round(seconds, 3)})


def recall(store: Store, key: str) -> dict[str, Artifact] | None:
    """The outputs of this key, or None when they have to be made. A damaged one is dropped, so that it is made anew.

    Sizes are always compared, hashes of files up to 64 MiB.
    """
    try:
        entry = json.loads(_path(store, key).read_bytes())["outputs"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    outputs = {}
    for name, place in entry.items():
        artifact = store.find(place["kind"], place["id"], verify="cheap")
        if artifact is None:
            # Gone or damaged. A stage that looks at sizes only must not find it again.
            durable.remove_folder(store.folder(place["kind"], place["id"]))
            return None
        outputs[name] = artifact
    return outputs


def _path(store: Store, key: str) -> Path:
    return store.root / "stages" / f"{key}.json"


def stage_key(what: Mapping[str, Any]) -> str:
    return fingerprint(what)


def allowed(spec: Recipe, names: frozenset[str]) -> dict[str, str]:
    """sha256 of the files of the Python code that the user allowed, by "file.py:function".

    Raises RecipeError RUN-022 when a file is not there.
    """
    code = {}
    for name in sorted(names):
        path = Path(name.rpartition(":")[0])
        if not path.is_file():
            raise RecipeError(
                "RUN-022",
                f"the recipe names Python code that is not there: {name}",
                expected="path/to/file.py:function",
                fix="check the path; it is relative to the recipe's folder",
            )
        code[name] = durable.hash_file(path)
    return code
