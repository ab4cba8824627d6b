"""Imports run downwards; stages never import each other; one door per big library; light packages stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "tunesmith"
LAYERS = {
    "errors": 0, "units": 0, "hub": 1, "recipe": 1, "runs": 2, "planner": 3, "tracking": 3, "text": 4, "modeling": 5, "scoring": 6,
    "stages": 7, "launch": 8, "report": 8, "runner": 9, "tuning": 10, "api": 11, "cli": 12, "__init__": 13, "__main__": 13,
}  # fmt: skip
LIGHT = (
    "errors",
    "units",
    "hub",
    "recipe",
    "runs",
    "planner",
    "tracking",
    "report",
    "runner",
    "launch",
    "tuning",
    "cli",
    "api",
    "__init__",
)
HEAVY = {
    "torch", "transformers", "daft", "peft", "numpy", "trl", "pyarrow", "tokenizers", "safetensors", "bitsandbytes", "optuna",
    "tensorboard", "wandb", "mlflow", "trackio",
}  # fmt: skip
DOORS = {
    "deepspeed": ("stages/train/engines/deepspeed.py",),
    "daft": ("stages/prepare/reading/frames.py",),
    "huggingface_hub": ("hub/download.py",),
    "py3langid": ("stages/prepare/cleaning/language.py",),
    "bitsandbytes": ("modeling/patches.py", "modeling/quantise.py", "stages/train/optimizer.py"),
    "peft": ("modeling/adapters.py", "modeling/forward.py"),
    "gigatoken": ("text/fast.py",),
    "awkward": ("text/fast.py",),
    "optuna": ("tuning/study.py",),
    "tensorboard": ("tracking/tensorboard.py",),
    "wandb": ("tracking/wandb.py",),
    "mlflow": ("tracking/mlflow.py",),
    "trackio": ("tracking/trackio.py",),
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Imported modules with full names; what stands under TYPE_CHECKING does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imports(node, top_only=top_only)


def test_every_package_has_its_layer() -> None:
    assert {package_of(path) for path in files()} <= set(LAYERS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = package_of(path)
    stage = path.relative_to(SOURCE).parts[1] if own == "stages" and len(path.relative_to(SOURCE).parts) > 2 else None
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] != "tunesmith" or len(parts) < 2 or parts[1] not in LAYERS:
            continue
        # The API and the command line reach into stages for what a verb is about; nothing else skips downwards wrongly.
        assert LAYERS[parts[1]] <= LAYERS[own], f"{path.name} imports upwards: {name}"
        if stage and parts[1] == "stages" and len(parts) > 2:
            assert parts[2] == stage, f"stage {stage} imports its sibling: {name}"
    for library, doors in DOORS.items():
        if any(name.split(".")[0] == library for name in imports(tree)):
            assert str(path.relative_to(SOURCE)) in doors, f"{path} is no door to {library}"


@pytest.mark.parametrize(
    "path", [path for path in files() if package_of(path) in LIGHT], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_light_packages_import_nothing_heavy_on_top(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), top_only=True)} & HEAVY
    if path.name == "worker.py" and package_of(path) == "launch":
        return  # the entry of a training process
    assert not found
