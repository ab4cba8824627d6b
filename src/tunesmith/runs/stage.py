"""What a stage says about itself, so that the runner can order it, fingerprint it and skip it without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageInfo:
    """The face of a stage; the work is `run(spec, inputs, run)` in the module `run` beside it.

    needs:     names of inputs, each made by an earlier stage.
    makes:     names of outputs.
    version:   raised by hand when the same inputs would give another output.
    keys:      recipe paths the outcome depends on, such as "data" or "model.base". A key that is not named here does
               not make the stage run again.
    externals: "module:function" that hashes what lies outside of the recipe (source files, the base model):
               function(spec, run) -> dict. It must be light.
    checks:    "module:function" that refuses what this machine cannot do: function(spec) -> None. It must be light; asked
               before anything runs, unless the Run has this stage's outputs already.
    switches:  output name -> recipe key that switches it off when false, so that a later stage that needs it can be
               refused before anything runs.
    """

    name: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    version: int
    keys: tuple[str, ...]
    externals: str | None = None
    checks: str | None = None
    switches: Mapping[str, str] = field(default_factory=dict)
