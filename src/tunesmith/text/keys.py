"""Keys of an example from its columns: equal content has an equal key, and an equal question an equal prompt key."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import orjson
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from tunesmith.text.example import ASSISTANT, TEXT


def content_key(roles: Sequence[int], contents: Sequence[str], extra: dict[str, Any] | None = None) -> bytes:
    """16 bytes (XXH3-128) of roles, contents and extra. Contents hold whole Unicode characters (the formats see to it).

    Of all contents, then of each turn its role (a byte) and its size in bytes (four, little-endian), so that no two rows are
    written alike; extra decides the seed.
    """
    texts = [content.encode() for content in contents]
    turns = struct.pack(
        "<" + "Bi" * len(texts), *(number for turn in zip(roles, map(len, texts), strict=True) for number in turn)
    )
    seed = xxh3_64_intdigest(orjson.dumps(extra, option=orjson.OPT_SORT_KEYS)) if extra else 0
    return xxh3_128_digest(b"".join(texts) + turns, seed)


def prompt_key(roles: Sequence[int], contents: Sequence[str], extra: dict[str, Any] | None = None) -> bytes:
    """16 bytes of what is asked, in lower case with single blanks: what a leak is judged by.

    Asked are the turns before the last answer; all turns where the answers stand in `extra`; a text whole.
    """
    asked = contents[:1] if len(roles) == 2 and not extra else contents[: num_asked(roles, extra)]
    return xxh3_128_digest(orjson.dumps([plain_text(text) for text in asked]))


def plain_text(text: str) -> str:
    """In lower case, with single blanks."""
    text = text.lower()
    # Most questions are one line of ASCII: where there is no white space but single blanks, nothing is to be cut and joined.
    if text.isascii() and not (
        "\n" in text or "\t" in text or "\r" in text or "\x0b" in text or "\x0c" in text or "\x1c" in text
        or "\x1d" in text or "\x1e" in text or "\x1f" in text or "  " in text
    ):  # fmt: skip
        return text.strip()
    return " ".join(text.split())


def num_asked(roles: Sequence[int], extra: dict[str, Any] | None = None) -> int:
    """How many of the turns are the question."""
    if not roles or roles[0] == TEXT or (extra and "answers" in extra):
        return len(roles)
    return max((place for place, role in enumerate(roles) if role == ASSISTANT), default=0)
