"""Power is cut anywhere in a save: the real loader finds the old state or the new one, never neither and never a mix.

The real `Checkpoints.save`, the real store and the real Run write on a recording disk (power_cut.py). Every state that the disk
may be left in after each of their operations is built and read by what a resume reads with. Once a save has returned, the new
state must be found; no folder that bears its true name may ever be found damaged; and no checkpoint may be found without
the events that led to it.

`mutations` breaks each flush and each rename of runs/durable.py in turn, found by recording, not by a list: a rename is left
out, and also done by copying. Each must make the check fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reliability.frame import Budget
from reliability.power_cut import How, RecordingDisk, Replica, Site, State, states
from tunesmith.recipe import parse_recipe
from tunesmith.runner import fingerprints
from tunesmith.runs import durable, store
from tunesmith.runs.run import Run, folder_of
from tunesmith.runs.store import Artifact
from tunesmith.stages.train.checkpoint import Checkpoint, Checkpoints, TrainState

PROMISE = "Power cut anywhere in a save: the old state or the new one, never neither, never a mix"
RECIPE = parse_recipe("{name: small, data: {sources: rows.jsonl}}", [])
HOWS: dict[str, tuple[How, ...]] = {"flush": ("left out",), "rename": ("left out", "by copying")}
WIDE, NARROW = 128, 8  # numbers in a tensor: files of three and four blocks, or of one
SAVE_AGAIN_EVERY = 25  # of so many states, one is also saved into


class PlainDisk(durable.Disk):
    """Flushes nothing: what is only read again by this process needs no disk turn."""

    def flush(self, path: Path) -> None:
        pass


@contextlib.contextmanager
def use(disk: durable.Disk) -> Iterator[None]:
    before, durable.disk = durable.disk, disk
    try:
        yield
    finally:
        durable.disk = before


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Flushes that go side by side come in one order. All others are covered: before the first of them each file may be
    whole or not."""
    before = durable.FLUSHED_AT_ONCE, store.FILES_AT_ONCE
    durable.FLUSHED_AT_ONCE = store.FILES_AT_ONCE = 1
    try:
        yield
    finally:
        durable.FLUSHED_AT_ONCE, store.FILES_AT_ONCE = before


@dataclass
class Scenario:
    """prepare: what is there, and safe, before. act: what is recorded. problem: what is wrong with a state, given whether
    `act` had returned. again: acts once more on a state and tells what is wrong afterwards."""

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    problem: Callable[[Path, bool], str | None]
    again: Callable[[Path], str | None] | None = None


@dataclass
class Recording:
    """moments: what may be on the disk after each operation. The last one is after the act had returned."""

    moments: list[Any]
    sites: set[Site]
    failure: str = ""  # the act itself raised
    files: list[str] = field(default_factory=list)


def record(scenario: Scenario, broken: Site | None = None, how: How = "left out") -> Recording:
    root = Path(tempfile.mkdtemp(prefix="power-cut-"))
    try:
        with use(PlainDisk()):
            scenario.prepare(root)
        disk = RecordingDisk(root, broken, how)
        failure = ""
        with use(disk), one_at_a_time():
            try:
                scenario.act(root)
            except Exception as error:
                if broken is None:
                    raise
                failure = repr(error)
        disk.check_complete()
        files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
        return Recording(disk.moments, disk.sites, failure, files)
    finally:
        shutil.rmtree(root)


def different_states(recording: Recording) -> Iterator[tuple[State, bool, int]]:
    """(state, whether the act had returned, moment), the latest first, because most is asked of these; each state once."""
    last, seen = len(recording.moments) - 1, set[bytes]()
    for moment in range(last, -1, -1):
        for state in states(recording.moments[moment]):
            is_done = moment == last
            key = hashlib.blake2b(repr(sorted(state.items())).encode(), digest_size=12).digest()
            if key in seen:
                continue
            seen.add(key)
            yield state, is_done, moment


def check(budget: Budget, width: int = WIDE) -> dict[str, Any]:
    per_scenario: dict[str, int] = budget.notes.setdefault("states", {})
    folder = Path(tempfile.mkdtemp(prefix="crash-states-"))
    replica = Replica(folder)
    recordings = [(scenario, record(scenario)) for scenario in all_scenarios(width)]
    budget.notes["operations"] = {scenario.name: len(recording.moments) - 1 for scenario, recording in recordings}

    def cases() -> Iterator[tuple[Scenario, State, bool, int]]:
        for scenario, recording in recordings:
            for case in different_states(recording):
                yield scenario, *case

    try:
        with use(PlainDisk()):
            for number, (scenario, state, is_done, moment) in enumerate(budget.cases(cases())):
                replica.become(state)
                found = look(scenario, folder, is_done)
                if found is None and scenario.again and number % SAVE_AGAIN_EVERY == 0:
                    found = scenario.again(folder)
                    shutil.rmtree(folder)
                    folder.mkdir()
                    replica = Replica(folder)
                per_scenario[scenario.name] = per_scenario.get(scenario.name, 0) + 1
                budget.judge(f"{scenario.name}, after operation {moment}: {told(state)}", found)
    finally:
        shutil.rmtree(folder)
    return budget.result(PROMISE)


def look(scenario: Scenario, folder: Path, is_done: bool) -> str | None:
    try:
        return scenario.problem(folder, is_done)
    except Exception as error:
        return f"reading raised {error!r}"


def told(state: State) -> str:
    return ", ".join(f"{name} {len(data)}" for name, data in sorted(state.items()) if data is not None)[:300]


def mutations() -> list[tuple[Site, How]]:
    """Each flush and each rename that the scenarios come by, to be broken in turn."""
    sites = sorted({site for scenario in all_scenarios(NARROW) for site in record(scenario).sites}, key=str)
    return [(site, how) for site in sites for how in HOWS[site.operation]]


def first_problem(site: Site, how: How) -> str | None:
    """What the check sees when this is broken; None where it sees nothing."""
    folder = Path(tempfile.mkdtemp(prefix="crash-states-"))
    replica = Replica(folder)
    try:
        for scenario in all_scenarios(NARROW)[::-1]:  # the small ones first
            recording = record(scenario, site, how)
            if recording.failure:
                return f"{scenario.name}: it fails at once, {recording.failure}"
            if site not in recording.sites:
                continue
            with use(PlainDisk()):
                for state, is_done, moment in different_states(recording):
                    replica.become(state)
                    found = look(scenario, folder, is_done)
                    if found:
                        return f"{scenario.name}, after operation {moment}: {found}"
    finally:
        shutil.rmtree(folder)
    return None


# ---------------------------------------------------------------------------------------------------------- checkpoints


def tensors(step: int, width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(width, generator=draw) for name in ("a.weight", "b.weight")}
    optimizer = {f"exp_avg.{name}": torch.randn(width * 3 // 2, generator=draw) for name in weights}
    return weights, optimizer


def training(root: Path) -> tuple[Run, Checkpoints, list[str]]:
    """The Run as a resume opens it, without the writing that goes with it; damages are told into the list."""
    run = Run(folder_of(root, RECIPE), root, 1)
    run.stage_key = "abc"
    damages: list[str] = []
    run.store.on_damage = damages.append
    return run, Checkpoints(run, keep=1), damages


def save(root: Path, step: int, width: int) -> None:
    run, checkpoints, _ = training(root)
    if not (run.path / "recipe.json").exists():
        Run.open_or_create(root, RECIPE)
    run.record_step("train", step, {"train/loss": (1.0 / step, "nats"), "train/grad_norm": (1.0, "")})
    checkpoints.save(TrainState(step=step), *tensors(step, width))


def is_step(found: Checkpoint, step: int, width: int) -> bool:
    """Bit for bit, and nothing besides."""
    weights, optimizer = tensors(step, width)
    return found.state == TrainState(step=step) and all(
        there.keys() == wanted.keys() and all(torch.equal(there[name], wanted[name]) for name in wanted)
        for there, wanted in ((found.weights, weights), (found.optimizer, optimizer))
    )


def resumed(root: Path, old: int, new: int, width: int, is_done: bool) -> str | None:
    """What a resume finds; 0 stands for nothing at all."""
    run, checkpoints, damages = training(root)
    found = checkpoints.latest()
    for other in checkpoints.steps()[:-1]:  # those that it had no need to look at
        checkpoints.load(other)
    if damages:
        return f"damage under a true name: {damages[0]}"
    step = found.state.step if found else 0
    if found and not is_step(found, step, width):
        return f"a mix: state of step {step}"
    if step != new and (is_done or step != old):
        return f"step {step} is found, {'the save of' if is_done else f'{old} or'} {new}{' had returned' if is_done else ''}"
    told = {(event.step, event.name) for event in run.events()}
    if step == new and (new, "train/loss") not in told:
        return "the checkpoint outlived the events that led to it"
    if is_done and (new, "checkpoint/saved") not in told:
        return "the save had returned, and no event tells of it"
    recipe = run.path / "recipe.json"
    if recipe.exists() and run.recipe != RECIPE:
        return "recipe.json is another one"
    return None if recipe.exists() or not is_done else "the run is gone"


def save_again(root: Path, width: int) -> str | None:
    """A resume redoes the step and saves it, whatever the cut left behind."""
    save(root, 2, width)
    found = resumed(root, 2, 2, width, True)
    left = [path.name for path in root.rglob(".t*")]
    return found or (f"{left[0]} stayed" if left else None)


def checkpoint_scenarios(width: int) -> tuple[Scenario, ...]:
    return (
        Scenario(
            "a checkpoint over an older one",
            prepare=lambda root: save(root, 1, width),
            act=lambda root: save(root, 2, width),
            problem=lambda root, is_done: resumed(root, 1, 2, width, is_done),
            again=lambda root: save_again(root, width),
        ),
        Scenario(
            "the run and its first checkpoint",
            prepare=lambda root: None,
            act=lambda root: save(root, 1, width),
            problem=lambda root, is_done: resumed(root, 0, 1, width, is_done),
        ),
    )


# -------------------------------------------------------------------------------------------------- results, small files


def begin(root: Path) -> None:
    Run.open_or_create(root, RECIPE)


def publish(root: Path) -> None:
    """As a stage does: an artifact whose files a library wrote, and the runner's note of it."""
    run, _, _ = training(root)
    with run.store.create("Adapter", "abc", producer={"stage": "train"}) as draft:
        (draft.path / "inner").mkdir()
        (draft.path / "adapter_model.safetensors").write_bytes(b"\x01" * 700)
        (draft.path / "inner" / "adapter_config.json").write_text('{"r": 4}')
    assert draft.artifact is not None
    fingerprints.remember(run.store, "key", {"stage": "train"}, {"model": draft.artifact}, 1.0)


def published(root: Path, is_done: bool, *, may_be_damaged: bool = False) -> str | None:
    run, _, damages = training(root)
    found = run.store.find("Adapter", "abc", verify="hash")
    if damages and not may_be_damaged:
        return f"damage under a true name: {damages[0]}"
    recalled = fingerprints.recall(run.store, "key")
    if is_done and (found is None or recalled is None):
        return "publishing had returned, and the artifact is not found"
    return _is_published(found) if found else None


def _is_published(artifact: Artifact) -> str | None:
    whole = (artifact.path / "adapter_model.safetensors").read_bytes() == b"\x01" * 700
    return None if whole and len(artifact.manifest["files"]) == 2 else "half an artifact"


def damage(root: Path) -> None:
    publish(root)
    for path in root.rglob("adapter_model.safetensors"):
        path.write_bytes(b"\x00" * 700)
    shutil.rmtree(root / "artifacts" / "stages")


PUBLISH = Scenario("a result", begin, publish, published)
REPLACE = Scenario(
    "a result over a damaged one",
    damage,
    publish,
    lambda root, is_done: published(root, is_done, may_be_damaged=not is_done),
)


def note_outputs(root: Path, names: Sequence[str]) -> None:
    run, _, _ = training(root)
    for name in names:
        run.set_outputs(name, {})


def begin_noting(root: Path) -> None:
    Run.open_or_create(root, RECIPE)
    note_outputs(root, ["prepare"])


def noted_outputs(root: Path, is_done: bool) -> str | None:
    path = training(root)[0].path / "outputs.json"
    found = json.loads(path.read_bytes()) if path.exists() else None
    wanted = ({"prepare": {}, "train": {}},) if is_done else ({"prepare": {}}, {"prepare": {}, "train": {}})
    return None if found in wanted else f"outputs.json holds {found}"


REWRITE = Scenario(
    "a small file of the run",
    begin_noting,
    lambda root: note_outputs(root, ["train"]),
    noted_outputs,
)


# --------------------------------------------------------------------------------------------------------------- events


def append(root: Path, steps: Sequence[int]) -> None:
    run, _, _ = training(root)
    for step in steps:
        run.record_step("train", step, {"train/loss": (1.0 / step, "nats"), "train/rate": ("x" * 300, "")})


def tell(root: Path) -> None:
    append(root, range(1, 4))
    training(root)[0].flush_events()
    append(root, range(4, 7))


def events_read(root: Path, is_done: bool) -> str | None:
    """What was flushed is there in its order; what came later is there or not; a line that is begun is no event."""
    run, _, _ = training(root)
    found = [event.step for event in run.events() if event.name == "train/loss"]
    if found != sorted(set(found)):
        return f"steps {found} are told"
    if is_done and found[:3] != [1, 2, 3]:
        return f"flushed events are gone: steps {found} are told"
    return None


def events_again(root: Path) -> str | None:
    """A resume appends to whatever the cut left."""
    run, _, _ = training(root)
    run.attempt = 2
    run.record("train", "train/resumed", 5, step=9)
    return None if 9 in [event.step for event in run.events()] else "a line after the cut is not read"


EVENTS = Scenario("events", begin, tell, events_read, events_again)


def all_scenarios(width: int) -> tuple[Scenario, ...]:
    return (*checkpoint_scenarios(width), PUBLISH, REPLACE, REWRITE, EVENTS)
