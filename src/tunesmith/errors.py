"""One error family: what happened, what was expected, what to do next, and the exit status.

    TunesmithError
    |- UsageError        2    the command line is off
    |- RecipeError      64    the recipe is off; carries every problem found, not the first one
    |- DataError        65    the rows are off
    |- QuestionError    65    a choice that only the user can make; names the key that answers it
    |- ModelError       66    the model, its weights or its tokenizer are off
    |- FileError        74    files, disk, permissions
    |- StoppedError     75    we stopped on purpose; the same command goes on
    |   '- TrialPruned         a search gave this run up; no failure, and nothing of it is saved
    |- GateError         3    the gate says: do not ship
    '- InterruptedRun  130/143  Ctrl-C or SIGTERM, after saving

Anything else that escapes is a bug of ours: it keeps its traceback and exits 70.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

EXIT_BUG = 70


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the words the user sees.

    code: stable name such as RCP-014. where: key path, or file:line:column. what: what happened, with the value.
    expected: what would have been right. fix: the next move.
    """

    code: str
    where: str
    what: str
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        parts = [f"{self.code} {self.where}: {self.what}" if self.where else f"{self.code} {self.what}"]
        if self.expected:
            parts.append(f"  expected: {self.expected}")
        if self.fix:
            parts.append(f"  try: {self.fix}")
        return "\n".join(parts)

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class TunesmithError(Exception):
    """A mistake the user can mend. Shown without a traceback; the process leaves with `exit_status`."""

    exit_status = EXIT_BUG

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        fix: str = "",
        problems: Sequence[Problem] = (),
    ) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(code, where, what, expected, fix),)
        self.code = code
        self.headline = what
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if len(self.problems) > 1:
            lines.insert(0, f"{self.headline} ({len(self.problems)} problems)")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # By default an exception is made again from its text alone: a worker's error must arrive whole.
        return _revive, (type(self), self.args, self.__dict__)

    def to_json(self) -> dict[str, object]:
        return {
            "error": self.code,
            "exit_status": self.exit_status,
            "what": self.headline,
            "problems": [problem.to_json() for problem in self.problems],
        }


def _revive(kind: type[TunesmithError], args: tuple[object, ...], state: dict[str, object]) -> TunesmithError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(TunesmithError):
    exit_status = 2


class RecipeError(TunesmithError):
    exit_status = 64


class DataError(TunesmithError):
    exit_status = 65


class QuestionError(TunesmithError):
    """A question only the user can answer; `fix` names the key or flag that answers it."""

    exit_status = 65


class ModelError(TunesmithError):
    exit_status = 66


class FileError(TunesmithError):
    exit_status = 74


class StoppedError(TunesmithError):
    exit_status = 75


class TrialPruned(StoppedError):
    """A search gave this trial up because others are better at the same share of their steps."""


class GateError(TunesmithError):
    """run_folder: of the run whose model was held, where the caller may want to tell more of it."""

    exit_status = 3

    def __init__(self, code: str, what: str, *, run_folder: str = "", **details: str) -> None:
        self.run_folder = run_folder
        super().__init__(code, what, **details)


class InterruptedRun(TunesmithError):
    """Ctrl-C (130) or SIGTERM (143), raised after everything worth keeping was saved."""

    def __init__(self, signum: int, what: str, **details: str) -> None:
        self.exit_status = 128 + signum
        super().__init__("RUN-001", what, **details)


@dataclass
class Findings:
    """What a look found without stopping at the first mistake.

    problems: each must be mended. warnings: each may be meant. facts: what is fine, for people to read.
    exit_status: of the first problem; 0 without one.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    exit_status: int = 0

    def add(self, error: TunesmithError) -> None:
        self.problems += error.problems
        self.exit_status = self.exit_status or error.exit_status

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Within the block a mistake is noted instead of raised; the block ends there."""
        try:
            yield
        except TunesmithError as error:
            self.add(error)

    def to_json(self) -> dict[str, object]:
        return {"ok": not self.problems, **asdict(self)}
