"""What a training has met and must not meet again, whichever checkpoint it goes on from. Light: the launcher adds to it.

It lies beside the checkpoints, in artifacts/checkpoint/<stage key>/incidents.json: a checkpoint knows of nothing that came
after it, and a kill, a fallback to an older checkpoint or a launcher's restart would walk into the same wall.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.runs import durable
from tunesmith.runs.run import Run

KIND = "Checkpoint"
FILE = "incidents.json"


@dataclass
class Incidents:
    """skipped: steps whose rows gave nothing finite, twice. micro_batch: what memory took since, None where all fitted."""

    path: Path
    skipped: list[int] = field(default_factory=list)
    micro_batch: int | None = None
    is_writer: bool = True

    @classmethod
    def of(cls, run: Run) -> Incidents:
        """Those of the training that the Run's stage key names."""
        path = run.store.folder(KIND, f"{run.stage_key}/step-00000000").parent / FILE
        try:
            told = json.loads(path.read_bytes())
        except FileNotFoundError:
            told = {}
        return cls(path, told.get("skipped", []), told.get("micro_batch"), run.is_writer)

    def skip(self, step: int) -> None:
        """From now on this step is passed over."""
        if step not in self.skipped:
            self.skipped.append(step)
            self._write()

    def reduce(self, micro_batch: int) -> None:
        """From now on no more examples than this go through the model at once."""
        self.micro_batch = min(micro_batch, self.micro_batch or micro_batch)
        self._write()

    def _write(self) -> None:
        if self.is_writer:  # of several processes the first one; all of them know
            durable.make_folders(self.path.parent)
            durable.write_json(self.path, {"skipped": sorted(self.skipped), "micro_batch": self.micro_batch})
