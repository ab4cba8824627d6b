"""What is asked and what is expected: the held-out prompts of a Dataset, by part."""

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


def load_items(dataset: Dataset, parts: Collection[str] | None = None, max_items: int | None = None) -> list[Item]:
    """The items of the named parts (default: all test parts, or validation where there is no test part).

    max_items: at most so many of each part, the first by the hash of their prompt and expected answer, so that the
    choice does not depend on the order of the rows and stays when others are added.
    Returns: items in the order of the Dataset.
    """
    items = [
        Item(item["row"], item["part"], item["messages"], item["expected"] or "", item["prompt_ids"])
        for item in dataset.items()
    ]
    wanted = set(held_out_parts(items) if parts is None else parts)
    items = [item for item in items if item.part in wanted]
    if max_items is None:
        return items
    kept: set[int] = set()
    for part in wanted:
        ranked = sorted((item for item in items if item.part == part), key=hash_order)
        kept.update(id(item) for item in ranked[:max_items])
    return [item for item in items if id(item) in kept]


def held_out_parts(items: Sequence[Item]) -> list[str]:
    """The test parts in order of appearance; the validation part only where there is no other."""
    parts = list(dict.fromkeys(item.part for item in items))
    return [part for part in parts if part != VALIDATION_PART] or parts


def hash_order(item: Item) -> tuple[str, int]:
    """A key that sorts items by content, not by position."""
    content = repr((item.part, list(item.prompt_ids), item.expected)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest(), item.row
