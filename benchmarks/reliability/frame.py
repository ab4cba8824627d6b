"""How far a harness goes, what it has judged, and how it is taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

Case = TypeVar("Case")
KEPT_FAILURES = 20
SAVE_EVERY_S = 5.0


@dataclass
class Budget:
    """seconds: when to stop, counted from the making. every: one case in so many. earlier: what a call before returned,
    or its `save` was told. save: is told how far it came, every few seconds."""

    seconds: float = float("inf")
    every: int = 1
    earlier: dict[str, Any] = field(default_factory=dict)
    save: Callable[[dict[str, Any]], None] = lambda state: None

    def __post_init__(self) -> None:
        self.started = self._saved = time.monotonic()
        self.position: int = self.earlier.get("position", 0)  # cases that are done, judged or passed over
        self.tried: int = self.earlier.get("tried", 0)
        self.held: int = self.earlier.get("held", 0)
        self.failures: list[dict[str, str]] = list(self.earlier.get("failures", ()))
        self.skipped: dict[str, str] = dict(self.earlier.get("skipped", {}))
        self.notes: dict[str, Any] = dict(self.earlier.get("notes", {}))  # a module's own sums, kept over calls
        self.finished = False

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.started > self.seconds

    def cases(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Those that are still to be done, until the time is up. Judge each as often as it has something to judge."""
        for number, case in enumerate(cases):
            if number < self.position:
                continue
            if self.is_over:
                return
            if number % self.every == 0:
                yield case
            self.position = number + 1
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self._saved = time.monotonic()
                self.save(self.state())
        self.finished = True

    def judge(self, name: str, problem: str | None) -> None:
        """One case, or one of several looks at it: None where the promise held, else what was seen instead."""
        self.tried += 1
        self.held += problem is None
        if problem is not None and len(self.failures) < KEPT_FAILURES:
            self.failures.append({"case": name, "seen": problem})

    def skip(self, name: str, why: str) -> None:
        """What cannot be tried on this machine."""
        self.skipped[name] = why

    def state(self) -> dict[str, Any]:
        seconds = self.earlier.get("seconds", 0.0) + time.monotonic() - self.started
        return {
            "tried": self.tried,
            "held": self.held,
            "seconds": round(seconds, 1),
            "failures": self.failures,
            "skipped": self.skipped,
            "finished": self.finished,
            "position": self.position,
            "notes": self.notes,
        }

    def result(self, promise: str, **more: Any) -> dict[str, Any]:
        """What `check` returns; give it back as `earlier` to go on."""
        return {"promise": promise, **self.state(), **more}
