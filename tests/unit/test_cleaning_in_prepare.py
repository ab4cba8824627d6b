"""Cleaning inside the stage: what is redacted reaches neither tokens nor ledger, and a score by the base decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tunesmith import api
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.cleaning import model_scores

PERSON = "anna.lee@acme.io"
PII = "data.filters.pii={email: redact, card: drop}"


def prepared(folder: Path, model: Path, *overrides: str) -> tuple[dict[int, dict[str, Any]], Path]:
    """(row -> its line of the ledger, the Dataset's folder)."""
    recipe = {
        "name": "clean",
        "model": {"base": str(model)},
        "data": {"sources": "rows.jsonl", "split": {"validation": 0, "test": 0.3}},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    run = api.prepare(
        folder / "recipe.json",
        overrides=["data.filters.length=null", *overrides],
        workspace=folder / "work",
        quiet=True,
    ).run
    dataset = run.outputs("prepare")["dataset"].path
    return {line["row"]: line for line in pq.read_table(dataset / "ledger.parquet").to_pylist()}, dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Please repeat the number {n} and say done.", "completion": f"{n} done"} for n in range(40)]
    rows[3]["prompt"] += f" Mail {PERSON} and {PERSON}."
    rows[5]["completion"] += f" for {PERSON}"
    rows[7]["completion"] += " 4111 1111 1111 1111"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_what_is_redacted_reaches_neither_tokens_nor_items_nor_ledger(folder: Path, tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    ledger, path = prepared(folder, tiny_model_dir, PII)
    assert {row: line["detail"] for row, line in ledger.items() if line["rule"] == "redacted"} == {
        3: "email x 2",
        5: "email",
    }
    assert (ledger[3]["status"], ledger[7]["status"], ledger[7]["rule"]) == ("used", "dropped", "card")
    dataset, tokenizer = Dataset(path), AutoTokenizer.from_pretrained(tiny_model_dir)
    texts = [tokenizer.decode(dataset.sequence(number)[0]) for number in range(dataset.counts["examples"])]
    assert sum("[EMAIL]" in text for text in texts) == 2
    assert not any(PERSON.encode() in file.read_bytes() or PERSON in "".join(texts) for file in path.rglob("*"))


def test_a_dropped_row_keeps_its_secret_in_no_copy(folder: Path, tiny_model_dir: Path) -> None:
    card = b"4111 1111 1111 1111"
    prepared(folder, tiny_model_dir, PII)
    artifacts = folder / "work" / "artifacts"
    holding = {
        path.relative_to(artifacts).parts[0]
        for path in artifacts.rglob("*")
        if path.is_file() and card in path.read_bytes()
    }
    assert holding == {"rows"}, "the rows as they were read, and nothing that was made of them"
    (stored,) = artifacts.glob("verdicts/*/parts/00000/rows.arrow")
    rows, read = parts.open_table(stored), parts.open_table(next(artifacts.glob("rows/*/parts/00000/rows.arrow")))
    assert rows["turns"][7].as_py()[-1]["content"] == "7 done [CARD]"
    assert rows["key"][7] == read["key"][7], "nothing else depends on what is left out of a dropped row"
    assert rows["key"][3] != read["key"][3]
    _, before = prepared(folder, tiny_model_dir, PII)
    kept = (before / "tokens.npy").read_bytes()
    for name in ("rows", "verdicts", "tokens"):
        shutil.rmtree(artifacts / name)
    _, after = prepared(folder, tiny_model_dir, PII)
    assert (after / "tokens.npy").read_bytes() == kept, "copies that were deleted are made anew from the source"
    assert {path.name for path in artifacts.iterdir()} >= {"rows", "verdicts", "tokens"}


def test_a_score_by_the_base_decides_and_is_asked_of_rows_that_are_left(
    folder: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    real = model_scores.row_losses

    def count(model: Any, sequences: Any, wanted: Any, **settings: Any) -> Any:
        scored.append(len(wanted))
        return real(model, sequences, wanted, **settings)

    monkeypatch.setattr(model_scores, "row_losses", count)
    half, _ = prepared(folder, tiny_model_dir, PII, "data.quality={type: perplexity, keep: 0.5}")
    assert scored == [39], "not the row that goes by its card"
    gone = [line for line in half.values() if line["rule"] == "perplexity"]
    assert len(gone) == 19  # the half of 39, rounded up, stays
    assert min(line["value"] for line in gone) >= gone[0]["threshold"]
    less, _ = prepared(folder, tiny_model_dir, PII, "data.quality={type: perplexity, keep: 0.9}")
    assert sum(line["rule"] == "perplexity" for line in less.values()) == 4
    assert scored == [39], "another threshold scores nothing anew"
