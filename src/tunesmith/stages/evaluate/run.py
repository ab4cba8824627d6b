"""The story of evaluation: the same rows to the base and to the tuned model, greedy; scores, intervals, verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.modeling.adapters import load_adapter
from tunesmith.modeling.load import load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.scoring.items import VALIDATION_PART, HeldOut, load_held_out
from tunesmith.scoring.metrics import PERPLEXITY, Metric, load_metrics, score
from tunesmith.stages.evaluate import INFO
from tunesmith.stages.evaluate.answers import Questions, answers_of
from tunesmith.stages.evaluate.externals import judged_base
from tunesmith.stages.evaluate.gate import judge, judged_metric
from tunesmith.stages.evaluate.scores import Scores, change_kinds
from tunesmith.text.tokenizers import load_tokenizer


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Returns {"evaluation": Evaluation}: evaluation.json (scores by part, verdict), answers.jsonl (each held-out chat
    with both answers and their scores), losses.jsonl (each held-out row with both losses)."""
    metrics = load_metrics(spec.evaluate.metrics, run.allowed_code)
    dataset = Dataset(inputs["dataset"].path)
    parts = {VALIDATION_PART} if spec.evaluate.split == "validation" else None
    rows = load_held_out(dataset, spec.evaluate.max_items, parts)
    judged = judged_metric(spec, any(row.item for row in rows))
    _refuse_unjudgeable(spec, rows, judged)
    _try_out(metrics, rows)

    files = hub.resolve(spec.model.base, spec.model.revision)
    tokenizer = load_tokenizer(files, spec.model.template)
    asked = spec.evaluate
    questions = Questions(dataset, rows, tokenizer, asked.max_new_tokens, asked.batch_size, asked.cache)
    base_model: dict[str, Any] = {"base": files.fingerprint}
    if judged_base(spec).type != "none":
        base_model["quantisation"] = judged_base(spec).model_dump()
    tuned_model = {**base_model, "trained": inputs["model"].id}
    base = answers_of("base", base_model, lambda: _load(spec, files.path), questions, spec, run)
    tuned = answers_of("tuned", tuned_model, lambda: _tuned(spec, files, inputs["model"]), questions, spec, run)

    precision = resolve_precision(spec.model.precision, pick_device())
    scores = Scores.of(spec, metrics, rows, base, tuned)
    evaluation = {
        "parts": scores.parts(),
        "overall": scores.overall(),
        "gate": judge(spec, judged, scores.gains()),
        "settings": {
            **spec.slice(("evaluate",))["evaluate"],
            "precision": precision,
            "base_weights": judged_base(spec).type if judged_base(spec).type != "none" else precision,
            "decoding": "greedy",
        },
    }
    producer = {
        "stage": INFO.name,
        "version": INFO.version,
        "recipe": spec.slice(("evaluate", "gate")),
        "inputs": {name: artifact.id for name, artifact in inputs.items()},
    }
    notes = {"gate": evaluation["gate"]["verdict"]}
    with run.store.create("Evaluation", run.stage_key, producer=producer, notes=notes) as draft:
        durable.write_json(draft.path / "evaluation.json", evaluation)
        _write_lines(draft.path / "answers.jsonl", _answers(scores))
        _write_lines(draft.path / "losses.jsonl", _losses(scores))
    _tell(run, evaluation)
    assert draft.artifact is not None
    return {"evaluation": draft.artifact}


def _load(spec: Recipe, path: Path) -> nn.Module:
    device = pick_device()
    precision = resolve_precision(spec.model.precision, device)
    attention = resolve_attention(spec.model.attention, device, precision)
    return load_model(path, dtype=precision, attention=attention, device=device, quantisation=judged_base(spec))


def _tuned(spec: Recipe, files: hub.ModelFiles, artifact: Artifact) -> nn.Module:
    if artifact.kind == "Adapter":
        return load_adapter(_load(spec, files.path), artifact.path)
    return _load(spec, artifact.path)


# ------------------------------------------------------------------------------------------------ before a model loads


def _refuse_unjudgeable(spec: Recipe, rows: list[HeldOut], judged: str) -> None:
    """Raises DataError EVL-010 when nothing is held out, EVL-011 when the gate's metric cannot be measured on it."""
    if spec.gate.require == "none":
        return
    if not rows:
        raise DataError(
            "EVL-010",
            "no row is held out to evaluate on",
            where="data.split",
            expected="a test or validation part",
            fix="data.split: {test: 0.1}, a source with `split: test`, or gate.require: none",
        )
    if judged != PERPLEXITY and not any(row.item for row in rows):
        raise DataError(
            "EVL-011",
            f"gate.metric is {spec.gate.metric}, which judges answers, and none of the {len(rows):,} held-out rows asks anything",
            where="gate.metric",
            expected="held-out chats, or a metric that plain text has",
            fix="gate.metric: perplexity (and perplexity among evaluate.metrics), or gate.metric: auto",
        )


def _try_out(metrics: list[Metric], rows: list[HeldOut]) -> None:
    """Each metric on one right answer, so that a broken one is told before two models are asked for minutes."""
    item = next((row.item for row in rows if row.item), None)
    for metric in metrics if item else []:
        assert item is not None
        score(metric, item.expected, item.expected, item)


# --------------------------------------------------------------------------------------------------------- what is kept


def _answers(scores: Scores) -> Iterable[dict[str, Any]]:
    kinds = {name: change_kinds(*sides) for name, sides in scores.by_item.items()}
    for number, place in enumerate(scores.items):
        item = scores.rows[place].item
        assert item is not None
        before, after = scores.base.answers[number], scores.tuned.answers[number]
        yield {
            "row": item.row,
            "part": item.part,
            "messages": item.messages,
            "expected": item.expected,
            "base": before.text,
            "tuned": after.text,
            "base_ids": before.ids,
            "tuned_ids": after.ids,
            "finish": after.finish,
            "scores": {name: [float(side[number]) for side in sides] for name, sides in scores.by_item.items()},
            "changes": {name: found[number] for name, found in kinds.items()},
        }


def _losses(scores: Scores) -> Iterable[dict[str, Any]]:
    """nll: [base, tuned] in nats, summed over the row's learned tokens; weight: their summed weights."""
    sides = (scores.base.nll_N.tolist(), scores.tuned.nll_N.tolist(), scores.tuned.weight_N.tolist())
    for row, before, after, weight in zip(scores.rows, *sides, strict=True):
        nll = [value if math.isfinite(value) else None for value in (before, after)]
        yield {"row": row.row, "part": row.part, "nll": nll, "weight": weight}


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """JSON lines. A lone surrogate, which a model may well put out, becomes its JSON escape instead of an error."""
    lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
    durable.write_bytes(path, "".join(lines).encode("utf-8", "backslashreplace"))


def _tell(run: Run, evaluation: Mapping[str, Any]) -> None:
    for part, found in evaluation["parts"].items():
        for name, values in found["metrics"].items():
            value = {"part": part, **{side: values[side]["value"] for side in ("base", "tuned")}}
            run.record("evaluate", f"evaluate/{name}", value)
    run.record("evaluate", "evaluate/gate", evaluation["gate"]["verdict"])
