"""Work in groups that the device's memory takes: a group that does not fit is cut in two and done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from tunesmith.errors import ModelError

Result = TypeVar("Result")


def in_fitting_groups(
    groups: Iterable[list[int]], work: Callable[[list[int]], Result], what: str
) -> Iterator[tuple[list[int], Result]]:
    """(group, what `work` made of it) of each group, or of its parts where the whole did not fit; the order is kept.

    Once a group did not fit, later ones are cut to the size that did before they are tried.
    what: the noun of one member, for the message. Raises ModelError EVL-012 when one member alone does not fit.
    Of several processes none may cut for itself, since their passes go together: there the error stays what it is.
    """
    most: int | None = None
    for group in groups:
        waiting = _cut(group, most)
        while waiting:
            part = waiting.pop(0)
            made = _try(work, part)
            if made is not None:
                yield part, made[0]
                continue
            if len(part) == 1:
                raise ModelError(
                    "EVL-012",
                    f"one {what} alone does not fit into the memory of the device beside the model",
                    expected="room for the model and for one row at a time",
                    fix="a lower data.max_tokens or evaluate.max_new_tokens; model.precision: bf16; or a larger device",
                )
            torch.cuda.empty_cache()
            most = (len(part) + 1) // 2
            waiting = [piece for rest in (part, *waiting) for piece in _cut(rest, most)]


def _try(work: Callable[[list[int]], Result], part: list[int]) -> tuple[Result] | None:
    """None when the device was out of memory; the failed attempt's tensors are gone when this returns."""
    try:
        return (work(part),)
    except torch.OutOfMemoryError:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise
        return None


def _cut(group: list[int], most: int | None) -> list[list[int]]:
    size = most or len(group)
    return [group[start : start + size] for start in range(0, len(group), size)]
