"""Numerics on the user's own model: what must change nothing is tried both ways, by the training code itself.

A few rows go through short trainings that differ in one thing each: the micro-batch, recomputation, a stop in the middle, the
number of processes. Updates are plain SGD without clipping, which shows a gradient of the wrong size (AdamW hides it), and
numbers are fp32. Then single models are asked twice: an adapter beside its base and merged into it, a set in batches of
different sizes, documents together and alone with each kind of attention.

The runner puts the parts together (runner/numerics.py): it alone may start processes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith import hub
from tunesmith.errors import DataError, TunesmithError
from tunesmith.modeling.adapters import draw_b, load_adapter, merge_adapter
from tunesmith.modeling.forward import Batch, collate, learned_nll
from tunesmith.modeling.load import capability_of, load_model, pick_device, resolve_attention, still_dropout
from tunesmith.modeling.packing import FLASH, choose_layout, positions
from tunesmith.planner.attention import installed
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.load import with_values
from tunesmith.runs.dataset import Dataset, DatasetWriter
from tunesmith.runs.store import Artifact, Store
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import load_held_out
from tunesmith.scoring.perplexity import row_losses
from tunesmith.text.tokenizers import load_tokenizer

STEPS, STOP_AFTER, BATCH = 3, 1, 8
RATE = 0.01  # of SGD: an update is then far above the last bits of a weight, and far below what makes a model break
ROWS, HELD_OUT, TOKENS = 24, 6, 12_288
ANSWER_TOKENS = 12
# Shares of the larger value. fp32 sums in another order agree to about 1e-6 here (tests/numerics); what is wrong in a training
# (a padded token learned, a mean of means, a document that sees another) is off by 1e-2 and more.
TOLERANCE, LEAK_BF16 = 1e-4, 5e-2
ORDER = ("micro-batch", "recomputation", "resume", "processes", "merge", "evaluation batch")


@dataclass(frozen=True)
class Check:
    """One comparison. measured, tolerance: shares of the larger value; None where it was not tried.

    verdict: "holds", "fails", "unused" (fails, and training never takes this way) or "not tried". compared: what with what.
    note: where it differs most, or why it was not tried. fix: what to do where it fails.
    """

    name: str
    compared: str
    verdict: str
    measured: float | None = None
    tolerance: float | None = None
    note: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(
    name: str, compared: str, measured: float, tolerance: float, note: str, fix: str, used: bool = True
) -> Check:
    """A value that is no number fails too."""
    holds = measured <= tolerance
    verdict = "holds" if holds else "fails" if used else "unused"
    return Check(name, compared, verdict, float(measured), tolerance, note, "" if holds or not used else fix)


def not_tried(name: str, compared: str, why: str) -> Check:
    return Check(name, compared, "not tried", note=why)


# --------------------------------------------------------------------------------------------------------- the small set


def some_rows(folder: Path, store: Store) -> Artifact:
    """A Dataset of a few rows of another one: short and long ones to train on, some held out with what is asked.

    Raises DataError TRN-070 when fewer than two rows have something to learn.
    """
    whole = Dataset(folder)
    lengths, weights = whole.lengths(), whole.learned_weights()
    train = _spread([e for e in whole.split("train") if weights[e] > 0], lengths, ROWS, TOKENS)
    if len(train) < 2:
        raise DataError(
            "TRN-070",
            f"{len(train)} rows of {folder} have something to learn",
            where="data",
            expected="at least two, to compare them together and alone",
            fix="tunesmith check RECIPE says what becomes of the rows",
        )
    held = [e for split in ("validation", "test") for e in whole.split(split)]  # type: ignore[arg-type]
    held = _spread(held, lengths, HELD_OUT, TOKENS // 4)
    rows = {whole.row(example) for example in held}
    with store.create("Dataset", "rows", producer={"stage": "doctor"}) as draft:
        writer = DatasetWriter(draft.path)
        for split, examples in (("train", train), ("validation", held)):
            for example in examples:
                ids, spans, span_weights = whole.sequence(example)
                told = [[*map(int, span), float(weight)] for span, weight in zip(spans, span_weights, strict=True)]
                writer.add(ids, told, whole.row(example), split)
        items = [{**item, "split": "validation"} for item in whole.items() if item["row"] in rows]
        writer.close(items=items)
    assert draft.artifact is not None
    return draft.artifact


def _spread(examples: Sequence[int], lengths: np.ndarray, most: int, tokens: int) -> list[int]:
    """From the shortest to the longest, as many as the tokens allow, two at least."""
    ordered = sorted(map(int, examples), key=lambda example: (int(lengths[example]), example))
    for count in range(min(most, len(ordered)), 0, -1):
        picked = [ordered[place] for place in np.linspace(0, len(ordered) - 1, count).round().astype(int)]
        if count <= 2 or int(lengths[picked].sum()) <= tokens:
            return list(dict.fromkeys(picked))
    return []


# -------------------------------------------------------------------------------------------------------- the trainings


def recipe_of(spec: Recipe, name: str, rows: int, **changes: Any) -> Recipe:
    """The user's recipe, made short and plain, with one thing changed. changes: keys below `train`."""
    batch = max(2, min(BATCH, rows))
    train = {
        "optimizer": {"type": "sgd"}, "schedule": {"type": "constant", "warmup": 0.0}, "learning_rate": RATE,
        "max_grad_norm": None, "epochs": 1000, "max_steps": STEPS, "batch_size": batch, "micro_batch": batch,
        "gradient_checkpointing": "off", "compile": "off", "callbacks": [], "early_stopping": None, "best_metric": "loss",
        "keep": "last", "evaluate_every": STEPS, "save_every": 1, "processes": 1, "engine": {"type": "auto"},
        "gradient_noise": "off", "validation.metrics": [],
    }  # fmt: skip
    device = pick_device()
    values = {f"train.{key}": value for key, value in {**train, **changes}.items()}
    attention = resolve_attention(spec.model.attention, device, "fp32")
    fixed = {
        "model.precision": "fp32",
        "model.attention": attention,
        "name": f"doctor-{name}",
        "track": {"to": ["files"]},
    }
    return with_values(spec, {**values, **fixed})


@dataclass(frozen=True)
class Trained:
    """What a short training came to. losses, norms: by step. weights: the trained ones, by their full names."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    path: Path

    @classmethod
    def of(cls, outputs: Mapping[str, Artifact], events: Sequence[Any]) -> Trained:
        """outputs, events: of the Run that made it."""
        told = {name: [] for name in ("train/loss", "train/grad_norm")}
        for event in events:
            if event.name in told:
                told[event.name].append(float(event.value))
        folder = outputs["model"].path
        files = sorted(folder.glob("*.safetensors"))
        weights = {name: value for file in files for name, value in load_file(file).items()}
        return cls(told["train/loss"], told["train/grad_norm"], weights, folder)


def compared(name: str, what: str, one: Trained, other: Trained, fix: str, tolerance: float = TOLERANCE) -> Check:
    """Losses, gradient norms and weights of two trainings that must be one. Weights: against the way they went."""
    length = sum(RATE * norm for norm in one.norms) or 1.0
    apart = sum(float((one.weights[n].double() - other.weights[n].double()).square().sum()) for n in one.weights) ** 0.5
    found = {"weights": apart / length if one.weights.keys() == other.weights.keys() else float("inf")}
    for kind, first, second in (("loss", one.losses, other.losses), ("gradient norm", one.norms, other.norms)):
        pairs = list(zip(first, second, strict=False))
        off = [_share(a, b) for a, b in pairs] if len(first) == len(second) == STEPS else [float("inf")]
        place = int(np.argmax(off))
        found[f"{kind} of step {place + 1}"] = off[place]
    worst = max(found, key=lambda kind: found[kind] if found[kind] == found[kind] else float("inf"))
    return judged(name, what, found[worst], tolerance, f"largest: {worst}", fix)


def _share(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


# -------------------------------------------------------------------------------------------------------- single models


def merged_and_not(spec: Recipe, adapter: Path) -> Check:
    """The trained adapter beside its base and merged into it. Its B is drawn anew, so that it does something."""
    what = "the adapter beside the base, and merged into it"
    if not isinstance(spec.adapter, Lora):
        return not_tried("merge", what, "adapter: full trains the weights themselves")
    files = hub.resolve(spec.model.base, spec.model.revision)
    device = pick_device()
    model = load_model(files, attention=resolve_attention(spec.model.attention, device, "fp32"), device=device)
    still_dropout(model)
    ids_BT = torch.arange(5, 69, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        alone = model(input_ids=ids_BT, use_cache=False).logits.float().cpu()
        adapted = load_adapter(model, adapter)
        draw_b(adapted, 0.02, seed=1)
        beside = adapted(input_ids=ids_BT, use_cache=False).logits.float().cpu()
        inside = merge_adapter(adapted)(input_ids=ids_BT, use_cache=False).logits.float().cpu()
    effect = float((beside - alone).abs().max())
    measured = float((beside - inside).abs().max()) / effect if effect else float("inf")
    note = f"share of the adapter's effect on a logit, {effect:.3g}"
    fix = "export the adapter alone (export.merged: false), and report the model's name and the versions of peft and transformers"
    return judged("merge", what, measured, 10 * TOLERANCE, note, fix)


def evaluated_in_batches(spec: Recipe, dataset: Dataset) -> Check:
    """The loss of each row in one batch and alone; then greedy answers to the same prompts in one batch and alone."""
    what = "losses and greedy answers in one batch, and one by one"
    files = hub.resolve(spec.model.base, spec.model.revision)
    device = pick_device()
    attention = resolve_attention(spec.model.attention, device, "fp32")
    model = load_model(files, attention=attention, device=device, quantisation=spec.model.quantisation)
    examples = dataset.split("train").tolist()
    whole = int(dataset.lengths()[examples].max()) * len(examples)
    (one, _), (other, _) = (row_losses(model, dataset, examples, batch_tokens=tokens) for tokens in (whole, 1))
    off = np.abs(one - other) / np.maximum(np.abs(one), 1e-12)
    measured, note = float(off.max()), f"largest: the loss of row {dataset.row(examples[int(off.argmax())])}"
    items = [held.item for held in load_held_out(dataset) if held.item is not None]
    fix = "evaluate with evaluate.batch_size: 1, and report the model's name and its attention"
    if items and measured <= TOLERANCE:
        tokenizer = load_tokenizer(files, spec.model.template)
        answers = [
            generate_greedy(model, tokenizer, items, max_new_tokens=ANSWER_TOKENS, batch_size=size)
            for size in (len(items), 1)
        ]
        differing = [a.ids != b.ids for a, b in zip(*answers, strict=True)]
        note += f"; {len(items) - sum(differing)} of {len(items)} greedy answers equal"
        if any(differing):
            measured = 1.0
    return judged("evaluation batch", what, measured, TOLERANCE, note, fix)


# ------------------------------------------------------------------------------------------- documents and their neighbours


def attention_checks(spec: Recipe, dataset: Dataset) -> Iterator[Check]:
    """Each kind of attention that is installed: documents together, as training lays them, and alone."""
    device = pick_device()
    capability = capability_of(device)
    for implementation in reversed(installed(on_cpu=device.type != "cuda", precision="bf16", capability=capability)):
        name = f"attention {implementation}"
        try:
            yield from _attention_checks(spec, dataset, implementation, device)
        except TunesmithError as error:
            yield not_tried(name, "documents together, and alone", error.headline)
        gc.collect()


def _attention_checks(spec: Recipe, dataset: Dataset, implementation: str, device: torch.device) -> Iterator[Check]:
    is_flash = implementation in FLASH
    files = hub.resolve(spec.model.base, spec.model.revision)
    dtype, tolerance = ("bf16", LEAK_BF16) if is_flash else ("fp32", TOLERANCE)
    model = load_model(
        files, dtype=dtype, attention=implementation, device=device, quantisation=spec.model.quantisation
    )
    still_dropout(model)
    name = f"attention {implementation}"
    if getattr(model.config, "_attn_implementation", implementation) != implementation:
        yield not_tried(name, "documents together, and alone", "this model has no such attention")
        return
    documents = _documents(dataset)
    alone = [_nll(model, collate(dataset, [document])) for document in documents]
    by_positions = _packed_by_positions(model, dataset, documents, alone) if not is_flash else None
    layout = "rows" if spec.train.packing == "off" else choose_layout(model, int(dataset.lengths().max()))
    batch = collate(dataset, documents, layout)
    together = _nll(model, batch)
    changed = _nll(model, _with_other_start(batch, model, dataset.lengths()[documents[0]]))
    first = len(alone[0])
    largest = max(float(torch.cat(alone).abs().max()), 1e-6)
    off = float((together - torch.cat(alone)).abs().max()) / largest
    leaked = float((together - changed)[first:].abs().max()) / largest
    how = "laid end to end" if layout == "packed" else "in rows of their own, padded"
    note = (
        "a document feels its neighbour"
        if leaked > tolerance
        else f"after a change in the first document: {leaked:.1e}"
    )
    fix = "--set train.packing=off, and another --set model.attention; report the model's name"
    yield judged(name, f"documents {how}, and alone", max(off, leaked), tolerance, note, fix)
    if by_positions is not None and layout == "rows":
        what = "documents laid end to end with positions that begin anew, and alone"
        note = (
            "never used: it leaks between documents, so rows are padded" if by_positions > tolerance else "never used"
        )
        yield judged(f"{name}, end to end", what, by_positions, tolerance, note, "", used=False)


def _documents(dataset: Dataset) -> list[int]:
    """Four of unequal and of equal length, where there are such."""
    train = sorted(dataset.split("train").tolist(), key=lambda example: int(dataset.lengths()[example]))
    return list(dict.fromkeys([train[len(train) // 2], train[0], train[len(train) // 3], train[-1]]))


@torch.no_grad()
def _nll(model: nn.Module, batch: Batch) -> Tensor:
    """Of each learned token of a batch, in the order of its documents: [K]."""
    return learned_nll(model, batch.to(next(model.parameters()).device)).float().cpu()


def _with_other_start(batch: Batch, model: nn.Module, length: int) -> Batch:
    """The same batch with other ids in its first document; what is learned of the others stays."""
    ids_BT = batch.ids_BT.clone()
    first = ids_BT.view(-1)[: int(length)]
    first.copy_((first * 31 + 7) % model.get_input_embeddings().weight.shape[0])
    return replace(batch, ids_BT=ids_BT)


@torch.no_grad()
def _packed_by_positions(model: nn.Module, dataset: Dataset, documents: list[int], alone: list[Tensor]) -> float | None:
    """What packing would come to that tells a model of its documents by positions alone; None where it cannot be asked."""
    batch = collate(dataset, documents, "packed").to(next(model.parameters()).device)
    assert batch.lengths is not None
    try:
        told = {"position_ids": positions(batch.lengths).to(batch.ids_BT.device)[None], "use_cache": False}
        logits_KV = model(input_ids=batch.ids_BT, **told).logits[0][batch.places_K].float()
    except (TypeError, ValueError, RuntimeError):
        return None
    nll = nn.functional.cross_entropy(logits_KV, batch.targets_K, reduction="none").cpu()
    reference = torch.cat(alone)
    return float((nll - reference).abs().max()) / max(float(reference.abs().max()), 1e-6)
