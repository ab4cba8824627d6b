"""A Run: one folder per resolved recipe that tells what was asked, planned and done. Artifacts lie in the store.

Its files:
    recipe.json  plan.json  environment.json  parent.json  base_model.json  allowed_code.json  outputs.json
    events.jsonl  report.html  report.json  run.lock
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunesmith.errors import FileError, InterruptedRun, StoppedError, TrialPruned, UsageError
from tunesmith.runs import durable
from tunesmith.runs.events import Event, read_events, read_lines
from tunesmith.runs.patience import patiently
from tunesmith.runs.store import Artifact, Store

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

Listener = Callable[[Event], None]
IS_BUSY = "RUN-010"  # the code of the error that another process works on the Run


class Run:
    """What happened to one resolved recipe.

    attempt:    counts the commands that worked on it, from 1; of a step told twice the last attempt counts.
    stage_key:  set by the runner before each stage: the hash of all that decides its outcome, and the default id of
                what it makes.
    listeners:  called with each event; one that fails is dropped with a warning.
    is_writer:  False in all but the first of several training processes: `record` and the like then do nothing.
    """

    def __init__(self, path: Path, workspace: Path, attempt: int) -> None:
        self.path = Path(path)
        self.id = self.path.name
        self.workspace = Path(workspace)
        self.attempt = attempt
        self.store = Store(self.workspace / "artifacts")
        self.store.on_damage = self._tell_damage
        self.store.before_publish = self.flush_events
        self.stage_key = ""
        self.listeners: list[Listener] = []
        self.is_writer = True
        self._is_named = False  # events.jsonl, in its folder, safely
        self.is_patient = False  # whether a full disk is waited for, see patience.py
        self.stop_signal: int | None = None  # the signal that asked to stop
        self.stop_reason: StoppedError | None = None  # a reason of our own to stop

    def __repr__(self) -> str:
        return f"Run({self.id!r}, attempt {self.attempt})"

    # ------------------------------------------------------------------------------------------ making and opening

    @classmethod
    def open_or_create(cls, workspace: Path, recipe: Recipe, parent: Run | None = None) -> Run:
        """The Run of this recipe in this workspace: the same resolved recipe goes on in the same one, as a new attempt;
        a changed one makes a new Run that names its parent (default: the last one of its name) and what differs."""
        workspace = Path(workspace)
        path = folder_of(workspace, recipe)
        if (path / "recipe.json").exists():
            run = cls(path, workspace, _last_attempt(path) + 1)
            run.__dict__["recipe"] = recipe  # it knows where its values came from; the stored one may not
            return run
        run = cls(path, workspace, 1)
        durable.make_folders(path)
        if parent and parent.base_model and _same_base(parent.recipe, recipe):  # a branch may move between two trials
            durable.write_json(path / "base_model.json", parent.base_model)
        came_from = _child_of(parent, recipe) if parent else _parent(workspace, recipe)
        if came_from:
            durable.write_json(path / "parent.json", came_from)
        durable.write_json(path / "recipe.json", recipe.model_dump(mode="json"))  # last: with it the Run is there
        run.__dict__["recipe"] = recipe
        return run

    @classmethod
    def open(cls, path_or_id: Path | str, workspace: Path | None = None) -> Run:
        """An existing Run by its folder, its id, the unambiguous start of its id, or "latest".

        Of several that begin so, those that finished no stage (their recipe or rows were refused) are passed over.
        Raises UsageError RUN-008 when there is none or more than one.
        """
        path = Path(path_or_id)
        if (path / "recipe.json").is_file():
            path = path.resolve()
            return cls(path, path.parents[1], max(1, _last_attempt(path)))
        workspace = Path(workspace or ".")
        known = [run.id for run in list_runs(workspace)]
        name = str(path_or_id)
        found = [id for id in known if id.startswith(name)]
        if name in known or name == "latest":
            found = known[-1:] if name == "latest" else [name]
        if len(found) > 1:
            found = [id for id in found if (workspace / "runs" / id / "outputs.json").exists()] or found
        if len(found) != 1:
            what = f"{len(found)} runs begin with {name!r}" if found else f"there is no run {name!r} in {workspace}"
            fix = f"one of: {', '.join((found or known)[-8:])}" if known else "tunesmith run RECIPE makes one"
            if not (workspace / "runs").is_dir():
                what = f"there is no run {name!r}: {workspace.absolute()} is no workspace"
                fix = "go to the folder where `tunesmith run` was called, or name its workspace with --workspace"
            raise UsageError(
                "RUN-008", what, expected="a run's folder, its id, the start of its id, or latest", fix=fix
            )
        path = workspace / "runs" / found[0]
        return cls(path, workspace, max(1, _last_attempt(path)))

    @cached_property
    def recipe(self) -> Recipe:
        from tunesmith.recipe import Recipe

        content = self._read("recipe.json")
        try:
            return Recipe.model_validate(content)
        except ValueError as error:
            raise _unreadable(
                self.path, "recipe.json", f"{type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error

    @property
    def pinned_recipe(self) -> Recipe:
        """The recipe as stages get it: model.revision is the commit that the first attempt found on the hub."""
        pin = self.base_model
        if pin is None:
            return self.recipe
        model = self.recipe.model.model_copy(update={"revision": pin["commit"]})
        return self.recipe.model_copy(update={"model": model})

    @property
    def base_model(self) -> dict[str, Any] | None:
        """{"base", "revision" as asked, "commit"} of a base from the hub; None for folders and before the first attempt."""
        return self._read("base_model.json")

    def pin_base_model(self, base: str, revision: str | None, commit: str) -> None:
        self._write("base_model.json", {"base": base, "revision": revision, "commit": commit})

    @property
    def parent(self) -> dict[str, Any] | None:
        """{"run": id, "changed": {key: [old, new]}}, or None for the first of its name."""
        return self._read("parent.json")

    @property
    def last_active(self) -> float:
        """Seconds since 1970 of the last event, or of the making."""
        paths = (self.path / "events.jsonl", self.path / "recipe.json")
        return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)

    # -------------------------------------------------------------------------------------------------- its files

    @property
    def plan(self) -> dict[str, Any] | None:
        return self._read("plan.json")

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        self._write("plan.json", dict(plan))

    @property
    def environment(self) -> dict[str, Any] | None:
        return self._read("environment.json")

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        self._write("environment.json", dict(environment))

    @property
    def allowed_code(self) -> dict[str, str]:
        """Python code that the user allowed in this attempt: "file.py:function" -> sha256 of the file."""
        return self._read("allowed_code.json") or {}

    @allowed_code.setter
    def allowed_code(self, code: Mapping[str, str]) -> None:
        if dict(code) != self.allowed_code:
            self._write("allowed_code.json", dict(code))

    def outputs(self, stage: str) -> dict[str, Artifact] | None:
        """What the stage made, by name; None when it has not finished or something of it is gone or damaged."""
        told = self._read("outputs.json") or {}
        names = told.get(stage) if isinstance(told, dict) else 0
        if names is None:
            return None
        entries = names.values() if isinstance(names, dict) else [None]
        if not all(isinstance(entry, dict) and Store.is_name(entry.get("kind"), entry.get("id")) for entry in entries):
            raise _unreadable(self.path, "outputs.json", f"it names no artifacts for {stage}")
        found = {name: self.store.find(entry["kind"], entry["id"]) for name, entry in names.items()}
        return found if all(found.values()) else None  # type: ignore[return-value]

    def set_outputs(self, stage: str, outputs: Mapping[str, Artifact]) -> None:
        stages = self._read("outputs.json") or {}
        entry = {name: {"kind": artifact.kind, "id": artifact.id} for name, artifact in outputs.items()}
        if stages.get(stage) != entry:
            self._write("outputs.json", {**stages, stage: entry})

    def _read(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise _unreadable(self.path, name, str(error)) from error

    def _write(self, name: str, obj: Any) -> None:
        if self.is_writer:
            durable.write_json(self.path / name, obj)

    # ----------------------------------------------------------------------------------------------------- events

    def record(self, stage: str, name: str, value: Any, *, step: int | None = None, unit: str = "") -> None:
        """Appends an event and tells the listeners. Does nothing in a process that is not the writer."""
        if not self.is_writer:
            return
        event = self.event(stage, name, value, step=step, unit=unit)
        self._append(event.to_line())
        self.tell(event)

    def event(self, stage: str, name: str, value: Any, *, step: int | None = None, unit: str = "") -> Event:
        """One of this attempt and moment, not yet told to anybody."""
        return Event(time.time(), self.attempt, stage, step, name, value, unit)

    def _append(self, lines: str) -> None:
        patiently(self, lambda: durable.append_line(self.path / "events.jsonl", lines), needed=len(lines))

    def record_step(self, stage: str, step: int, values: Mapping[str, tuple[Any, str]]) -> None:
        """As `record` for several values of one step, {name: (value, unit)}: one write for all of them."""
        if not self.is_writer or not values:
            return
        now = time.time()
        events = [Event(now, self.attempt, stage, step, name, *told) for name, told in values.items()]
        self._append("\n".join(event.to_line() for event in events))
        for event in events:
            self.tell(event)

    def tell(self, event: Event) -> None:
        """Hands an event that is written already to the listeners."""
        for listener in list(self.listeners):
            try:
                listener(event)
            except Exception as error:  # a tracker that is down must not cost the run
                self.listeners.remove(listener)
                told = getattr(listener, "__name__", type(listener).__name__)
                print(f"tunesmith: tracker {told} failed and is left out from here on: {error!r}", file=sys.stderr)

    def events(self) -> list[Event]:
        return read_events(self.path / "events.jsonl")

    def flush_events(self) -> None:
        """Waits until all events are on the disk, so that no artifact outlives the events that led to it."""
        path = self.path / "events.jsonl"
        if self.is_writer and path.exists():
            durable.flush_file(path)
            if not self._is_named:  # a power cut may take the name of a new file, and with it the whole of it
                durable.flush_file(self.path)
                self._is_named = True

    def _tell_damage(self, message: str) -> None:
        if (self.path / "events.jsonl").exists():  # a Run that is only looked at is left as it is
            self.record("store", "artifact/damaged", message)

    # --------------------------------------------------------------------------------------------- lock and leaving

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time. Raises StoppedError RUN-010 naming the process that holds the Run."""
        path = self.path / "run.lock"
        with durable.explain(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "unknown"
                raise StoppedError(
                    "RUN-010",
                    f"run {self.id} is being worked on by process {holder}",
                    expected="one process per run",
                    fix="wait until it has finished, or stop it with Ctrl-C or kill; then run the same command again",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    @property
    def stopping(self) -> bool:
        """True after Ctrl-C, SIGTERM or `stop_for`: finish the step, save, and call `leave`."""
        return self.stop_signal is not None or self.stop_reason is not None

    @property
    def is_given_up(self) -> bool:
        """True where stopping needs no saving, as nobody will go on from here."""
        return self.stop_signal is None and isinstance(self.stop_reason, TrialPruned)

    def stop(self, signum: int) -> None:
        """Asks the stage at work to save and leave. Only sets a flag, so that a signal handler may call it."""
        self.stop_signal = signum

    def stop_for(self, reason: StoppedError) -> None:
        """As `stop`, for a reason of our own, which `leave` raises; a signal comes before it."""
        self.stop_reason = reason

    def leave(self, where: str) -> NoReturn:
        """Ends the attempt after a stop was asked for. Raises InterruptedRun (exit status 130, 143) or the reason."""
        if self.stop_signal is None and self.stop_reason is not None:
            raise self.stop_reason
        signum = self.stop_signal or signal.SIGTERM
        raise InterruptedRun(
            signum,
            f"stopped by {signal.Signals(signum).name} {where}; everything finished is saved",
            fix="run the same command again: it goes on from there",
        )


def _unreadable(folder: Path, name: str, why: str) -> FileError:
    return FileError(
        "RUN-009",
        f"{folder / name} cannot be read: {why}",
        expected="JSON as tunesmith wrote it",
        fix=f"if you edited it, put it back; else remove {folder} (artifacts stay) and run the recipe again",
    )


def folder_of(workspace: Path, recipe: Recipe) -> Path:
    """Where the Run of a recipe lies, or will lie."""
    return Path(workspace) / "runs" / f"{recipe.name}-{recipe.hash()[:8]}"


def list_runs(workspace: Path) -> list[Run]:
    """All Runs of a workspace, the most recently active last."""
    folders = [path.parent for path in (Path(workspace) / "runs").glob("*/recipe.json")]
    runs = [Run(path, Path(workspace), max(1, _last_attempt(path))) for path in folders]
    return sorted(runs, key=lambda run: (run.last_active, run.id))


def _last_attempt(path: Path) -> int:
    return max((event.attempt for event in read_lines(path / "events.jsonl")), default=0)


def _same_base(one: Recipe, other: Recipe) -> bool:
    return (one.model.base, one.model.revision) == (other.model.base, other.model.revision)


def _child_of(parent: Run, recipe: Recipe) -> dict[str, Any]:
    from tunesmith.recipe import difference

    return {
        "run": parent.id,
        "changed": {key: list(values) for key, values in difference(parent.recipe, recipe).items()},
    }


def _parent(workspace: Path, recipe: Recipe) -> dict[str, Any] | None:
    for run in reversed(list_runs(workspace)):
        try:
            if run.recipe.name == recipe.name:
                return _child_of(run, recipe)
        except (ValueError, FileError):  # a recipe of another version: it has keys this one does not know
            continue
    return None
