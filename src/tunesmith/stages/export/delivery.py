"""The gate's word, and the finished export handed out of the store. Light: nothing here loads a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import FileError, GateError, UsageError
from tunesmith.runs import durable
from tunesmith.runs.evaluation import read_evaluation, why_held
from tunesmith.runs.run import Run
from tunesmith.runs.store import MANIFEST


def refuse_held(evaluation: Mapping[str, Any], run: Run) -> None:
    """Raises GateError EXP-001 when the gate says hold."""
    why = why_held(evaluation)
    if why is not None:
        raise GateError(
            "EXP-001",
            f"the gate says hold: {why}",
            where="gate",
            run_folder=str(run.path),
            expected="a gain whose whole interval is above gate.min_gain",
            fix=f"look at what was fixed and broken in {run.path / 'report.html'}; train longer or on better rows; gate.require: none ships anyway",
        )


def refuse_full(folder: Path) -> None:
    """Raises FileError EXP-005 when the folder holds something, so that nothing is ever overwritten."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "is not empty" if folder.is_dir() else "is no folder"
        raise FileError(
            "EXP-005", f"{folder} {what}", expected="a new or empty folder", fix="choose another folder with --to"
        )


def deliver(run: Run, folder: Path) -> Path:
    """Copy the exported model of a finished run out of the store, every hash checked.

    Raises GateError EXP-001 when the gate says hold, UsageError EXP-004 when there is nothing to copy, FileError EXP-005
    when the folder is not empty.
    """
    evaluation, export = run.outputs("evaluate"), run.outputs("export")
    if evaluation:
        refuse_held(read_evaluation(evaluation["evaluation"].path), run)
    if not evaluation or not export or "export" not in export:
        raise UsageError(
            "EXP-004",
            f"run {run.id} has {'exported no merged model' if evaluation else 'no evaluation that says it may ship'}",
            expected="a run whose export has finished, with export.merged: true",
            fix="tunesmith export RECIPE",
        )
    folder = Path(folder).absolute()
    refuse_full(folder)
    run.store.verify(export["export"])
    with durable.folder_aside(folder) as aside, durable.explain(folder):
        for path in sorted(export["export"].path.iterdir()):
            if path.name != MANIFEST:  # it belongs to the store, and names folders of this machine
                shutil.copyfile(path, aside / path.name)
        durable.publish_folder(aside, folder, replace=True)
    return folder
