"""Your own code between two steps: what it is told, what it may answer, and how it is loaded.

A callback is named in train.callbacks as path/to/file.py:name and runs with --allow-code only. `name` is

- a class: one object of it is made, and its methods on_step, on_validation, on_save, on_end are called, those it has;
- or a function: it is called each time, and `facts.moment` says when.

on_step and on_validation may return "stop": training ends after this step as by early stopping, with a checkpoint and a
result. A class may have `state() -> JSON data` and `load_state(data)`: they travel in the checkpoints, so that a resumed
run asks as a straight one would. Of several processes the first one alone calls; the others follow its word.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import QuestionError, RecipeError

Moment = Literal["step", "validation", "save", "end"]
MOMENTS: tuple[Moment, ...] = ("step", "validation", "save", "end")
MAY_STOP = ("step", "validation")


@dataclass(frozen=True)
class Facts:
    """What a callback is told. Names stay as they are; more may come.

    moment: "step" after an update, "validation", "save" after a checkpoint is true, "end" after the result is written.
    step, num_steps: of the training. values: step: what its events say, by name without "train/"; validation: each metric;
    end: steps, result_step. is_best: these weights are the best so far. path: the checkpoint's or the result's folder.
    """

    moment: Moment
    step: int
    num_steps: int
    values: Mapping[str, float] = field(default_factory=dict)
    is_best: bool = False
    path: str | None = None


class Callbacks:
    """All callbacks of a recipe, in its order.

    Raises QuestionError TRN-050 when one was not allowed or has changed since, RecipeError TRN-051 when one is no use.
    """

    def __init__(self, names: Sequence[str], allowed_code: Mapping[str, str]) -> None:
        self._all = {name: _load(name, allowed_code) for name in names}

    def __bool__(self) -> bool:
        return bool(self._all)

    def tell(self, facts: Facts) -> str:
        """Calls all of them. Returns the name of the one that asks to stop, "" when none does.

        Raises RecipeError TRN-052 when one fails, TRN-053 when one answers what nobody understands.
        """
        stops = ""
        for name, callback in self._all.items():
            if callback.call(name, facts) == "stop":
                stops = stops or name
        return stops

    def state(self) -> dict[str, Any]:
        """What the callbacks ask to keep. Raises RecipeError TRN-054 when it is no JSON."""
        return {name: callback.state(name) for name, callback in self._all.items() if callback.has_state}

    def load_state(self, states: Mapping[str, Any]) -> None:
        for name, callback in self._all.items():
            if name in states:
                callback.load_state(name, states[name])


class _Callback:
    """One of them: a function, or an object with a method per moment."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.is_object = not isinstance(target, types.FunctionType)
        self.has_state = self.is_object and callable(getattr(target, "state", None))

    def call(self, name: str, facts: Facts) -> str | None:
        function = getattr(self.target, f"on_{facts.moment}", None) if self.is_object else self.target
        if function is None:
            return None
        answer = self._guarded(name, f"at {facts.moment} {facts.step}", function, facts)
        if answer is not None and (answer != "stop" or facts.moment not in MAY_STOP):
            raise RecipeError(
                "TRN-053",
                f"the callback {name} answered {answer!r} at {facts.moment} {facts.step}",
                where="train.callbacks",
                expected='None, or "stop" from on_step and on_validation',
                fix="mend the file; a changed file makes a new training",
            )
        return answer

    def state(self, name: str) -> Any:
        kept = self._guarded(name, "in state()", self.target.state)
        try:
            return json.loads(json.dumps(kept, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RecipeError(
                "TRN-054",
                f"the callback {name} wants to keep what JSON does not hold: {error}",
                where="train.callbacks",
                expected="numbers, texts, lists and mappings from state()",
                fix="mend the file; a changed file makes a new training",
            ) from error

    def load_state(self, name: str, state: Any) -> None:
        if callable(getattr(self.target, "load_state", None)):
            self._guarded(name, "in load_state()", self.target.load_state, state)

    def _guarded(self, name: str, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            place = inspect.trace()[-1]
            raise RecipeError(
                "TRN-052",
                f"the callback {name} failed {where}: {type(error).__name__}: {error} (line {place.lineno} of {Path(place.filename).name})",
                where="train.callbacks",
                expected="a callback that returns",
                fix="the step before is saved: if the cause lies outside of the file, the same command goes on; a changed file makes a new training",
            ) from error


def _load(name: str, allowed_code: Mapping[str, str]) -> _Callback:
    """The bytes that run are the bytes that were allowed."""
    path, _, target = name.rpartition(":")
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise _unusable(name, f"{path or name} cannot be read: {error.strerror}", "path/to/file.py:name") from error
    digest = hashlib.sha256(source).hexdigest()
    if allowed_code.get(name) != digest:
        raise QuestionError(
            "TRN-050",
            f"train.callbacks names Python code that {'changed since it was allowed' if name in allowed_code else 'would run'}: "
            f"{name} (sha256 {digest[:12]}...)",
            where="train.callbacks",
            expected="your consent, because a callback can do all that you can do",
            fix="read the file, then run the same command with --allow-code",
        )
    module = types.ModuleType(Path(path).stem)
    module.__file__ = path
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        found = getattr(module, target, None)
        made = found() if isinstance(found, type) else found
    except Exception as error:
        raise _unusable(name, f"{path} fails when it is loaded: {error!r}", "a file that loads") from error
    if made is None:
        raise _unusable(name, f"{path} has no {target!r}", "the name of a class or a function")
    if isinstance(made, types.FunctionType) or any(callable(getattr(made, f"on_{moment}", None)) for moment in MOMENTS):
        return _Callback(made)
    raise _unusable(name, f"{target} is neither a function nor has it a method to call", "on_step, on_validation, ...")


def _unusable(name: str, what: str, expected: str) -> RecipeError:
    return RecipeError(
        "TRN-051", what, where="train.callbacks", expected=expected, fix=f"mend the file or the entry {name!r}"
    )
