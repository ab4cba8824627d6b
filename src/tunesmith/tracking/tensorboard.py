"""TensorBoard: event files, written through tensorboard's own writer; neither torch nor TensorFlow is needed.

Each session writes one new file from the first step on and then removes the ones before, so that any reader finds each
step once, with the last attempt's values.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.tracking.facts import Point, RunFacts, Summary, flat

SUFFIX = ".tunesmith"


def make(recipe: Recipe) -> TensorBoard:
    return TensorBoard(recipe)


class TensorBoard:
    holds_last_step = False

    def __init__(self, recipe: Recipe) -> None:
        self.settings = recipe.track.tensorboard
        self.writer: Any = None

    def open(self, facts: RunFacts) -> str:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.close_writer()
        base = Path(self.settings.folder) / facts.id if self.settings.folder else facts.folder / "tensorboard"
        self.old = sorted(base.glob(f"events.out.tfevents.*{SUFFIX}"))
        if self.old:
            _wait_for_a_later_name(self.old[-1])
        self.writer = EventFileWriter(str(base), filename_suffix=SUFFIX)
        self._restart()
        self._text("recipe", _table(flat(facts.config)))
        return f"tensorboard --logdir {base.parent if self.settings.folder else facts.workspace / 'runs'}"

    def told(self, names: set[str]) -> Callable[[Point], bool]:
        """Nothing: the file is new."""
        return lambda found: False

    def log(self, points: list[Point]) -> None:
        for found in points:
            self._scalar(found)
        self.writer.flush()
        self._remove_old()

    def close(self, summary: Summary) -> None:
        now = time.time()
        for name, value in summary.numbers.items():
            self._scalar(Point(name, summary.step, value, now))
        for name, document in summary.documents.items():
            self._text(name, f"```\n{json.dumps(document, indent=1)}\n```")
        for name, text in {**summary.texts, "end": summary.end}.items():
            self._text(name, text)
        self.writer.flush()
        self._remove_old()
        self.close_writer()

    def close_writer(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            with contextlib.suppress(OSError):  # what it could not write it says once more
                writer.close()

    def _restart(self) -> None:
        """A viewer that has read the old file forgets it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    def _scalar(self, found: Point) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary as Values

        values = Values(value=[Values.Value(tag=found.name, simple_value=found.value)])
        self.writer.add_event(Event(wall_time=found.time, step=found.step, summary=values))

    def _text(self, name: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary as Values
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
        metadata = create_summary_metadata(display_name=name, description="")
        values = Values(value=[Values.Value(tag=f"{name}/text_summary", metadata=metadata, tensor=tensor)])
        self.writer.add_event(Event(wall_time=time.time(), step=0, summary=values))

    def _remove_old(self) -> None:
        """Only now: as long as the new file is not on the disk the old one is what there is."""
        for path in self.old:
            path.unlink(missing_ok=True)
        self.old = []


def _wait_for_a_later_name(path: Path) -> None:
    """Readers take files in the order of their names, which begin with the second they were made in."""
    second = int(path.name.split(".")[3])
    while time.time() < second + 1:
        time.sleep(0.05)


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in values.items())
    return f"| key | value |\n|---|---|\n{rows}"
