"""`compute: ray`: the same recipe on a Ray cluster of this machine gives the same bytes, and goes on from finished parts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray")
Call = Callable[..., subprocess.CompletedProcess[str]]


def files_of(workspace: Path) -> dict[str, dict[str, str]]:
    """Kind of artifact -> file -> hash, as the manifests have them."""
    out = {}
    for kind in ("rows", "verdicts", "tokens", "dataset"):
        (manifest,) = (workspace / "artifacts" / kind).glob("*/manifest.json")
        files = json.loads(manifest.read_text())["files"]
        out[kind] = {name: told["sha256"] for name, told in files.items()}
    return out


def test_a_cluster_makes_the_bytes_that_one_process_makes(tunesmith: Call, tmp_path: Path) -> None:
    for number in range(3):
        lines = [
            {"prompt": f"What is {number} plus {row}, please, and why so?", "completion": f"It is {number + row}."}
            for row in range(200)
        ]
        (tmp_path / f"rows{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(
        "data: {sources: [rows0.jsonl, rows1.jsonl, rows2.jsonl], deduplicate: near, filters: {length: {min_characters: 10}}}\nmodel: {template: instruction}\n"
    )
    for name, compute in (("here", "{type: local, workers: 1}"), ("cluster", "ray")):
        tunesmith("prepare", tmp_path / "recipe.yaml", "--workspace", tmp_path / name, "--set", f"compute={compute}")
    here, cluster = files_of(tmp_path / "here"), files_of(tmp_path / "cluster")
    assert len(here["rows"]) >= 4, "three parts"
    assert here == cluster
