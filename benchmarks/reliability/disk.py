"""A full or failing disk is a pause: the run says what it lacks, keeps what was saved, and goes on when there is room.

- A save (its events, its files, the removal of the older one) meets ENOSPC, EDQUOT or EIO at its k-th operation, for every k, and
  from there on at each: until the first pause, or for ever. Meanwhile and afterwards the checkpoint before is sound.
- A whole training meets ENOSPC at its k-th operation, for every k, until it pauses; it ends in the bytes of the undisturbed one.
- The same on a real small file system that another program fills up (where mounting is allowed).
- A disk without room for two checkpoints is refused before anything is loaded; two processes on one run are refused; network file
  systems are told apart from local ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reliability.crash_states import RECIPE, PlainDisk, is_step, tensors, training, use
from reliability.frame import Budget
from tunesmith import api
from tunesmith.errors import FileError, StoppedError, TunesmithError
from tunesmith.runs import durable, patience
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.stages.train.checkpoint import TrainState
from tunesmith.units import format_bytes

PROMISE = "A full disk is a pause: nothing saved is lost, and the run goes on when there is room"
OPERATIONS = ("write", "append", "fill", "truncate", "read", "flush", "make_folder", "rename", "remove")
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
WIDTH = 64
BASE = Path(durable.__file__).parents[1] / "hub" / "builtin" / "tunesmith-tiny"
LORA = "adapter={type: lora, rank: 2, targets: [q_proj]}"
SETTINGS = [LORA, "train.max_steps=3", "train.batch_size=2", "train.evaluate_every=2", "train.keep_checkpoints=1"]
MOUNT_BYTES = 2 * 1024**2


class FullDisk(PlainDisk):
    """Fails its k-th operation, and from there on each one while `is_full`."""

    def __init__(self, k: int, number: int) -> None:
        self.k, self.number, self.count, self.is_full = k, number, 0, True
        self.lock = threading.Lock()  # flushes go side by side

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in OPERATIONS:
            return method

        def call(path: Path, *arguments: Any) -> Any:
            with self.lock:
                self.count += 1
            if self.is_full and self.count >= self.k:
                raise OSError(self.number, os.strerror(self.number), str(path))
            return method(path, *arguments)

        return call


class Waiting:
    """Time that passes by waiting only; `meanwhile` is called at the first look of each pause."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.time, self.meanwhile, self.pauses = 0.0, meanwhile, 0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        if self.time % patience.CHECK_S < seconds / 2 or self.pauses == 0:
            self.pauses += 1
            self.meanwhile()
        self.time += seconds


@contextlib.contextmanager
def waiting(meanwhile: Callable[[], None]) -> Iterator[Waiting]:
    before, patience.clock = patience.clock, Waiting(meanwhile)  # type: ignore[assignment]
    try:
        yield patience.clock  # type: ignore[misc]
    finally:
        patience.clock = before


Problem = Callable[[], str | None]


def check(budget: Budget) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="disk-"))
    groups: dict[str, int] = budget.notes.setdefault("groups", {})
    try:
        with use(PlainDisk()):
            for group, name, problem in budget.cases(all_cases(root, budget)):
                try:
                    found = problem()
                except NotHere as error:
                    budget.skip(group, str(error))
                    continue
                except Exception as error:
                    found = f"raised {error!r}"
                groups[group] = groups.get(group, 0) + 1
                budget.judge(f"{group}: {name}", found)
    finally:
        shutil.rmtree(root)
    return budget.result(PROMISE)


class NotHere(Exception):
    """This machine does not allow the case."""


def all_cases(root: Path, budget: Budget) -> Iterator[tuple[str, str, Problem]]:
    for name, problem in REFUSALS.items():
        yield "refused or said", name, partial(problem, root)
    for name in ("the space returns", "it does not"):
        yield "a real small file system", name, partial(small_file_system, root, comes_back=name == "the space returns")
    saves = operations_of(lambda: Saving(root).run())
    for number in NUMBERS:
        for comes_back in (True, False):
            for k in range(1, saves + 1):
                name = f"{errno.errorcode[number]} at operation {k}, {'for a while' if comes_back else 'for good'}"
                yield "a save", name, partial(saving, root, k, number, comes_back)
    straight = Straight(root)
    for k in range(1, straight.operations + 1):
        yield "a training", f"ENOSPC at operation {k}", partial(trained, root, k, straight)
    budget.notes["operations"] = {"a save": saves, "a training": straight.operations}


def operations_of(act: Callable[[], Any]) -> int:
    disk = FullDisk(0, 0)
    disk.is_full = False
    with use(disk):
        act()
    return disk.count


# ---------------------------------------------------------------------------------------------------------------- a save


class Saving:
    """Step 1 is safe, and step 2 is told and saved."""

    def __init__(self, root: Path) -> None:
        self.workspace = Path(tempfile.mkdtemp(dir=root))
        with use(PlainDisk()):
            Run.open_or_create(self.workspace, RECIPE)
            self._save(1)

    def _save(self, step: int) -> Run:
        run, checkpoints, _ = training(self.workspace)
        run.is_patient = True
        self.heard: list[str] = []
        run.listeners.append(lambda event: self.heard.append(f"{event.name} {event.value}"))
        run.record_step("train", step, {"train/loss": (0.5, "nats")})
        checkpoints.save(TrainState(step=step), *tensors(step, WIDTH))
        return run

    def run(self) -> None:
        self._save(2)

    def problem(self, *allowed: int) -> str | None:
        _, checkpoints, damages = training(self.workspace)
        found = checkpoints.latest()
        if damages or found is None or found.state.step not in allowed or not is_step(found, found.state.step, WIDTH):
            return f"step {found.state.step if found else 'none'} is found, not {allowed}; {damages}"
        return None

    def end(self) -> str | None:
        """After the same command, with room."""
        left = [path.name for path in self.workspace.rglob(".t*")]
        run, checkpoints, _ = training(self.workspace)
        told = [event.name for event in run.events() if event.step == 2]
        if left or checkpoints.steps() != [2] or sorted(told) != ["checkpoint/saved", "train/loss"]:
            return f"afterwards there are {left}, steps {checkpoints.steps()}, events {told}"
        return self.problem(2)


def saving(root: Path, k: int, number: int, comes_back: bool) -> str | None:
    save, disk = Saving(root), FullDisk(k, number)
    found: list[str] = []

    def meanwhile() -> None:
        found.extend(filter(None, [save.problem(1, 2)]))
        disk.is_full = not comes_back

    try:
        with waiting(meanwhile) as clock, use(disk):
            save.run()
    except (FileError, StoppedError) as error:
        status = 75 if number in durable.FULL else 74
        if comes_back or error.exit_status != status or clock.time < patience.WAIT_S or not said(str(error), number):
            return f"after {clock.time:.0f} s: {error}"
        found.extend(filter(None, [save.problem(1, 2)]))
        save.run()
    else:
        if not comes_back and clock.pauses:
            return "it went on without space"
        told = [line for line in save.heard if line.startswith("run/waiting")]
        if clock.pauses > 1 or len(told) != clock.pauses or not all(said(line, number) for line in told):
            return f"{clock.pauses} pauses, told {save.heard}"
        if not clock.pauses:
            found.append("it did not pause")
    answer = found[0] if found else save.end()
    shutil.rmtree(save.workspace)
    return answer


def said(text: str, number: int) -> bool:
    """What is the matter, the path, what is free and what is needed."""
    word = {errno.ENOSPC: "full", errno.EDQUOT: "quota", errno.EIO: "Input/output error"}[number]
    needed = " needed" in text or number == errno.EIO
    return (
        all(part in text for part in (word, "/artifacts/" if "/artifacts/" in text else "/runs/", " free")) and needed
    )


# ------------------------------------------------------------------------------------------------------------ a training


def small(workspace: Path) -> Any:
    from small_training import small_training

    return small_training(workspace, BASE, SETTINGS, num_train=6, num_validation=2, with_items=False)


class Straight:
    """The undisturbed training: what it makes, and in how many operations on the disk."""

    def __init__(self, root: Path) -> None:
        self.made = small(root / "straight")
        disk = FullDisk(0, 0)
        disk.is_full = False
        with use(disk):
            self.bytes = result_bytes(self.made.train())
        self.operations = disk.count


def result_bytes(artifact: Artifact) -> bytes:
    return (artifact.path / "adapter_model.safetensors").read_bytes()


def trained(root: Path, k: int, straight: Straight) -> str | None:
    workspace = Path(tempfile.mkdtemp(dir=root))
    made, disk = small(workspace), FullDisk(k, errno.ENOSPC)
    with waiting(lambda: setattr(disk, "is_full", False)) as clock, use(disk):
        result = made.train()
    same = result_bytes(result) == straight.bytes
    losses = made.values("train/loss") == straight.made.values("train/loss")
    shutil.rmtree(workspace)
    if same and losses and clock.pauses == 1:
        return None
    return f"{clock.pauses} pauses; the same weights: {same}; the same losses: {losses}"


# ------------------------------------------------------------------------------------------------- a real file system


@contextlib.contextmanager
def small_mount(root: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=root))
    command = ["mount", "-t", "tmpfs", "-o", f"size={MOUNT_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotHere("there is no mount command") from error
    if done.returncode:
        raise NotHere(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # arrays of it may still be mapped


def fill_up(folder: Path) -> Path:
    """Another program takes all that is left."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def small_file_system(root: Path, *, comes_back: bool) -> str | None:
    straight = small(Path(tempfile.mkdtemp(dir=root)))
    wanted = result_bytes(straight.train())
    with small_mount(root) as folder:
        made = small(folder)
        filled: list[Path] = []

        def fill_after_a_save(event: Any) -> None:
            if event.name == "checkpoint/saved" and not filled:
                filled.append(fill_up(folder))

        def meanwhile() -> None:
            if comes_back:
                filled[0].unlink(missing_ok=True)

        made.run.listeners.append(fill_after_a_save)
        heard: list[str] = []
        made.run.listeners.append(lambda event: heard.append(str(event.value)) if event.name == "run/waiting" else None)
        with waiting(meanwhile) as clock:
            try:
                result = made.train()
            except StoppedError as error:
                if comes_back or error.code != "RUN-033":
                    return f"it left: {error}"
                filled[0].unlink()
                result = made.again().train()
            else:
                if not comes_back:
                    return "it went on without space"
        if not clock.pauses or not heard or not said(heard[0], errno.ENOSPC):
            return f"{clock.pauses} pauses, told {heard}"
        return None if result_bytes(result) == wanted else "other weights"


# --------------------------------------------------------------------------------------------------- refused or said


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: small\nmodel: {{base: {BASE}}}\ndata: {{sources: rows.jsonl}}\n")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@contextlib.contextmanager
def with_free(num_bytes: float) -> Iterator[None]:
    before, durable.free_bytes = durable.free_bytes, lambda path: int(num_bytes)
    try:
        yield
    finally:
        durable.free_bytes = before


def two_checkpoints(root: Path) -> str | None:
    """By plan, and by the start of a run: refused just below what the planner says, and not at it."""
    folder = Path(tempfile.mkdtemp(dir=root))
    recipe = recipe_file(folder)
    figures = api.plan(recipe, workspace=folder / "work").figures
    least = max(figures["disk"].low, 2 * figures["checkpoint"].low)
    with with_free(least + 1):
        api.plan(recipe, workspace=folder / "work")
    for act in (api.plan, api.train):
        with with_free(least - 1):
            try:
                act(recipe, workspace=folder / "work")
            except TunesmithError as error:
                if error.code != "RUN-023" or format_bytes(least) not in str(error):
                    return f"{act.__name__} says {error}"
            else:
                return f"{act.__name__} does not refuse"
    return None


HOLDER = """
import sys, time
from pathlib import Path
from tunesmith.runs.run import Run
with Run(Path(sys.argv[1]), Path(sys.argv[2]), 1).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def two_processes(root: Path) -> str | None:
    run = Run.open_or_create(Path(tempfile.mkdtemp(dir=root)), RECIPE)
    source = os.pathsep.join([str(BASE.parents[3]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", HOLDER, str(run.path), str(run.workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with run.lock():
                return "a second process got the run"
        except StoppedError as error:
            if error.code != "RUN-010" or str(holder.pid) not in str(error):
                return f"it says {error}"
        finally:
            holder.kill()
    with run.lock():  # it went away with its process
        return None


def network(root: Path) -> str | None:
    mounts = root / "mounts"
    (root / "home").mkdir(exist_ok=True)
    kinds = {
        "nfs4": True,
        "cifs": True,
        "9p": True,
        "lustre": True,
        "fuse.sshfs": True,
        "ext4": False,
        "xfs": False,
        "tmpfs": False,
    }
    for kind, is_network in kinds.items():
        mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {root}/home {kind} rw 0 0\n")
        if durable.file_system(root / "home" / "work", mounts)["is_network"] != is_network:
            return f"{kind} is taken for {'local' if is_network else 'a network'}"
    return None


REFUSALS: dict[str, Callable[[Path], str | None]] = {
    "no room for two checkpoints": two_checkpoints,
    "two processes on one run": two_processes,
    "network file systems": network,
}


@dataclass(frozen=True)
class Mutation:
    """What stands instead of (object, attribute), and the case that must see it."""

    of: Any
    attribute: str
    instead: Any
    seen_by: Callable[[Path], str | None]


def mutations() -> dict[str, Mutation]:
    """Ways to break the product; each must make the check fail."""

    def impatient(run: Run, act: Callable[[], Any], *, needed: int) -> Any:
        return act()

    from tunesmith.runner import planning
    from tunesmith.runs import run as run_module
    from tunesmith.stages.train import checkpoint

    return {
        "events are not waited for": Mutation(
            run_module, "patiently", impatient, partial(saving, k=1, number=errno.ENOSPC, comes_back=True)
        ),
        "saves are not waited for": Mutation(
            checkpoint, "patiently", impatient, partial(saving, k=9, number=errno.EDQUOT, comes_back=True)
        ),
        "the disk is not looked at": Mutation(planning, "check_disk", lambda *arguments: None, two_checkpoints),
        "no lock is taken": Mutation(Run, "lock", lambda self: contextlib.nullcontext(), two_processes),
    }
