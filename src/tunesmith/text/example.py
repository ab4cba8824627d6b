"""One row in the one form that everything after the reader sees, and the columns that it is stored as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ROLES = ("system", "user", "assistant", "tool")
SYSTEM, USER, ASSISTANT, TOOL, TEXT = range(5)  # a role in columns; TEXT: plain text, no chat
ROLE_CODES = {role: code for code, role in enumerate(ROLES)}

# What a message may hold besides role and content; in columns it stands in `extra["turns"]`.
PARTICULARS = ("learn", "weight", "reasoning", "tool_calls", "name", "tool_call_id")


@dataclass(frozen=True)
class Message:
    """One turn.

    learn: None leaves it to the recipe's `data.learn`; False or True decides for this turn.
    weight: of its learned tokens in the loss; None is 1. reasoning: what was thought before the content.
    tool_calls: [{"type": "function", "function": {"name", "arguments": an object}}, ...], as OpenAI writes them; an id stays.
    """

    role: str
    content: str
    learn: bool | None = None
    weight: float | None = None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.particulars()}

    def particulars(self) -> dict[str, Any]:
        """What it holds besides role and content."""
        found = {name: getattr(self, name) for name in PARTICULARS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value is not None and value != ()
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Message:
        calls = tuple(plain.get("tool_calls", ()))
        return cls(plain["role"], plain["content"], **{**_particulars_of(plain), "tool_calls": calls})


@dataclass(frozen=True)
class Answer:
    """One of several answers to a prompt: of a pair, one that was liked or not, or one with a score."""

    messages: tuple[Message, ...]
    role: Literal["chosen", "rejected", "candidate"]
    label: bool | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        plain = {"role": self.role, "messages": [message.to_json() for message in self.messages]}
        judged = {"label": self.label, "score": self.score}
        return {**plain, **{name: value for name, value in judged.items() if value is not None}}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Answer:
        messages = tuple(map(Message.from_json, plain["messages"]))
        return cls(messages, plain["role"], plain.get("label"), plain.get("score"))


@dataclass(frozen=True)
class Example:
    """A chat, or plain text (`text` set, no messages), or a prompt with `answers` (`messages` is the prompt they share).

    tools: the functions on offer, as OpenAI writes them. meta: other columns of the row that filters may ask for.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    answers: tuple[Answer, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def num_characters(self) -> int:
        """Characters over all turns."""
        return len(self.text) if self.text is not None else sum(len(message.content) for message in self.messages)

    def content_hash(self) -> str:
        """16 bytes in hex: equal content, equal hash."""
        from tunesmith.text.keys import content_key  # not above: a machine that only trains has no orjson

        return content_key(*self.to_columns()[:3]).hex()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn; all of them where the answers stand apart."""
        if self.answers:
            return self.messages
        last = max((place for place, message in enumerate(self.messages) if message.role == "assistant"), default=0)
        return self.messages[:last]

    @property
    def answer(self) -> str | None:
        """The last assistant turn."""
        return next((message.content for message in reversed(self.messages) if message.role == "assistant"), None)

    # ------------------------------------------------------------------------------------------------------- columns

    def to_columns(self) -> tuple[list[int], list[str], dict[str, Any] | None, dict[str, Any] | None]:
        """(roles, contents, extra, meta); the inverse of `from_columns`.

        extra: {"turns": {"place": {learn, weight, ...}}, "tools": [...], "answers": [...]}, each only where there is one.
        """
        if self.text is not None:
            return [TEXT], [self.text], None, self.meta or None
        turns = {str(place): found for place, turn in enumerate(self.messages) if (found := turn.particulars())}
        answers = [answer.to_json() for answer in self.answers]
        extra = {"turns": turns, "tools": list(self.tools), "answers": answers}
        return (
            [ROLE_CODES[message.role] for message in self.messages],
            [message.content for message in self.messages],
            {name: value for name, value in extra.items() if value} or None,
            self.meta or None,
        )

    @classmethod
    def from_columns(
        cls,
        roles: Sequence[int],
        contents: Sequence[str],
        extra: dict[str, Any] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> Example:
        """roles: places in ROLES, or one TEXT. extra, meta: parsed."""
        if len(roles) == 1 and roles[0] == TEXT:
            return cls(text=contents[0], meta=meta or {})
        extra = extra or {}
        turns = extra.get("turns", {})
        messages = tuple(
            Message.from_json({"role": ROLES[role], "content": content, **turns.get(str(place), {})})
            for place, (role, content) in enumerate(zip(roles, contents, strict=True))
        )
        answers = tuple(map(Answer.from_json, extra.get("answers", ())))
        return cls(messages, None, tuple(extra.get("tools", ())), answers, meta or {})

    def to_json(self) -> dict[str, Any]:
        if self.text is not None:
            return {"text": self.text}
        plain: dict[str, Any] = {"messages": [message.to_json() for message in self.messages]}
        if self.tools:
            plain["tools"] = list(self.tools)
        if self.answers:
            plain["answers"] = [answer.to_json() for answer in self.answers]
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Example:
        if "text" in plain:
            return cls(text=plain["text"])
        messages = tuple(map(Message.from_json, plain["messages"]))
        answers = tuple(map(Answer.from_json, plain.get("answers", ())))
        return cls(messages, None, tuple(plain.get("tools", ())), answers)


def _particulars_of(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: plain[name] for name in PARTICULARS if name in plain}
