"""Parts on disk: made aside, true once their facts are written, kept when the run that made them was killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.runs import durable

SUFFIX = ".arrow"


def stem_of(folder: Path | str, number: int) -> Path:
    return Path(folder) / f"{number:05d}"


def make(folder: Path | str, number: int, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Writes a part by `write(path) -> facts` and then its facts, which say that it is whole. Returns the facts."""
    stem = stem_of(folder, number)
    aside = stem.with_suffix(".tmp")
    facts = write(aside)
    facts = {**facts, "sha256": durable.hash_file(aside)}
    aside.rename(stem.with_suffix(SUFFIX))
    aside.write_text(json.dumps(facts))
    aside.rename(stem.with_suffix(".json"))
    return facts


def finished(folder: Path | str, number: int) -> dict[str, Any] | None:
    """The facts of a part that an earlier start made; None where there is none, or not as it was written."""
    stem = stem_of(folder, number)
    try:
        facts = json.loads(stem.with_suffix(".json").read_bytes())
        return facts if durable.hash_file(stem.with_suffix(SUFFIX)) == facts["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def move(aside: Path, folder: Path, count: int) -> None:
    """Moves the parts into an artifact's folder."""
    folder.mkdir()
    for number in range(count):
        stem_of(aside, number).with_suffix(SUFFIX).rename(stem_of(folder, number).with_suffix(SUFFIX))


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
    """A part's facts without its hash, which the artifact's manifest has."""
    return {name: value for name, value in facts.items() if name != "sha256"}
