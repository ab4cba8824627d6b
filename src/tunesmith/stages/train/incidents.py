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
        """Those of the training that the Run's stage key names, and of those it went on from."""
        went_on_from = [went_on["checkpoint"]["key"] for went_on in run.continued if went_on["checkpoint"]]
        paths = [run.store.folder(KIND, f"{key}/step-00000000").parent / FILE for key in (*went_on_from, run.stage_key)]
        told = [json.loads(path.read_bytes()) for path in paths if path.exists()]
        skipped = sorted({step for one in told for step in one["skipped"]})
        sizes = [one["micro_batch"] for one in told if one["micro_batch"]]
        return cls(paths[-1], skipped, min(sizes, default=None), run.is_writer)

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
