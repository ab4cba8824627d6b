"""tunesmith: raw rows in, an evaluated, gated, exported and served model out, by one recipe and one command.

    import tunesmith

    outcome = tunesmith.run("recipe.yaml")
    print(outcome.run.path / "report.html")

Names load on first use; `import tunesmith` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WORDS = (
    "init",
    "check",
    "plan",
    "prepare",
    "train",
    "evaluate",
    "export",
    "serve",
    "chat",
    "run",
    "tune",
    "open_run",
    "explain",
    "doctor",
)
__all__ = ["Recipe", "__version__", *_WORDS]

if TYPE_CHECKING:
    from tunesmith.api import (  # noqa: F401
        chat,
        check,
        doctor,
        evaluate,
        explain,
        export,
        init,
        open_run,
        plan,
        prepare,
        run,
        serve,
        train,
        tune,
    )
    from tunesmith.recipe import Recipe


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        return importlib.import_module("tunesmith.recipe").Recipe
    if name in _WORDS:
        return getattr(importlib.import_module("tunesmith.api"), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
