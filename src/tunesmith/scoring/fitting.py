"""Work in groups that the device's memory takes: a group that does not fit is cut in two and done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tunesmith.errors import ModelError
from tunesmith.modeling.out_of_memory import is_out_of_memory, release_memory

Result = TypeVar("Result")


def in_fitting_groups(
    groups: Iterable[list[int]],
    work: Callable[[list[int]], Result],
    name: Callable[[int], str],
    *,
    together: bool = False,
) -> Iterator[tuple[list[int], Result]]:
    """(group, what `work` made of it) of each group, or of its parts where the whole did not fit; the order is kept.

    Once a group did not fit, later ones are cut to the size that did before they are tried.
    name: of one member, for the message. together: the processes' passes go together, so that none may cut for itself:
    then the error stays what it is. Raises ModelError EVL-012 when one member alone does not fit.
    """
    most: int | None = None
    for group in groups:
        waiting = _cut(group, most)
        while waiting:
            part = waiting.pop(0)
            made = _try(work, part, together)
            if made is not None:
                yield part, made[0]
                continue
            if len(part) == 1:
                raise ModelError(
                    "EVL-012",
                    f"{name(part[0])} alone does not fit into the memory of the device beside the model",
                    expected="room for the model and for one row at a time",
                    fix="a lower data.max_tokens or evaluate.max_new_tokens; model.precision: bf16; or a larger device",
                )
            release_memory()
            most = (len(part) + 1) // 2
            waiting = [piece for rest in (part, *waiting) for piece in _cut(rest, most)]


def _try(work: Callable[[list[int]], Result], part: list[int], together: bool) -> tuple[Result] | None:
    """None when memory ran out; the failed attempt's tensors are gone when this returns."""
    try:
        return (work(part),)
    except (RuntimeError, MemoryError) as error:
        if together or not is_out_of_memory(error):
            raise
        return None


def _cut(group: list[int], most: int | None) -> list[list[int]]:
    size = most or len(group)
    return [group[start : start + size] for start in range(0, len(group), size)]
