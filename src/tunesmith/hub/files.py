"""A model's files, found or fetched, looked over before anything loads them: weights are safetensors, nothing names code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

BUILTIN = Path(__file__).parent / "builtin"
FETCHED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
SHARD = re.compile(r"^[A-Za-z0-9._-]+\.safetensors$")
ALLOWED_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}


@dataclass(frozen=True)
class ModelFiles:
    """source: as asked. commit: the hub's 40 hex characters, None for folders. fingerprint: hash of all file contents."""

    path: Path
    source: str
    commit: str | None
    fingerprint: str
    config: dict[str, Any] = field(repr=False)

    @property
    def weights_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.path.glob("*.safetensors"))


def resolve(base: str, revision: str | None = None) -> ModelFiles:
    """Find or fetch a model and refuse what could run code or cannot be loaded.

    base: a folder, owner/name on the hub, or builtin:NAME. Raises ModelError MDL-0xx.
    """
    commit = None
    if base.startswith("builtin:"):
        path = _builtin(base)
    elif Path(base).is_dir():
        path = Path(base)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        path, commit = _fetch(base, revision)
    else:
        raise ModelError(
            "MDL-001",
            f"there is no model {base!r}",
            where="model.base",
            expected="a folder, owner/name on the hub, or builtin:tunesmith-tiny",
            fix="check the path; a relative one starts at the recipe's folder",
        )
    config = _read_config(path)
    _refuse_code(config, path)
    _check_weights(path)
    return ModelFiles(path, base, commit, _fingerprint(path), config)


def _builtin(base: str) -> Path:
    path = BUILTIN / base.removeprefix("builtin:")
    if not (path / "config.json").is_file():
        known = ", ".join(f"builtin:{found.parent.name}" for found in sorted(BUILTIN.glob("*/config.json")))
        raise ModelError(
            "MDL-002",
            f"there is no {base}",
            where="model.base",
            expected=known or "a packaged model",
            fix=f"model.base: {known}",
        )
    return path


def _fetch(base: str, revision: str | None) -> tuple[Path, str]:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(
            "MDL-003",
            f"{base} is on the hub and huggingface_hub is not installed",
            where="model.base",
            expected="the hub extra",
            fix="pip install 'tunesmith[hub]', or give a folder",
        ) from error
    try:
        commit = HfApi().model_info(base, revision=revision).sha or ""
        path = snapshot_download(base, revision=commit, allow_patterns=FETCHED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            "MDL-004",
            f"{base}{'@' + revision if revision else ''} could not be fetched: {reason}",
            where="model.base",
            expected="a public model, or one your HF_TOKEN may read",
            fix="check the name and the network; offline, give the folder of a downloaded copy",
        ) from error
    return Path(path), commit


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            "MDL-005",
            f"{path} has no readable config.json ({error})",
            where="model.base",
            expected="a folder as save_pretrained writes it",
            fix="point model.base at the folder that holds config.json",
        ) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            "MDL-006",
            f"{path}/config.json names no model_type",
            where="model.base",
            expected="the configuration of a transformers model",
            fix="use the folder of the base model, not of an adapter",
        )
    return config


def _refuse_code(config: dict[str, Any], path: Path) -> None:
    for place, name, value in _walk(config):
        dangerous = (
            name == "auto_map"
            or (name == "trust_remote_code" and value)
            or name in ("_attn_implementation_internal", "custom_pipelines")
            or (name in ("attn_implementation", "_attn_implementation") and value not in ALLOWED_ATTENTION)
        )
        if dangerous:
            raise ModelError(
                "MDL-007",
                f"{path}/config.json asks for code: {place} = {value!r}",
                where="model.base",
                expected="a model that transformers itself implements",
                fix="use a revision of the model without remote code",
            )


def _walk(node: Any, place: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{place}{name}", name, value
            yield from _walk(value, f"{place}{name}.")
    elif isinstance(node, list):
        for item in node:
            yield from _walk(item, place)


def _check_weights(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        for shard in sorted(shards):
            if not SHARD.match(shard) or not (path / shard).is_file():
                raise ModelError(
                    "MDL-008",
                    f"{index.name} names {shard!r}, which is no plain safetensors file there",
                    where="model.base",
                    expected="every shard beside the index",
                    fix="fetch the missing shards",
                )
        return
    if not (path / "model.safetensors").is_file():
        pickles = sorted(found.name for found in path.glob("*.bin"))
        raise ModelError(
            "MDL-009",
            f"{path} has no model.safetensors"
            + (f", only {', '.join(pickles)} (pickle: it can run code)" if pickles else ""),
            where="model.base",
            expected="weights as safetensors",
            fix="save the model again with save_pretrained(safe_serialization=True)"
            if pickles
            else "fetch the weights",
        )


def _fingerprint(path: Path) -> str:
    """Hash over what decides the model's behaviour; weights by content as well, so that an edited file is another model."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:20]
