"""What is held out: the rows of the test parts, and what is asked of those that are chats."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.runs.dataset import Dataset

VALIDATION_PART = "validation"


@dataclass(frozen=True)
class Item:
    """One held-out prompt.

    row: id in the Dataset's ledger. part: name of the test source, or "test" or "validation". messages: the prompt's
    turns as [{role, content}]. expected: the right answer. prompt_ids: the prompt rendered and encoded, ready to go on.
    """

    row: int
    part: str
    messages: Sequence[dict[str, Any]]
    expected: str
    prompt_ids: Sequence[int]


@dataclass(frozen=True)
class HeldOut:
    """One held-out row. example: its index in the Dataset.

    item: what is asked; None where nothing is: plain text, or a chat whose prompt is empty under its template.
    """

    example: int
    row: int
    part: str
    item: Item | None


def load_held_out(
    dataset: Dataset, max_items: int | None = None, parts: Collection[str] | None = None
) -> list[HeldOut]:
    """The rows of the named parts (default: all test parts, or validation where there is no other), in their order.

    max_items: at most so many of each part, the first by the hash of their content, so that the choice depends neither
    on the order of the rows nor on the tokenizer, and stays when others are added.
    """
    examples = {dataset.row(example): example for example in range(dataset.num_examples)}
    entries = list(dataset.items())
    known = list(dict.fromkeys(entry["part"] for entry in entries))
    wanted = parts if parts is not None else [part for part in known if part != VALIDATION_PART] or known
    chosen: set[int] = set()
    for part in wanted:
        own = [entry for entry in entries if entry["part"] == part]
        if max_items is not None:
            own = sorted(own, key=_hash_order)[:max_items]
        chosen.update(entry["row"] for entry in own)
    return [_held_out(entry, examples[entry["row"]]) for entry in entries if entry["row"] in chosen]


def _held_out(entry: dict[str, Any], example: int) -> HeldOut:
    row, part = entry["row"], entry["part"]
    if not entry["prompt_ids"]:
        return HeldOut(example, row, part, None)
    item = Item(row, part, entry["messages"], entry["expected"] or "", entry["prompt_ids"])
    return HeldOut(example, row, part, item)


def _hash_order(entry: dict[str, Any]) -> tuple[str, int]:
    return hashlib.sha256(f"{entry['part']}:{entry['key']}".encode("utf-8", "surrogatepass")).hexdigest(), entry["row"]
