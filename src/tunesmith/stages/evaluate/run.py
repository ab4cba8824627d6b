"""The story of evaluation: the same items to the base and to the tuned model, greedy; scores, intervals, verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.modeling.adapters import load_adapter
from tunesmith.modeling.load import load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import Item, load_items
from tunesmith.scoring.metrics import PERPLEXITY, load_metric, score
from tunesmith.scoring.perplexity import stream_perplexity
from tunesmith.scoring.statistics import Gain, Interval, interval, paired_gain
from tunesmith.stages.evaluate.externals import judged_base
from tunesmith.stages.evaluate.gate import judge
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Returns {"evaluation": Evaluation} with evaluation.json and answers.jsonl."""
    metrics = [load_metric(name, run.allowed_code) for name in spec.evaluate.metrics if name != PERPLEXITY]
    dataset = Dataset(inputs["dataset"].path)
    items = load_items(dataset, max_items=spec.evaluate.max_items)
    if not items and spec.gate.require != "none":
        raise DataError(
            "EVL-010",
            "there is no held-out chat to evaluate on",
            where="data.split",
            expected="a test or validation part",
            fix="data.split: {test: 0.1}, a source with `split: test`, or gate.require: none",
        )
    files = hub.resolve(spec.model.base, spec.model.revision)
    tokenizer = load_tokenizer(files, spec.model.template)

    base = _base_answers(spec, run, files, tokenizer, dataset, items)
    model = _tuned_model(spec, files, inputs["model"])
    tuned = _ask(spec, run, model, tokenizer, dataset, items, "tuned")
    del model

    scores = {
        metric.name: {
            who: [
                score(metric, item.expected, answer["text"], item)
                for item, answer in zip(items, side["answers"], strict=True)
            ]
            for who, side in (("base", base), ("tuned", tuned))
        }
        for metric in metrics
    }
    evaluation = _summary(spec, items, scores, base, tuned)
    producer = {
        "stage": "evaluate",
        "recipe": spec.slice(("evaluate", "gate")),
        "inputs": {name: a.id for name, a in inputs.items()},
    }
    with run.store.create(
        "Evaluation", run.stage_key, producer=producer, notes={"gate": evaluation["gate"]["verdict"]}
    ) as draft:
        (draft.path / "evaluation.json").write_text(json.dumps(evaluation, indent=1, ensure_ascii=False))
        _write_answers(draft.path / "answers.jsonl", items, base, tuned, scores)
    for part, found in evaluation["parts"].items():
        for name, values in found["metrics"].items():
            run.record(
                "evaluate",
                f"evaluate/{name}",
                {"part": part, **{side: values[side]["value"] for side in ("base", "tuned")}},
            )
    run.record("evaluate", "evaluate/gate", evaluation["gate"]["verdict"])
    assert draft.artifact is not None
    return {"evaluation": draft.artifact}


# ------------------------------------------------------------------------------------------------------- the answers


def _base_answers(
    spec: Recipe, run: Run, files: hub.ModelFiles, tokenizer: Tokenizer, dataset: Dataset, items: list[Item]
) -> dict[str, Any]:
    """The base's answers, kept in the store: twenty trainings on the same items ask the base once."""
    made_of = {
        "base": files.fingerprint,
        "items": [[item.row, list(item.prompt_ids)] for item in items],
        "dataset_tokens": dataset.counts,
        "settings": spec.slice(("evaluate.max_new_tokens", "model.precision", "model.attention")),
        "version": 1,
    }
    if judged_base(spec).type != "none":
        made_of["quantisation"] = judged_base(spec).model_dump()
    key = fingerprint(made_of)
    found = run.store.find("Evaluation", key)
    if found is None:
        model = _load(spec, files.path)
        answered = _ask(spec, run, model, tokenizer, dataset, items, "base")
        with run.store.create(
            "Evaluation",
            key,
            producer={"stage": "evaluate", "recipe": made_of["settings"], "inputs": {"base": files.fingerprint}},
        ) as draft:
            (draft.path / "base.json").write_text(json.dumps(answered, ensure_ascii=False))
        assert draft.artifact is not None
        found = draft.artifact
    return json.loads((found.path / "base.json").read_bytes())


def _load(spec: Recipe, path: Path) -> nn.Module:
    device = pick_device()
    precision = resolve_precision(spec.model.precision, device)
    return load_model(
        path,
        dtype=precision,
        attention=resolve_attention(spec.model.attention, device),
        device=device,
        quantisation=judged_base(spec),
    )


def _tuned_model(spec: Recipe, files: hub.ModelFiles, artifact: Artifact) -> nn.Module:
    if artifact.kind == "Adapter":
        return load_adapter(_load(spec, files.path), artifact.path)
    return _load(spec, artifact.path)


def _ask(
    spec: Recipe, run: Run, model: nn.Module, tokenizer: Tokenizer, dataset: Dataset, items: list[Item], who: str
) -> dict[str, Any]:
    """{"answers": [{ids, text, finish}], "loss", "perplexity"} of one model."""

    def tell(done: int, total: int) -> None:
        run.record("evaluate", f"evaluate/{who}_answers", done, unit="items")
        if run.stopping:
            run.leave(f"while asking the {who} model")

    answers = generate_greedy(
        model,
        tokenizer,
        items,
        max_new_tokens=spec.evaluate.max_new_tokens,
        batch_size=spec.evaluate.batch_size,
        on_progress=tell,
    )
    held_out = dataset.split("test")
    held_out = held_out if len(held_out) else dataset.split("validation")
    found = stream_perplexity(model, dataset, held_out.tolist())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "answers": [{"ids": answer.ids, "text": answer.text, "finish": answer.finish} for answer in answers],
        "loss": found.loss if found.weight else None,
        "perplexity": found.value if found.weight else None,
        "learned_tokens": found.weight,
    }


# ------------------------------------------------------------------------------------------------------- the summary


def _summary(
    spec: Recipe,
    items: list[Item],
    scores: dict[str, dict[str, list[float]]],
    base: dict[str, Any],
    tuned: dict[str, Any],
) -> dict[str, Any]:
    confidence = spec.evaluate.confidence
    parts = {}
    for part in dict.fromkeys(item.part for item in items):
        places = [place for place, item in enumerate(items) if item.part == part]
        parts[part] = {"n": len(places), "metrics": {}}
        for name, sides in scores.items():
            ours, theirs = ([sides[side][place] for place in places] for side in ("tuned", "base"))
            parts[part]["metrics"][name] = {
                "base": _plain(interval(theirs, confidence, spec.seed)),
                "tuned": _plain(interval(ours, confidence, spec.seed)),
                "gain": _plain(paired_gain(theirs, ours, confidence, spec.seed)),
                "higher_is_better": True,
            }
    precision = resolve_precision(spec.model.precision, pick_device())
    gate = judge(
        spec, {name: s["base"] for name, s in scores.items()}, {name: s["tuned"] for name, s in scores.items()}
    )
    return {
        "parts": parts,
        "perplexity": {
            "base": base["perplexity"],
            "tuned": tuned["perplexity"],
            "learned_tokens": tuned["learned_tokens"],
            "asked_for": PERPLEXITY in spec.evaluate.metrics,
        },
        "loss": {"base": base["loss"], "tuned": tuned["loss"]},
        "gate": gate,
        "settings": {
            **spec.slice(("evaluate",))["evaluate"],
            "precision": precision,
            "base_weights": judged_base(spec).type if judged_base(spec).type != "none" else precision,
            "decoding": "greedy",
            "paired": "bootstrap, 10,000 resamples",
        },
    }


def _plain(found: Interval | Gain) -> dict[str, float | None]:
    """value, low, high; null where there was no item."""
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: round(number, 6) if math.isfinite(number) else None for name, number in numbers.items()}


def _write_answers(
    path: Path,
    items: list[Item],
    base: dict[str, Any],
    tuned: dict[str, Any],
    scores: dict[str, dict[str, list[float]]],
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for place, item in enumerate(items):
            before, after = base["answers"][place], tuned["answers"][place]
            entry = {
                "row": item.row,
                "part": item.part,
                "messages": item.messages,
                "expected": item.expected,
                "base": before["text"],
                "tuned": after["text"],
                "base_ids": before["ids"],
                "tuned_ids": after["ids"],
                "finish": after["finish"],
                "scores": {name: [s["base"][place], s["tuned"][place]] for name, s in scores.items()},
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
