"""Checkpoints: artifacts that become true by renaming. Latest = the highest step whose manifest verifies."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import FileError, ModelError
from tunesmith.runs import durable
from tunesmith.runs.patience import patiently
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.stages.train.schedule import PlateauState

KIND = "Checkpoint"
STEP_FOLDER = re.compile(r"step-(\d{8})")


@dataclass
class TrainState:
    """Everything a resume needs besides tensors. Order, dropout and rates follow from (seed, step) and are not here.

    best_value: of train.best_metric; best_loss: the validation loss at that step. patience_value: of what early stopping
    watches. stopped_by: the key or the callback that ended training early. callbacks: what each of them asked to keep, by
    its name in the recipe. noise: running means of the gradient noise. validations: [step, loss] of each, null for a loss
    that is not finite. skipped: steps whose update was withheld. micro_batch to threads: what was chosen at the start and
    is not chosen anew. attention_ms: of each implementation that was timed for it.
    """

    step: int = 0
    tokens: int = 0
    validated_step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    patience_value: float | None = None
    evaluations_without_gain: int = 0
    stopped_by: str = ""
    validations: list[list[float | None]] = field(default_factory=list)
    plateau: PlateauState = field(default_factory=PlateauState)
    callbacks: dict[str, Any] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    micro_batch: int | None = None
    gradient_checkpointing: bool | None = None
    precision: str = ""
    attention: str = ""
    attention_ms: dict[str, float] = field(default_factory=dict)
    kernels: str = ""
    layout: str = ""
    threads: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.plateau, dict):  # as read from state.json
            self.plateau = PlateauState(**self.plateau)


@dataclass(frozen=True)
class Checkpoint:
    """weights: trainable weights by their full names. optimizer: the engine's state by "<slot>.<full name>"."""

    state: TrainState
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one training: artifacts/checkpoint/<stage key>/step-00000012/."""

    def __init__(self, run: Run, keep: int) -> None:
        self.run, self.keep = run, keep
        self.folder = run.store.folder(KIND, f"{run.stage_key}/step-00000000").parent

    def save(self, state: TrainState, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Artifact:
        """Write, flush, read back, publish; only then remove old ones.

        A full disk is waited for (runs/patience.py). Raises ModelError TRN-001 rather than save a NaN; StoppedError or FileError
        when waiting did not help (older ones stay).
        """
        _refuse_non_finite(weights, state.step)
        needed = _num_bytes(weights) + _num_bytes(optimizer)
        return patiently(self.run, lambda: self._save(state, weights, optimizer), needed=needed)

    def _save(self, state: TrainState, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Artifact:
        """May be called again after it has failed anywhere: what is true already stays."""
        durable.require_room(
            self.run.store.folder(KIND, self._id(state.step)), _num_bytes(weights) + _num_bytes(optimizer)
        )
        producer = {"stage": "train", "key": self.run.stage_key, "step": state.step}
        with self.run.store.create(KIND, self._id(state.step), producer=producer) as draft:
            _write_tensors(draft.path / "model.safetensors", weights)
            _write_tensors(draft.path / "optimizer.safetensors", optimizer)
            durable.write_json(draft.path / "state.json", asdict(state))
        assert draft.artifact is not None
        self.run.record("train", "checkpoint/saved", state.step, step=state.step, unit="step")
        self.run.flush_events()  # what the checkpoint has behind it must not be told again
        self._remove_old(state.best_step)
        return draft.artifact

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are named in an event and passed over. None before the first.

        Raises FileError TRN-008 when there are checkpoints and none of them verifies: to begin anew is for the user to say.
        """
        steps = self.steps()
        for step in reversed(steps):
            found = self.load(step)
            if found is not None:
                return found
        if not steps:
            return None
        raise FileError(
            "TRN-008",
            f"none of the {len(steps)} checkpoints in {self.folder} is sound: {'; '.join(self._damages(steps))}",
            expected="one whose files are those that its manifest lists, byte for byte; nothing was deleted",
            fix=f"bring one back from a copy; or remove {self.folder}, and the same command trains from the beginning",
        )

    def _damages(self, steps: list[int]) -> list[str]:
        """What is wrong with each, the newest first."""
        told: list[str] = []
        before, self.run.store.on_damage = self.run.store.on_damage, told.append
        try:
            for step in reversed(steps):
                self.load(step)
        finally:
            self.run.store.on_damage = before
        return told

    def load(self, step: int) -> Checkpoint | None:
        """One checkpoint, every hash checked; None when it is gone or damaged (an event says so)."""
        artifact = self.run.store.find(KIND, self._id(step), verify="hash")
        if artifact is None:
            return None
        try:
            state = TrainState(**json.loads((artifact.path / "state.json").read_bytes()))
            weights = load_file(artifact.path / "model.safetensors")
            optimizer = load_file(artifact.path / "optimizer.safetensors")
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
            SafetensorError,
        ) as error:  # hashed as it is, and no checkpoint
            self.run.store.on_damage(f"{artifact.path} is no checkpoint: {error}")
            return None
        return Checkpoint(state, weights, optimizer)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, sound or not, ascending."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := STEP_FOLDER.fullmatch(name)))

    def _remove_old(self, best_step: int | None) -> None:
        """All but the best and the newest `keep`; one with a missing or cut file does not count among these."""
        newest_first = self.steps()[::-1]
        num_sound = 0
        for step in newest_first:
            if num_sound < self.keep:
                num_sound += self.run.store.find(KIND, self._id(step), verify="size") is not None
            elif step != best_step:
                durable.remove_folder(self.run.store.folder(KIND, self._id(step)))

    def _id(self, step: int) -> str:
        return f"{self.run.stage_key}/step-{step:08d}"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Into a draft folder: flushing, hashing and reading back are the store's. Raises FileError naming space."""
    with durable.explain(path, needed=_num_bytes(tensors)):
        try:
            durable.disk.fill(path, lambda path: save_file(tensors, path))
        except SafetensorError as error:  # wraps what the operating system said: "... (os error 28)"
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def _num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _refuse_non_finite(weights: dict[str, Tensor], step: int) -> None:
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelError(
            "TRN-001",
            f"step {step}: {bad[0]} holds a value that is not finite; no checkpoint is written",
            where="train",
            expected="finite weights",
            fix="lower train.learning_rate; the checkpoint before is still good",
        )
