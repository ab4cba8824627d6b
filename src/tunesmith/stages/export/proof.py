"""The proof that what was exported is what was trained: logits row by row, greedy answers against evaluation's.

fp32: the greedy answers must be the same tokens. Below fp32 the same sum may be rounded another way, so a first differing
token counts as equal where the trained model is undecided: both tokens lie within the tolerance of the highest logit
(design decision 9).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.modeling.forward import Batch, collate, learned_logits
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.store import Artifact
from tunesmith.scoring.agreement import distance_below_top, first_difference
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import HeldOut, Item
from tunesmith.text.tokenizers import Tokenizer

# Spacing of the numbers at 1.0, and how many such steps of a row's largest logit its logits may move. A merge adds B*A to
# the weights once instead of to each output: the same sum, rounded elsewhere, in every layer. Seen with
# benchmarks/export_proof.py on models of 2 to 64 layers (CPU; its JSON is not stored yet): a right merge moves fp32 logits by
# at most 43 steps, one with a small mistake by thousands. Below fp32 it is 9 steps at most, and a small mistake may hide
# there: so the merge itself is proven in fp32 wherever that fits into memory. The limits leave room above what was seen.
ROUNDING = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
STEPS = {"fp32": 256.0, "fp16": 16.0, "bf16": 16.0}
MAX_ROWS = 64
MAX_MERGE_ROWS, MAX_MERGE_POSITIONS = 16, 32  # their logits are kept: 0.3 GB for a vocabulary of 150,000
MAX_ANSWERS = 64
SHOWN = 5


@dataclass(frozen=True)
class Asked:
    """A held-out chat and what the trained model answered in evaluation. ids: without the stop token."""

    item: Item
    ids: list[int]
    text: str


def prove(
    trained: nn.Module,
    exported: nn.Module,
    dataset: Dataset,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    *,
    precision: str,
    max_new_tokens: int,
    batch_size: int,
    check: Callable[[], None],
) -> dict[str, Any]:
    """parity.json of an export: exported (read back from its files) beside trained (as evaluation asked it).

    precision: the coarser number format of the two. check: called often; what it raises ends the proof.
    Raises ModelError EXP-003 when a row's logits differ by more than the tolerance, EXP-006 when an answer does.
    """
    logits = _compare_logits(trained, exported, dataset, precision, check)
    found = generate_greedy(
        exported,
        tokenizer,
        [question.item for question in asked],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        on_step=check,
    )
    differences = []
    for question, answer in zip(asked, found, strict=True):
        if answer.ids != question.ids:
            differences.append(_difference(trained, tokenizer, question, answer.ids, answer.text, precision))
    different = [entry for entry in differences if not entry["counts_as_equal"]]
    equal = len(asked) - len(different)
    differences.sort(key=lambda entry: entry["counts_as_equal"])
    parity = {
        "what": "export: files read back vs the trained model",
        "n": len(asked),
        "equal": equal,
        "identical": len(asked) - len(differences),
        "share": equal / len(asked) if asked else None,
        **logits,
        "precision": precision,
        "rule": _rule(precision),
        "verdict": "equal" if asked and not differences else "within tolerance",
        "differences": differences[:SHOWN],
    }
    if different:
        raise _other_answers(different, len(asked), parity["rule"])
    return parity


class MergeProof:
    """Merging in one number format: what the model said with its adapter beside it, against what it says merged.

    Made before the merge, which changes the model in place.
    """

    def __init__(self, trained: nn.Module, dataset: Dataset, precision: str) -> None:
        self.precision, self.dataset = precision, dataset
        self.device = next(trained.parameters()).device
        self.examples = rows_to_compare(dataset)[:: -(-MAX_ROWS // MAX_MERGE_ROWS)]
        self.batches = [_few_positions(collate(dataset, [example]).to(self.device)) for example in self.examples]
        self.before = self._logits(trained)

    @torch.no_grad()
    def _logits(self, model: nn.Module) -> list[Tensor]:
        return [learned_logits(model, batch).cpu() for batch in self.batches]

    def compare(self, merged: nn.Module) -> dict[str, Any]:
        """Rows and the largest difference, in rounding steps. Raises ModelError EXP-003 naming the row."""
        largest = 0.0
        for example, before_KV, after_KV in zip(self.examples, self.before, self._logits(merged), strict=True):
            difference = _difference_of(after_KV, before_KV, self.precision, self.dataset.row(example), "merged")
            largest = max(largest, difference.steps)
        return {
            "precision": self.precision,
            "rows": len(self.examples),
            "steps": largest,
            "limit": STEPS[self.precision],
        }


def _few_positions(batch: Batch) -> Batch:
    names = ("places_K", "targets_K", "weights_K")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[:MAX_MERGE_POSITIONS] for name in names})


def tolerance(precision: str, largest_logit: float) -> float:
    """How far the logits of a row may move, in logits."""
    return STEPS[precision] * ROUNDING[precision] * largest_logit


def coarser(*precisions: str) -> str:
    return max(precisions, key=ROUNDING.__getitem__)


# -------------------------------------------------------------------------------------------------------------- logits


@torch.no_grad()
def _compare_logits(
    trained: nn.Module, exported: nn.Module, dataset: Dataset, precision: str, check: Callable[[], None]
) -> dict[str, Any]:
    """Both models on the same rows, at the positions that are learned. Raises ModelError EXP-003 naming the row."""
    device = next(exported.parameters()).device
    examples = rows_to_compare(dataset)
    worst = Difference(0.0, 0.0, -1.0, None)
    positions = same_top = 0
    moved, taught = 0.0, 0.0  # summed mean squares: what export changed, what training changed
    for example in examples:
        check()
        batch = collate(dataset, [example]).to(device)
        ours_KV, theirs_KV = learned_logits(exported, batch), learned_logits(trained, batch)
        found = _difference_of(ours_KV, theirs_KV, precision, dataset.row(example), "exported")
        worst = max(worst, found, key=lambda difference: difference.steps)
        positions += len(ours_KV)
        same_top += int((ours_KV.argmax(-1) == theirs_KV.argmax(-1)).sum())
        moved += _square(ours_KV - theirs_KV)
        taught += _square(base_logits(trained, batch) - theirs_KV) if hasattr(trained, "disable_adapter") else math.nan
    return {
        "max_abs_logit_difference": worst.largest,
        "tolerance": worst.limit,
        "steps": worst.steps,
        "worst_row": worst.row,
        "rows": len(examples),
        "positions": positions,
        "same_top_token": same_top,
        # How far export moved the logits, as a share of how far training had (root mean square); null where no adapter
        # can be taken off to see it.
        "moved_share": math.sqrt(moved / taught) if taught > 0 else None,
    }


@dataclass(frozen=True)
class Difference:
    """Of one row's logits: the largest, its limit, and the same in rounding steps of the row's largest logit."""

    largest: float
    limit: float
    steps: float
    row: int | None


def _difference_of(ours_KV: Tensor, theirs_KV: Tensor, precision: str, row: int, who: str) -> Difference:
    """Raises ModelError EXP-003 when a logit moved by more than the tolerance."""
    largest, scale = float((ours_KV - theirs_KV).abs().max()), float(theirs_KV.abs().max())
    limit = tolerance(precision, scale)
    if not largest <= limit:  # a NaN is not
        raise ModelError(
            "EXP-003",
            f"the {who} model's logits differ from the trained one's by {largest:.3g} on row {row}",
            expected=f"at most {limit:.3g} ({precision}: {STEPS[precision]:g} rounding steps of the row's largest logit)",
            fix="nothing was exported; export.merged: false exports the adapter alone; please report this with the base model's name",
        )
    return Difference(largest, limit, largest / (ROUNDING[precision] * scale) if scale else 0.0, row)


def rows_to_compare(dataset: Dataset) -> list[int]:
    """Up to MAX_ROWS examples with something to learn, spread evenly over the held-out ones; trained ones where none is."""
    learned = dataset.learned_weights() > 0
    held_out = np.concatenate([dataset.split("test"), dataset.split("validation")])
    examples = next((e[learned[e]] for e in (held_out, dataset.split("train")) if learned[e].any()), held_out)
    places = np.unique(np.linspace(0, len(examples) - 1, min(MAX_ROWS, len(examples))).astype(np.int64))
    return examples[places].tolist()


def base_logits(trained: nn.Module, batch: Batch) -> Tensor:
    """What the model says without its adapter."""
    without: contextlib.AbstractContextManager[None] = trained.disable_adapter()
    with without:
        return learned_logits(trained, batch)


def _square(values: Tensor) -> float:
    return float(values.double().square().mean())


# ------------------------------------------------------------------------------------------------------------- answers


def load_asked(evaluation: Artifact, rows: Sequence[HeldOut]) -> list[Asked]:
    """Up to MAX_ANSWERS of evaluation's answers, spread evenly over them; rows: what evaluation asked."""
    with (evaluation.path / "answers.jsonl").open("rb") as file:
        entries = {entry["row"]: entry for entry in map(json.loads, file)}
    items = [row.item for row in rows if row.item is not None and row.row in entries]
    places = np.unique(np.linspace(0, len(items) - 1, min(MAX_ANSWERS, len(items))).astype(np.int64))
    return [
        Asked(items[place], entries[items[place].row]["tuned_ids"], entries[items[place].row]["tuned"])
        for place in places
    ]


def _difference(
    trained: nn.Module, tokenizer: Tokenizer, question: Asked, ids: list[int], text: str, precision: str
) -> dict[str, Any]:
    """One answer that is not identical, and whether the trained model was undecided where they part."""
    prefix, one, other = first_difference(question.ids, ids)
    whole = [*question.item.prompt_ids, *prefix]
    distance, largest = distance_below_top(trained, whole, (one, other), tokenizer.stop_ids)
    limit = tolerance(precision, largest)
    return {
        "row": question.item.row,
        "part": question.item.part,
        "trained": question.text,
        "exported": text,
        "token": len(prefix),
        "margin": distance,
        "tolerance": limit,
        "counts_as_equal": precision != "fp32" and distance <= limit,
    }


def _other_answers(different: list[dict[str, Any]], asked: int, rule: str) -> ModelError:
    first = different[0]
    return ModelError(
        "EXP-006",
        f"the exported model answers {len(different)} of {asked} prompts otherwise than the trained one. First: "
        f"{first['exported'][:200]!r}, and not {first['trained'][:200]!r}; at its token {first['token']} the trained model's "
        f"two choices lie {first['margin']:.3g} apart",
        where=f"{first['part']}, row {first['row']}",
        expected=rule,
        fix="nothing was exported; export.merged: false exports the adapter alone, which is what was evaluated, byte for byte",
    )


def _rule(precision: str) -> str:
    if precision == "fp32":
        return "fp32: greedy answers identical, token for token"
    return (
        f"{precision}: greedy answers identical, or at the first differing token both choices within "
        f"{STEPS[precision]:g} rounding steps of the trained model's highest logit"
    )


def write(folder: Path, parity: dict[str, Any]) -> None:
    durable.write_json(folder / "parity.json", parity)
