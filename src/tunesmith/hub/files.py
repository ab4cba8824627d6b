"""A model's files, found or fetched, looked over before anything loads them: weights are safetensors, nothing names code."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.hub import download
from tunesmith.hub.hashes import file_sha256
from tunesmith.hub.trusted import MAX_INDEX_BYTES, SMALL, read_json, refuse_code, refuse_odd_files, unreadable

BUILTIN = Path(__file__).parent / "builtin"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
SHARD = re.compile(r"^[A-Za-z0-9._-]+\.safetensors$")
SHA256 = re.compile(r"^[0-9a-f]{64}$")
BUILTIN_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")


@dataclass(frozen=True)
class ModelConfig:
    """What is known before weights are fetched. commit: the hub's 40 hex characters, None for folders.

    bytes_to_fetch: of weights that are not here yet; None when the hub could not be asked.
    """

    source: str
    commit: str | None
    config: dict[str, Any] = field(repr=False)
    bytes_to_fetch: int | None = 0


@dataclass(frozen=True)
class ModelFiles:
    """source: as asked. commit: the hub's 40 hex characters, None for folders. has_weights: False when only small files were asked for."""

    path: Path
    source: str
    commit: str | None
    config: dict[str, Any] = field(repr=False)
    has_weights: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the contents of all files that decide the model's behaviour, so that an edited file is another model.

        A file of the hub's cache must hold what its name there says. Raises ModelError MDL-015 when it does not.
        """
        assert self.has_weights, "without its weights a model has no fingerprint"
        digest = hashlib.sha256()
        small = {file.name for file in self.path.iterdir() if file.suffix in SMALL}
        for name in sorted(small | _weight_names(self.path)):
            if (self.path / name).is_file():
                digest.update(name.encode() + bytes.fromhex(_proven_sha256(self.path / name, self.commit)))
        return digest.hexdigest()[:20]

    @property
    def weights_bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in _weight_names(self.path))


def resolve_config(base: str, revision: str | None = None) -> ModelConfig:
    """What a plan needs, without fetching weights; refuses what could run code, or has no weights that can be used.

    base, revision: as in `resolve`. Raises ModelError MDL-0xx.
    """
    if not download.is_hub_name(base):
        files = resolve(base)
        return ModelConfig(base, None, files.config)
    found = download.fetch_config(base, revision)
    folder = found.path.parent
    config = _read_config(folder)
    refuse_code(folder)
    if all((folder / name).is_file() for name in _weight_names(folder)):
        return ModelConfig(base, found.commit, config, 0)
    listed = download.listing(base, found.commit)
    if listed is None:
        return ModelConfig(base, found.commit, config, None)
    if WEIGHTS not in listed and INDEX not in listed:
        raise _no_weights(base, sorted(name for name in listed if name.endswith(".bin")))
    weights = [name for name in listed if name.startswith("model") and SHARD.match(name)]
    missing = sum(listed[name] for name in weights if not (folder / name).is_file())
    return ModelConfig(base, found.commit, config, missing)


def resolve(base: str, revision: str | None = None, *, weights: bool = True) -> ModelFiles:
    """Find or fetch a model and refuse what could run code or cannot be loaded.

    base: a folder, owner/name on the hub, or builtin:NAME. revision: commit, tag or branch on the hub.
    weights: False leaves them where they are: tokenizer, template and configuration only.
    Raises ModelError MDL-0xx, FileError MDL-016.
    """
    commit = None
    if base.startswith("builtin:"):
        path = _builtin(base)
    elif Path(base).is_dir():
        path = Path(base)
    elif download.is_hub_name(base):
        is_commit = revision is not None and download.COMMIT.match(revision)
        commit = str(revision) if is_commit else download.fetch_config(base, revision).commit
        path = download.fetch_small(base, commit)
    else:
        raise ModelError(
            "MDL-001",
            f"there is no model {base!r}",
            where="model.base",
            expected="a folder, owner/name on the hub, or builtin:tunesmith-tiny",
            fix="check the path; a relative one starts at the recipe's folder",
        )
    refuse_odd_files(path)
    config = _read_config(path)
    refuse_code(path)
    if weights:
        if commit is not None:
            download.fetch_weights(base, commit, path, _weight_names(path))
        _check_weights(path, base, commit)
    return ModelFiles(path, base, commit, config, has_weights=weights)


def _builtin(base: str) -> Path:
    path = BUILTIN / base.removeprefix("builtin:")
    if not BUILTIN_NAME.match(base.removeprefix("builtin:")) or not (path / "config.json").is_file():
        known = ", ".join(f"builtin:{found.parent.name}" for found in sorted(BUILTIN.glob("*/config.json")))
        raise ModelError(
            "MDL-002",
            f"there is no {base}",
            where="model.base",
            expected=known or "a packaged model",
            fix=f"model.base: {known}",
        )
    return path


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise unreadable(path, "config.json", error) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            "MDL-006",
            f"{path}/config.json names no model_type",
            where="model.base",
            expected="the configuration of a transformers model",
            fix="use the folder of the base model, not of an adapter",
        )
    return config


def _weight_names(path: Path) -> frozenset[str]:
    """The safetensors that make the model: those its index names, or the one. Raises ModelError MDL-008 for a bad index."""
    index = path / INDEX
    if not index.is_file():
        return frozenset({WEIGHTS})
    try:
        names = frozenset(map(str, read_json(index, MAX_INDEX_BYTES)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "MDL-018",
            f"{index} cannot be read ({type(error).__name__}: {error})",
            where="model.base",
            expected="a weight_map from tensors to files",
            fix="fetch the index again",
        ) from error
    # A name with a path in it could point anywhere.
    unsafe = sorted(name for name in names if not SHARD.match(name))
    if unsafe:
        raise _bad_shard(unsafe[0])
    return names


def _check_weights(path: Path, base: str, commit: str | None) -> None:
    missing = sorted(name for name in _weight_names(path) if not (path / name).is_file())
    if missing and (path / INDEX).is_file():
        raise _bad_shard(missing[0])
    if missing:
        listed = (download.listing(base, commit) or {}) if commit else [file.name for file in path.iterdir()]
        raise _no_weights(base, sorted(name for name in listed if name.endswith(".bin")))


def _bad_shard(name: str) -> ModelError:
    return ModelError(
        "MDL-008",
        f"{INDEX} names {name!r}, which is no plain safetensors file there",
        where="model.base",
        expected="every shard beside the index",
        fix="fetch the missing shards",
    )


def _no_weights(base: str, pickles: list[str]) -> ModelError:
    return ModelError(
        "MDL-009",
        f"{base} has no {WEIGHTS}" + (f", only {', '.join(pickles[:3])} (pickle: it can run code)" if pickles else ""),
        where="model.base",
        expected="weights as safetensors",
        fix="save the model again with save_pretrained(safe_serialization=True)" if pickles else "fetch the weights",
    )


def _proven_sha256(file: Path, commit: str | None) -> str:
    """The hash of a file's content. In the hub's cache large files are named by theirs, which must agree."""
    digest = file_sha256(file)
    name = Path(os.readlink(file)).name if commit and file.is_symlink() else ""
    if SHA256.match(name) and name != digest:
        raise ModelError(
            "MDL-015",
            f"{file.name} of the hub's cache is damaged: its content is not what was published",
            where=str(file),
            expected=f"sha256 {name}",
            fix=f"rm '{file.resolve()}' '{file}', then run the same command again: it is fetched anew",
        )
    return digest
