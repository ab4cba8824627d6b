"""Serving on a CUDA device: compiled with CUDA graphs, quantised, adapters side by side; each proven by the stage's own proof."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from held_out import adapter, finished, prove_served, speaker

pytestmark = pytest.mark.gpu
openai = pytest.importorskip("openai")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "settings",
    [
        ("serve.compile=true",),
        ("serve.quantisation=nf4",),
        ("serve.quantisation=int8",),
        ("serve.quantisation=nf4", "serve.compile=true"),
        ("serve.adapters={other: second}",),
        ("serve.adapters={other: second}", "serve.quantisation=nf4"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_what_is_served_is_what_was_evaluated(settings: tuple[str, ...], tiny_model_dir: Path, tmp_path: Path) -> None:
    model_dir = speaker(tmp_path / "speaker", tiny_model_dir)
    finished(tmp_path / "work", model_dir, adapter(tmp_path / "two", model_dir, 0.3, rank=4), "second", items=9)
    small = finished(tmp_path / "work", model_dir, adapter(tmp_path / "one", model_dir), "first")
    parity = prove_served(small, "serve.engine=transformers", *settings)
    for found in (parity, *parity.get("adapters", {}).values()):
        assert found["n"] >= 8
        assert found["verdict"] in ("equal", "within tolerance")
