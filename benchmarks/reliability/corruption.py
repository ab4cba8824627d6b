"""Damage to any file of a checkpoint is detected, the file is named, and the last good checkpoint is taken.

Four checkpoints of one training are written by the real save. Each case damages one file (the manifest included) of the
latest or of the one before it in one way, and reads with what a resume reads with; where it waits for a pipe, that is noticed:
- of the latest: the one before is found, bit for bit, and the damaged file is named;
- of the one before: it is named and not loaded; the latest is still found;
- every so often the other checkpoints are damaged as well: training stops clearly, and nothing is deleted.

`mutations` blinds the store in one respect after the other; each must make the check fail.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.crash_states import RECIPE, PlainDisk, is_step, tensors, training, use
from reliability.frame import Budget
from tunesmith.errors import FileError
from tunesmith.runs import store
from tunesmith.runs.run import Run
from tunesmith.stages.train.checkpoint import Checkpoints, TrainState

PROMISE = "A damaged checkpoint is never used: the file is named, the last good one is taken"
STEPS = (1, 2, 3, 4)
WIDTH = 2600  # numbers in a tensor: files of several pages
PAGE = 4096
REPEATS = 66  # of each file, kind and checkpoint
ALL_DAMAGED_EVERY = 10  # of so many cases, one with no sound checkpoint at all
HANG_S = 10
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@dataclass(frozen=True)
class Case:
    """Everything about it follows from these four."""

    file: str
    kind: str
    step: int
    repeat: int

    def __str__(self) -> str:
        return f"{self.kind} {self.file} of step {self.step}, {self.repeat}"

    @property
    def draw(self) -> random.Random:
        return random.Random(str(self))


def truncate(path: Path, case: Case) -> None:
    size = path.stat().st_size
    os.truncate(path, (0, 1, size // 2, size - 1, case.draw.randrange(size))[min(case.repeat, 4)])


def flip(path: Path, case: Case) -> None:
    data, draw = bytearray(path.read_bytes()), case.draw
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def zero_a_page(path: Path, case: Case) -> None:
    data = bytearray(path.read_bytes())
    start = PAGE * case.draw.randrange((len(data) + PAGE - 1) // PAGE)
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    path.write_bytes(data)


def swap(path: Path, case: Case) -> None:
    other = case.draw.choice([step for step in STEPS if step != case.step])
    path.write_bytes((folder_of(path.parents[1], other) / path.name).read_bytes())


def delete(path: Path, case: Case) -> None:
    path.unlink()


def link(path: Path, case: Case) -> None:
    """To the same bytes elsewhere, to those of another step, to nothing."""
    away = path.parents[2] / f"linked-{path.name}"
    shutil.copyfile(path, away)
    path.unlink()
    targets = (away, folder_of(path.parents[1], 1) / path.name, path.parent / "nothing")
    path.symlink_to(targets[case.repeat % 3])


def pipe(path: Path, case: Case) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, case: Case) -> None:
    path.unlink()
    path.mkdir()


def foreign_manifest(path: Path, case: Case) -> None:
    """A sound one of another training, of another step, or this one's with a changed entry and a seal that fits it."""
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    which = case.repeat % 3
    if which == 0:
        manifest["id"] = f"other/step-{case.step:08d}"
    elif which == 1:
        other = case.draw.choice([step for step in STEPS if step != case.step])
        path.write_bytes((folder_of(path.parents[1], other) / path.name).read_bytes())
        return
    else:
        manifest["kind"] = "Adapter"
    path.write_bytes(store.sealed(manifest))


KINDS: dict[str, Callable[[Path, Case], None]] = {
    "truncate": truncate,
    "flip a bit of": flip,
    "zero a page of": zero_a_page,
    "swap": swap,
    "delete": delete,
    "link instead of": link,
    "pipe instead of": pipe,
    "folder instead of": folder,
    "foreign": foreign_manifest,
}


def all_cases() -> Iterator[Case]:
    """Spread evenly: every file, kind and checkpoint once before any of them again."""
    for repeat in range(REPEATS):
        for kind in KINDS:
            for name in FILES if kind != "foreign" else ("manifest.json",):
                for step in STEPS[:-3:-1]:
                    yield Case(name, kind, step, repeat)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def make_checkpoints(root: Path) -> Path:
    """Returns the folder of the four."""
    Run.open_or_create(root, RECIPE)
    run, _, _ = training(root)
    checkpoints = Checkpoints(run, keep=len(STEPS))
    for step in STEPS:
        checkpoints.save(TrainState(step=step), *tensors(step, WIDTH))
    return checkpoints.folder


def check(budget: Budget) -> dict[str, Any]:
    per_kind: dict[str, int] = budget.notes.setdefault("kinds", {})
    root = Path(tempfile.mkdtemp(prefix="corruption-"))
    try:
        with use(PlainDisk()):
            checkpoints = make_checkpoints(root)
            sound = root / "sound"
            shutil.copytree(checkpoints, sound)
            for number, case in enumerate(budget.cases(all_cases())):
                KINDS[case.kind](folder_of(checkpoints, case.step) / case.file, case)
                found = problem(root, case)
                if found is None and number % ALL_DAMAGED_EVERY == 0:
                    found = problem_without_a_sound_one(root, checkpoints, case)
                restore(sound, checkpoints)
                per_kind[case.kind] = per_kind.get(case.kind, 0) + 1
                budget.judge(str(case), found)
    finally:
        shutil.rmtree(root)
    return budget.result(PROMISE)


def restore(sound: Path, checkpoints: Path) -> None:
    shutil.rmtree(checkpoints)
    shutil.copytree(sound, checkpoints)


def problem(root: Path, case: Case) -> str | None:
    """What is wrong with how the damage was met."""
    _, checkpoints, damages = training(root)
    place = folder_of(checkpoints.folder, case.step) / case.file
    expected = STEPS[-2] if case.step == STEPS[-1] else STEPS[-1]
    try:
        with hang_noticed(place):
            found = checkpoints.latest()
            if case.step != STEPS[-1] and checkpoints.load(case.step) is not None:
                return "it is loaded"
    except TimeoutError:
        return f"it waits for more than {HANG_S} s"
    except Exception as error:
        return f"reading raised {error!r}"
    if found is None or found.state.step != expected or not is_step(found, expected, WIDTH):
        return f"step {found.state.step if found else 'none'} is taken, not {expected}"
    return None if damages and all(str(place) in told for told in damages) else f"told: {damages}"


def problem_without_a_sound_one(root: Path, folder: Path, case: Case) -> str | None:
    for step in STEPS:
        if step != case.step:
            path = folder_of(folder, step) / FILES[case.repeat % len(FILES)]
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
    before = contents(folder)
    _, checkpoints, _ = training(root)
    place = folder_of(folder, case.step) / case.file
    try:
        with hang_noticed(place):
            found = checkpoints.latest()
    except FileError as error:
        lost = before != contents(folder)
        return "something was deleted" if lost else None if error.code == "TRN-008" else f"it says {error}"
    except Exception as error:
        return f"with none sound, reading raised {error!r}"
    return f"with none sound, {'nothing' if found is None else f'step {found.state.step}'} is found and no word said"


def contents(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else path.lstat().st_mode
        for path in folder.rglob("*")
    }


@contextmanager
def hang_noticed(path: Path) -> Iterator[None]:
    """Raises TimeoutError after a call that waited for a pipe. Native code that waits lets no thread of this process work, so
    another process opens the pipe for it."""
    if not path.is_fifo():
        yield
        return
    command = ["sh", "-c", f"sleep {HANG_S}; : > '{path}'"]
    watcher = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        hung = watcher.poll() is not None
        if not hung:
            os.killpg(watcher.pid, signal.SIGKILL)
        watcher.wait()
        if hung:
            raise TimeoutError


def mutations() -> dict[str, tuple[Any, str, Any]]:
    """Ways to blind the product, as (object, attribute, what stands there instead)."""

    def verify(artifact: Any, how: str) -> None:
        real_verify(artifact, "size")

    def read_manifest(folder: Path, kind: str, id: str) -> dict[str, Any]:
        return json.loads((folder / store.MANIFEST).read_bytes())

    def latest(self: Checkpoints) -> Any:
        return next(filter(None, map(self.load, reversed(self.steps()))), None)

    real_verify = store._verify
    return {
        "hashes are not compared": (store, "_verify", verify),
        "nothing is compared": (store, "_verify", lambda artifact, how: None),
        "the manifest is believed": (store, "_read_manifest", read_manifest),
        "none sound is as none at all": (Checkpoints, "latest", latest),
    }
