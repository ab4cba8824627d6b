"""The stages in their order, and how one is loaded: first its small INFO, its work only when it has to work."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.runs import durable
from tunesmith.runs.run import Run
from tunesmith.runs.stage import StageInfo
from tunesmith.runs.store import Artifact

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

STAGES: Mapping[str, str] = {
    "prepare": "tunesmith.stages.prepare",
    "train": "tunesmith.stages.train",
    "evaluate": "tunesmith.stages.evaluate",
    "export": "tunesmith.stages.export",
    "serve": "tunesmith.stages.serve",
}


@dataclass(frozen=True)
class Stage:
    """A stage of the table: its INFO, and the module below which its `run` lies."""

    info: StageInfo
    package: str

    def run(self, spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
        with durable.explain_trouble(run.workspace), _answering_panics(self.info.name):
            return importlib.import_module(f"{self.package}.run").run(spec, inputs, run)

    def externals(self, spec: Recipe, run: Run | None) -> dict[str, Any]:
        """Hashes of what lies outside of the recipe; {} where the stage reads nothing there."""
        if self.info.externals is None:
            return {}
        function: Callable[[Recipe, Run | None], dict[str, Any]] = _function(self.info.externals)
        return function(spec, run)

    def check(self, spec: Recipe) -> None:
        """Raises TunesmithError for what this stage cannot do on this machine."""
        if self.info.checks is not None:
            _function(self.info.checks)(spec)


@contextlib.contextmanager
def _answering_panics(stage: str) -> Iterator[None]:
    """A panic of a library in Rust (tokenizers, daft) passes every `except Exception`: here it becomes an answer."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3 offers no class to import
            raise
        raise DataError(
            "RUN-024",
            f"a library gave up in {stage}: {str(error).splitlines()[0][:300]}",
            expected="rows, tokenizer and model that it can work on",
            fix="look at the tokenizer's files and the rows that were read last; with files you trust, please report it",
        ) from error


def _function(place: str) -> Callable[..., Any]:
    """What "module:function" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def load_stages(table: Mapping[str, str], until: str) -> list[Stage]:
    """The stages up to and with `until`. Raises UsageError RUN-020 for a name that is not in the table."""
    if until not in table:
        raise UsageError("RUN-020", f"there is no stage {until!r}", expected=", ".join(table), fix="--until serve")
    names = list(table)[: list(table).index(until) + 1]
    return [Stage(importlib.import_module(table[name]).INFO, table[name]) for name in names]


def check_switches(spec: Recipe, stages: list[Stage]) -> None:
    """Refuses, before anything runs, a stage that needs what the recipe switches off. Raises RecipeError RUN-021."""
    off = {
        output: (key, stage.info.name)
        for stage in stages
        for output, key in stage.info.switches.items()
        if not spec.value(key)
    }
    for stage in stages:
        for name in stage.info.needs:
            if name in off:
                key, maker = off[name]
                raise RecipeError(
                    "RUN-021",
                    f"{stage.info.name} needs what {key}: false leaves out",
                    where=key,
                    expected=f"{key}: true, or to stop after {maker}",
                    fix=f"--set {key}=true, or tunesmith {maker} RECIPE",
                )
