"""The story of preparation: read, refuse or set apart, select, encode, and write a Dataset that accounts for every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith import hub
from tunesmith.recipe import Recipe
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.accounts import QUARANTINED, Accounts
from tunesmith.stages.prepare.assemble import Selection, assemble
from tunesmith.stages.prepare.bad_rows import bad_rows_error, first_of_each_code
from tunesmith.stages.prepare.externals import source_hashes, tokenizer_hash
from tunesmith.stages.prepare.rows import Rows, write_rows
from tunesmith.stages.prepare.spread import Compute, cores
from tunesmith.stages.prepare.tokens import EncodeTask, Tokens, write_tokens
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

READER_VERSION = 3


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Make Rows, Tokens and Dataset, each only where it is not there yet."""
    rows_artifact = _rows(spec, run)
    rows = Rows(rows_artifact.path)
    _judge_bad_rows(spec, run, rows)
    selection = select(rows, spec)
    _leave_if_asked(run, "before tokenising")

    files = hub.resolve(spec.model.base, spec.model.revision, weights=False)
    tokenizer = load_tokenizer(files, spec.model.template)
    tokens_artifact = _tokens(spec, run, rows_artifact, rows, tokenizer, files)
    _leave_if_asked(run, "before writing the Dataset")
    dataset = _dataset(
        spec, run, rows, selection, Tokens(tokens_artifact.path), tokenizer, (rows_artifact, tokens_artifact)
    )
    return {"rows": rows_artifact, "tokens": tokens_artifact, "dataset": dataset}


def compute_of(spec: Recipe) -> Compute:
    """Where the parts are made, as the recipe says."""
    asked = spec.compute
    if asked.type == "ray":
        return Compute(cluster=asked.address or "")
    return Compute(cores() if asked.workers == "auto" else asked.workers)


# ------------------------------------------------------------------------------------------------------------- rows


def _rows(spec: Recipe, run: Run) -> Artifact:
    sources = [source.model_dump(exclude={"path"}) for source in spec.data.sources]
    made_of = {"reader": READER_VERSION, "sources": sources, "files": source_hashes(spec)}
    found = run.store.find("Rows", fingerprint(made_of))
    if found is None:
        producer = {"stage": "prepare", "recipe": spec.slice(("data.sources",)), "inputs": made_of}

        def tell(count: int) -> None:
            run.record("prepare", "prepare/rows_read", count, unit="rows")
            _leave_if_asked(run, "while reading")

        with (
            parts.folder_for(run.store.folder("Rows", fingerprint(made_of))) as aside,
            run.store.create("Rows", fingerprint(made_of), producer=producer) as draft,
        ):
            draft.notes |= write_rows(spec.data.sources, aside, draft.path, compute_of(spec), tell)
        assert draft.artifact is not None
        found = draft.artifact
    run.record("prepare", "prepare/rows", found.notes["rows"], unit="rows")
    run.record("prepare", "prepare/formats", found.notes["formats"], unit="rows")
    return found


def _judge_bad_rows(spec: Recipe, run: Run, rows: Rows) -> None:
    counts, first = first_of_each_code(rows.problems())
    run.record("prepare", "prepare/bad_rows", counts.total(), unit="rows")
    refusal = bad_rows_error(spec, counts, first, rows.num_rows)
    if refusal is not None:
        raise refusal


# -------------------------------------------------------------------------------------------------------- selection


def select(rows: Rows, spec: Recipe) -> Selection:
    """What is decided about rows before they are encoded."""
    from tunesmith.stages.prepare.select import select as select_slim
    from tunesmith.stages.prepare.slim import slim_rows

    chosen = select_slim(slim_rows(rows), spec)
    accounts = Accounts.of(rows.num_rows)
    for told in rows.problems():
        row = told["row"]
        accounts.status[row], accounts.rule[row] = QUARANTINED, accounts.rule_number(told["code"])
        accounts.details[row] = told["what"]
    splits = np.full(rows.num_rows, -1, np.int8)
    for row, split in chosen.splits.items():
        splits[row] = ("train", "validation", "test").index(split)
    for row, drop in chosen.drops.items():
        accounts.status[row], accounts.rule[row] = 1, accounts.rule_number(drop.rule)
        accounts.value[row] = np.nan if not isinstance(drop.value, (int, float)) else drop.value
        accounts.threshold[row] = np.nan if not isinstance(drop.threshold, (int, float)) else drop.threshold
        accounts.kept_twin[row] = -1 if drop.kept_twin is None else drop.kept_twin
    return Selection(splits, accounts, np.ones(rows.num_rows, np.int32))


# ----------------------------------------------------------------------------------------------------------- tokens


def _tokens(
    spec: Recipe, run: Run, rows_artifact: Artifact, rows: Rows, tokenizer: Tokenizer, files: hub.ModelFiles
) -> Artifact:
    made_of = {
        "rows": rows_artifact.id,
        "tokenizer": tokenizer_hash(files),
        "template": tokenizer.template.source,
        "learn": spec.data.learn,
    }
    found = run.store.find("Tokens", fingerprint(made_of))
    encoded = 0
    if found is None:
        producer = {
            "stage": "prepare",
            "recipe": spec.slice(("model.base", "model.template", "data.learn")),
            "inputs": made_of,
        }

        def tell(count: int) -> None:
            run.record("prepare", "prepare/rows_encoded", count, unit="rows")
            _leave_if_asked(run, "while tokenising")

        with (
            parts.folder_for(run.store.folder("Tokens", fingerprint(made_of))) as aside,
            run.store.create("Tokens", fingerprint(made_of), producer=producer) as draft,
        ):
            model = spec.model
            task = EncodeTask(
                0, str(rows.folder), str(aside), model.base, model.revision, model.template, spec.data.learn
            )
            draft.notes |= write_tokens(rows, task, draft.path, replace(compute_of(spec), workers=1), tell)
        assert draft.artifact is not None
        found = draft.artifact
        encoded = found.notes["encoded"]
    run.record("prepare", "prepare/encoded_rows", encoded, unit="rows")
    return found


# ---------------------------------------------------------------------------------------------------------- dataset


def _dataset(
    spec: Recipe,
    run: Run,
    rows: Rows,
    selection: Selection,
    tokens: Tokens,
    tokenizer: Tokenizer,
    inputs: tuple[Artifact, ...],
) -> Artifact:
    producer = {
        "stage": "prepare",
        "recipe": spec.slice(("seed", "data")),
        "inputs": {a.kind.lower(): a.id for a in inputs},
    }
    with run.store.create("Dataset", run.stage_key, producer=producer) as draft:
        statistics = assemble(spec, rows, tokens, selection, tokenizer, draft.path)
        draft.notes |= {"splits": statistics["splits"]}
    for split, counts in statistics["splits"].items():
        run.record("prepare", f"prepare/{split}_rows", counts["rows"], unit="rows")
    assert draft.artifact is not None
    return draft.artifact


def _leave_if_asked(run: Run, where: str) -> None:
    if run.stopping:
        run.leave(where)
