"""One row in the one form that everything after the reader sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """learn: None leaves it to the recipe's `data.learn`; False or True decides for this turn."""

    role: str
    content: str
    learn: bool | None = None

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        return plain if self.learn is None else {**plain, "learn": self.learn}


@dataclass(frozen=True)
class Example:
    """A chat, or plain text (`text` set, no messages). meta: other columns of the row that filters may ask for."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def num_characters(self) -> int:
        """Characters over all turns."""
        return len(self.text) if self.text is not None else sum(len(message.content) for message in self.messages)

    def content_hash(self) -> str:
        """16 bytes in hex: equal content, equal hash."""
        return _hash([self.text, [message.to_json() for message in self.messages]])

    def prompt_hash(self) -> str:
        """Hash of what is asked, in lower case with single blanks: what a leak is judged by."""
        asked = [self.text or ""] if self.text is not None else [m.content for m in self.prompt]
        return _hash([" ".join(part.lower().split()) for part in asked])

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn."""
        last = max((place for place, message in enumerate(self.messages) if message.role == "assistant"), default=0)
        return self.messages[:last]

    @property
    def answer(self) -> str | None:
        """The last assistant turn."""
        return next((message.content for message in reversed(self.messages) if message.role == "assistant"), None)

    def to_json(self) -> dict[str, Any]:
        if self.text is not None:
            return {"text": self.text}
        return {"messages": [message.to_json() for message in self.messages]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Example:
        if "text" in plain:
            return cls(text=plain["text"])
        return cls(tuple(Message(m["role"], m["content"], m.get("learn")) for m in plain["messages"]))


def _hash(content: Any) -> str:
    return hashlib.blake2b(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=16
    ).hexdigest()
