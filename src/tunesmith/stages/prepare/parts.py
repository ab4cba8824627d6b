"""Parts on disk: made aside, true once their facts are written, kept when the run that made them was killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tunesmith.runs import durable


def stem_of(folder: Path | str, number: int) -> Path:
    """A part's own folder."""
    return Path(folder) / f"{number:05d}"


def make(folder: Path | str, number: int, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fills a part's folder by `write(path) -> facts` and then writes its facts, which say that it is whole."""
    stem = stem_of(folder, number)
    aside = stem.with_suffix(".tmp")
    for left in (aside, stem):  # of a start that was killed
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    facts = {**write(aside), "hashes": _hashes(aside)}
    aside.rename(stem)
    told = stem.with_suffix(".json.tmp")
    told.write_text(json.dumps(facts))
    told.rename(stem.with_suffix(".json"))
    return facts


def finished(folder: Path | str, number: int) -> dict[str, Any] | None:
    """The facts of a part that an earlier start made; None where there is none, or not as it was written."""
    stem = stem_of(folder, number)
    try:
        facts = json.loads(stem.with_suffix(".json").read_bytes())
        return facts if _hashes(stem) == facts["hashes"] else None
    except (OSError, ValueError, KeyError):
        return None


def _hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file as it is read back: made where the part is, so that its artifact need not read it again."""
    return {path.name: durable.hash_file(path) for path in sorted(folder.iterdir())}


def move(aside: Path, artifact: Path, made: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Moves parts into the folder `parts` of an artifact. made: the facts of each, in order. Returns their files' hashes, by path
    inside the artifact."""
    folder, hashes = artifact / "parts", {}
    folder.mkdir()
    for number, facts in enumerate(made):
        stem_of(aside, number).rename(stem_of(folder, number))
        hashes |= {
            f"{folder.name}/{stem_of(folder, number).name}/{name}": hash for name, hash in facts["hashes"].items()
        }
    return hashes


def open_table(path: Path) -> pa.Table:
    """An Arrow file by memory map."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def folder_for(artifact: Path) -> Iterator[Path]:
    """Where the parts of an artifact are made: a folder beside it that outlives a kill and goes when the block ends well.

    Where another process is at work on the same artifact, a folder of our own, which nobody goes on with.
    """
    shared = artifact.with_name(f".parts-{artifact.name}")
    durable.make_folders(shared)
    descriptor = os.open(shared, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with durable.folder_aside(artifact) as own:
            yield own
    else:
        yield shared
        shutil.rmtree(shared, ignore_errors=True)
    finally:
        os.close(descriptor)


def describe(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A part's facts without its hashes, which the artifact's manifest has."""
    return {name: value for name, value in facts.items() if name != "hashes"}
