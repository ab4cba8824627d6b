"""The artifact store: folders named by what made them, each with a manifest that says what must be in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import FileError
from tunesmith.runs import durable

SCHEMA = 2
MANIFEST = "manifest.json"
KINDS = ("Rows", "Verdicts", "Tokens", "Dataset", "Checkpoint", "Adapter", "Model", "Evaluation", "Parity")
FILES_AT_ONCE = 8  # flushed or hashed
SEAL = re.compile(rb'(.*,\n)  "sha256": "([0-9a-f]{64})"\n\}\n', re.DOTALL)
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
CHEAP_BYTES = 64 * 1024**2  # hashing this much takes under a tenth of a second

Verification = Literal["size", "cheap", "hash"]


@dataclass(frozen=True)
class Artifact:
    """A finished folder in the store. `manifest` holds kind, id, schema, files, producer, created, notes."""

    kind: str
    id: str
    path: Path
    manifest: dict[str, Any]

    @property
    def notes(self) -> dict[str, Any]:
        return self.manifest["notes"]


@dataclass
class Draft:
    """An artifact in the making: fill `path`, add to `notes`; `artifact` is there after the `with` block.

    hashes: sha256 of files that whoever made them has read back already, by path inside the folder.
    """

    path: Path
    notes: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    artifact: Artifact | None = None


class Store:
    """Artifacts under `root`, at <kind in lower case>/<id>/. Safe for several processes at once.

    on_damage: called with a sentence when an artifact that should be there turns out damaged.
    before_publish: called before an artifact becomes true; the Run flushes the events that led to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.on_damage: Callable[[str], None] = lambda message: None
        self.before_publish: Callable[[], None] = lambda: None

    def folder(self, kind: str, id: str) -> Path:
        assert kind in KINDS, f"kind {kind!r} is none of {KINDS}"
        assert ID.fullmatch(id), f"id {id!r}"
        return self.root / kind.lower() / id

    @staticmethod
    def is_name(kind: Any, id: Any) -> bool:
        """Whether an artifact could be called so; what a file says may be anything."""
        return kind in KINDS and isinstance(id, str) and bool(ID.fullmatch(id)) and ".." not in id

    def find(self, kind: str, id: str, *, verify: Verification = "size") -> Artifact | None:
        """The artifact, or None when it is not there or is damaged (then `on_damage` is told).

        verify: "size" compares the size of each file with the manifest, "cheap" also the hash of files below 64 MiB,
        "hash" every hash.
        """
        path = self.folder(kind, id)
        if not path.exists():
            return None
        try:
            artifact = Artifact(kind, id, path, _read_manifest(path, kind, id))
            _verify(artifact, verify)
        except FileError as error:
            self.on_damage(error.headline)
            return None
        return artifact

    def verify(self, artifact: Artifact) -> None:
        """Compares every file with its hash. Raises FileError RUN-005 naming the first damaged file."""
        _verify(artifact, "hash")

    @contextlib.contextmanager
    def create(
        self, kind: str, id: str, *, producer: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> Iterator[Draft]:
        """A draft folder that becomes the artifact when the block ends well and vanishes when it does not.

        producer: {stage, version, recipe, inputs}. When another process has finished the same artifact meanwhile, its
        sound folder stays and ours is dropped; a damaged one is replaced.
        """
        final = self.folder(kind, id)
        durable.sweep(final.parent)
        with durable.folder_aside(final) as path:
            draft = Draft(path, dict(notes or {}))
            with durable.explain_trouble(path):
                yield draft
            manifest = {
                "kind": kind,
                "id": id,
                "schema": SCHEMA,
                "files": _describe(path, draft.hashes),
                "producer": plain(producer),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "notes": plain(draft.notes),
            }
            durable.write_bytes(path / MANIFEST, sealed(manifest))
            self.before_publish()
            draft.artifact = self._publish(Artifact(kind, id, final, manifest), path)

    def _publish(self, artifact: Artifact, path: Path) -> Artifact:
        try:
            durable.publish_folder(path, artifact.path)
        except FileExistsError:
            winner = self.find(artifact.kind, artifact.id, verify="hash")
            if winner is not None:
                durable.flush_file(artifact.path.parent)  # whoever renamed it may not have come so far
                return winner
            durable.publish_folder(path, artifact.path, replace=True)
        return artifact


def _describe(folder: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Flushes each file; its size and hash by its path inside the folder. Hashing is also the reading back; known: done before."""
    paths = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FileError(
                "RUN-006",
                f"{path.relative_to(folder)} is a link or a special file",
                expected="plain files and folders in an artifact",
                fix="this is a fault of the stage that made it; please report it",
            )
        if path.is_file() and path != folder / MANIFEST:
            paths.append(path)
    # Both leave the interpreter free: one file is hashed while the disk takes another. Publishing then finds them flushed.
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        flushed = [pool.submit(durable.flush_file, path) for path in paths]
        hashes = list(pool.map(lambda path: known.get(_inside(folder, path)) or durable.hash_file(path), paths))
    for done in flushed:
        done.result()
    return {
        _inside(folder, path): {"size": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(paths, hashes, strict=True)
    }


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """As indented JSON whose last key, sha256, is the hash of all the bytes before it: the manifest vouches for itself."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}") + ",\n"
    data = text.encode("utf-8", "backslashreplace")
    return data + f'  "sha256": "{hashlib.sha256(data).hexdigest()}"\n}}\n'.encode()


def _read_manifest(folder: Path, kind: str, id: str) -> dict[str, Any]:
    """Raises FileError RUN-005 unless every byte is as it was written, by this version, for this artifact."""
    path = folder / MANIFEST
    try:
        data = durable.read_plain(path)
        manifest = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, path, f"cannot be read ({error})") from error
    if not isinstance(manifest, dict) or not {"kind", "files", "producer", "notes"} <= set(manifest):
        raise _damaged(folder, path, "is no manifest")
    files = manifest["files"]
    entries = files.items() if isinstance(files, dict) else [("", None)]
    if not all(name and isinstance(entry, dict) and {"size", "sha256"} <= set(entry) for name, entry in entries):
        raise _damaged(folder, path, "lists no files with their size and hash")
    if manifest.get("schema") != SCHEMA:
        raise _damaged(folder, path, f"has schema {manifest.get('schema')}, this version reads {SCHEMA}")
    seal = SEAL.fullmatch(data)
    if seal is None or hashlib.sha256(seal[1]).hexdigest().encode() != seal[2]:
        raise _damaged(folder, path, "has other bytes than were written")
    if (manifest["kind"], manifest.get("id")) != (kind, id):
        raise _damaged(folder, path, f"belongs to {manifest['kind']} {manifest.get('id')}")
    del manifest["sha256"]
    return manifest


def _verify(artifact: Artifact, how: Verification) -> None:
    home = Path(os.path.realpath(artifact.path))
    for name, file in artifact.manifest["files"].items():
        path = artifact.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _damaged(artifact.path, path, "lies elsewhere")
        if not path.exists() and not path.is_symlink():
            raise _damaged(artifact.path, path, "is missing")
        if path.is_symlink() or Path(os.path.realpath(path)) != home / name or not path.is_file():
            raise _damaged(artifact.path, path, "is no plain file of this folder")
        size = path.stat().st_size
        if size != file["size"]:
            raise _damaged(artifact.path, path, f"has {size} bytes, the manifest says {file['size']}")
        hashed = how == "hash" or (how == "cheap" and size <= CHEAP_BYTES)
        if hashed and durable.hash_file(path) != file["sha256"]:
            raise _damaged(artifact.path, path, "has other bytes than the manifest says")


def _damaged(folder: Path, path: Path, why: str) -> FileError:
    return FileError(
        "RUN-005",
        f"{path} {why}",
        expected="the files that its manifest lists, byte for byte",
        fix=f"run the same command again: it makes this artifact anew; or remove {folder} by hand",
    )


# ------------------------------------------------------------------------------------------------------ fingerprints


def fingerprint(obj: Any) -> str:
    """20 hex characters of the sha256 of canonical JSON: the same content gives the same text, in any order of keys."""
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plain(obj: Any) -> Any:
    """The object as JSON knows it: models and dataclasses as dicts, tuples as lists, sets sorted, paths as text."""
    if hasattr(obj, "model_dump"):
        return obj.model_dump(mode="json")
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return plain(dataclasses.asdict(obj))
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(plain(value) for value in obj)
    if isinstance(obj, Path):
        return str(obj)
    return obj
