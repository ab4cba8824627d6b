"""Flags, public names and recipe keys change on purpose: with a line in CHANGELOG.md, never by accident."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def snapshots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("snapshots", ROOT / "tools" / "snapshots.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["flags", "names", "keys"])
def test_what_users_rely_on_is_as_it_was(snapshots: ModuleType, name: str) -> None:
    found = snapshots.differences(name)
    assert not found, "\n".join(
        [*found, "changed: add a line to CHANGELOG.md and regenerate (python tools/snapshots.py)"]
    )


def test_a_snapshot_sees_what_is_new_gone_and_changed(
    snapshots: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "FOLDER", tmp_path)
    (tmp_path / "keys.json").write_text('{"seed": "17; text", "lr": "1"}')
    found = snapshots.differences("keys")
    assert "gone: lr (1)" in found
    assert any(line.startswith("seed: 17; text -> 17; whole number") for line in found)
    assert any(line.startswith("new: train.learning_rate") for line in found)


def test_snapshots_hold_all_of_it(snapshots: ModuleType) -> None:
    flags, names, keys = (snapshots.SNAPSHOTS[name]() for name in ("flags", "names", "keys"))
    assert flags["run --set"] == "KEY=VALUE, repeatable"
    assert flags["serve --port"].startswith("integer range")
    assert names["run"].startswith("recipe, *, overrides=()")
    assert keys["train.batch_size"] == "16; whole number, >= 1"
