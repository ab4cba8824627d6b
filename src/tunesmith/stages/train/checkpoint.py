"""Checkpoints: artifacts that become true by renaming. Latest = the highest step whose manifest verifies."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.runs import durable
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact


@dataclass
class TrainState:
    """Everything a resume needs besides tensors. Order, dropout and rates follow from (seed, step) and are not here."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    skipped: list[int] = field(default_factory=list)
    micro_batch: int | None = None
    gradient_checkpointing: bool | None = None
    attention: str = ""
    precision: str = ""
    threads: int = 0
    stopped_early: bool = False


@dataclass(frozen=True)
class Checkpoint:
    state: TrainState
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one training, in the store as `<stage_key>-step-00000012`."""

    def __init__(self, run: Run, keep: int) -> None:
        self.run = run
        self.prefix = f"{run.stage_key}-step-"
        self.keep = keep

    def save(self, state: TrainState, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Artifact:
        """Write, verify, publish; only then remove old ones. Raises ModelError TRN-001 rather than save a NaN."""
        _refuse_non_finite(weights, state.step)
        with self.run.store.create(
            "Checkpoint",
            f"{self.prefix}{state.step:08d}",
            producer={"stage": "train", "key": self.run.stage_key, "step": state.step},
        ) as draft:
            save_file(weights, draft.path / "model.safetensors")
            save_file(optimizer, draft.path / "optimizer.safetensors")
            (draft.path / "state.json").write_text(json.dumps(asdict(state), indent=1))
        self._remove_old(state)
        assert draft.artifact is not None
        self.run.record("train", "checkpoint/saved", state.step, step=state.step, unit="step")
        return draft.artifact

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are named in an event and passed over."""
        for step in reversed(self.steps()):
            found = self.load(step)
            if found is not None:
                return found
        return None

    def load(self, step: int) -> Checkpoint | None:
        """One checkpoint, every hash checked; None when it is gone or damaged."""
        artifact = self.run.store.find("Checkpoint", f"{self.prefix}{step:08d}", verify="hash")
        if artifact is None:
            return None
        state = TrainState(**json.loads((artifact.path / "state.json").read_bytes()))
        return Checkpoint(
            state, load_file(artifact.path / "model.safetensors"), load_file(artifact.path / "optimizer.safetensors")
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending."""
        root = self.run.store.root / "checkpoint"
        names = [path.name for path in root.glob(f"{self.prefix}*")] if root.is_dir() else []
        return sorted(int(name.rsplit("-", 1)[1]) for name in names if re.fullmatch(r"\d{8}", name.rsplit("-", 1)[1]))

    def _remove_old(self, state: TrainState) -> None:
        newest = self.steps()[-self.keep :]
        for step in self.steps():
            if step not in newest and step != state.best_step:
                durable.remove_folder(self._folder(step))

    def _folder(self, step: int) -> Path:
        return self.run.store.folder("Checkpoint", f"{self.prefix}{step:08d}")


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
