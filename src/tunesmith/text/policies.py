"""Which turns are learned, and how much each counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.text.example import ROLES, Message

# "all" assistant turns, the "last" one, or the roles whose turns are learned: `{"roles": ["assistant", "tool"]}`.
Learn = Any


def roles_of(learn: Learn) -> tuple[str, ...]:
    """The roles whose turns are learned."""
    if isinstance(learn, str):
        assert learn in ("all", "last"), learn
        return ("assistant",)
    roles = learn["roles"] if isinstance(learn, dict) else getattr(learn, "roles", learn)
    assert roles
    assert set(roles) <= set(ROLES), roles
    return tuple(roles)


def wanted(messages: Sequence[Message], learn: Learn) -> dict[int, float]:
    """Place -> weight of the turns that are learned: as each turn says itself (learn, weight), else as the recipe says."""
    roles = roles_of(learn)
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    out: dict[int, float] = {}
    for place, message in enumerate(messages):
        weight = 1.0 if message.weight is None else float(message.weight)
        chosen = message.learn
        if chosen is None:
            chosen = message.role in roles and (learn != "last" or place == last)
        if chosen and weight > 0:
            out[place] = weight
    return out
