"""What a tokenizer.json may ask for: no pattern that runs wild, no text that grows, no vocabulary without end.

It comes with a model, so a stranger wrote it. Its patterns run in Rust, where nothing can stop them, and a wild one ends in a
panic in the middle of the rows; so they are judged before: by what is written, and by trying them on texts that grow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.hub import read_json
from tunesmith.hub.trusted import walk

MAX_BYTES = 128 * 2**20  # the largest in use has 33 MB (Gemma 3)
MAX_PATTERN = 20_000  # characters; those in use have below 500
MAX_ADDED, MAX_ADDED_CHARACTERS = 32_768, 1000  # Gemma 3 adds 6,414
MAX_ID = 2**24
MAX_GROWTH = 64  # characters that the normaliser makes of one
SLOW_SECONDS = 0.25  # of processor time for a text of a few hundred characters; honest patterns take a thousandth
GROWING = [int(16 * 1.5**step) for step in range(9)]  # to 410 characters
LETTERS = ("a", " ", "\n", "1", "A", "!", "é", "字", "a ", "1a", "\r\n", "_", "\t")
UNBOUNDED = re.compile(r"[*+]|\{\d+,\}|\{\d{3,}\}")


def refuse_wild(folder: Path, source: str) -> None:
    """Raises ModelError TXT-025 for a tokenizer.json beyond a limit. No file: nothing to say."""
    path = folder / "tokenizer.json"
    if path.is_file():
        told = path.stat()
        if why := _trouble(path, told.st_ino, told.st_size, told.st_mtime_ns):
            raise wild(source, why)


def wild(source: str, why: str) -> ModelError:
    return ModelError(
        "TXT-025",
        f"the tokenizer of {source} is refused: {why}",
        where="model.base",
        expected="a tokenizer whose work is bounded by the text it is given",
        fix="fetch tokenizer.json from the model's authors; do not use this one",
    )


@lru_cache(maxsize=16)
def _trouble(path: Path, inode: int, size: int, modified_ns: int) -> str:
    """What is wrong with this state of the file; "" for nothing. Loaded once in each stage, it is looked at once."""
    try:
        content = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        return f"tokenizer.json cannot be read: {error}"
    if not isinstance(content, dict):
        return "tokenizer.json is no object"
    return next(_troubles(content), "")


def _troubles(content: dict[str, Any]) -> Iterator[str]:
    for _, name, value in walk({key: value for key, value in content.items() if key not in ("model", "added_tokens")}):
        if name == "Regex" and isinstance(value, str):
            if len(value) > MAX_PATTERN:
                yield f"a pattern of {len(value):,} characters, at most {MAX_PATTERN:,}"
            elif repeats_repetition(value):
                yield f"the pattern {value[:80]!r} repeats what repeats, which takes time without end"
            elif re.search(r"\\[1-9]|\\k<", value):
                yield f"the pattern {value[:80]!r} looks back at what it found, which takes time without end"
    growth = _growth(content.get("normalizer"))
    if growth > MAX_GROWTH:
        yield f"its normaliser makes {growth:,.0f} characters of one, at most {MAX_GROWTH}"
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        yield f"{len(added):,} added tokens, at most {MAX_ADDED:,}"
        return
    for token in added:
        text, id = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(text, str) or not 0 < len(text) <= MAX_ADDED_CHARACTERS:
            yield (
                f"an added token of {len(text):,} characters"
                if isinstance(text, str)
                else "an added token without a text"
            )
        elif not isinstance(id, int) or not 0 <= id < MAX_ID:
            yield f"the added token {text[:40]!r} has the id {id}"


def _growth(node: Any) -> float:
    """Characters that a normaliser makes of one at most: those in a row multiply."""
    if not isinstance(node, dict):
        return 1.0
    grown = 1.0
    for inner in node.get("normalizers") or ():
        grown *= _growth(inner)
        if grown > 1e9:
            break
    if node.get("type") == "Replace":
        pattern = node.get("pattern")
        replaced = len(pattern["String"]) if isinstance(pattern, dict) and isinstance(pattern.get("String"), str) else 1
        grown *= max(1.0, len(str(node.get("content", ""))) / max(1, replaced))
    elif node.get("type") == "Prepend":
        grown *= 1 + len(str(node.get("prepend", "")))
    return grown


def repeats_repetition(pattern: str) -> bool:
    """Whether a group that is repeated without bound holds something repeated without bound: (a+)+, (a|b*)*, ((a+)?)+.

    Possessive and atomic repetition counts as repetition too: no published tokenizer nests them.
    """
    holds = [False]  # of each open group: something in it is repeated
    place, length = 0, len(pattern)
    while place < length:
        letter = pattern[place]
        inner = False
        if letter == "\\":
            place += 2
            if pattern[place - 1 : place] in ("p", "P", "x", "k") and pattern[place : place + 1] == "{":
                place = pattern.find("}", place) + 1 or length
        elif letter == "[":
            place = _class_end(pattern, place)
        elif letter == "(":
            holds.append(False)
            place += 1
            continue
        elif letter == ")":
            inner = holds.pop() if len(holds) > 1 else False
            place += 1
        else:
            place += 1
        repeated = UNBOUNDED.match(pattern, place)
        if repeated and inner:
            return True
        if repeated:
            place = repeated.end()
            while pattern[place : place + 1] in ("+", "?"):  # possessive, lazy
                place += 1
        holds[-1] = holds[-1] or inner or bool(repeated)
    return False


def _class_end(pattern: str, place: int) -> int:
    """Behind a [...], which may hold classes."""
    depth, place = 1, place + 1
    if pattern[place : place + 1] == "^":
        place += 1
    if pattern[place : place + 1] == "]":
        place += 1
    while place < len(pattern) and depth:
        if pattern[place] == "\\":
            place += 1
        elif pattern[place] == "[":
            depth += 1
        elif pattern[place] == "]":
            depth -= 1
        place += 1
    return place


def refuse_slow(backend: Any, source: str) -> None:
    """Tries texts that grow letter by letter. Raises ModelError TXT-025 where one takes long, grows, or ends in a panic."""
    for letter in LETTERS:
        for size in GROWING:
            text = (letter * size)[:size] + "\x01"
            started = time.thread_time()
            with answering_panics(source):
                ids = backend.encode(text, add_special_tokens=False).ids
            if time.thread_time() - started > SLOW_SECONDS:
                raise wild(source, f"{size} times {letter!r} take it more than {SLOW_SECONDS} s")
            if len(ids) > MAX_GROWTH * (len(text) + 1):
                raise wild(source, f"it makes {len(ids):,} tokens of {len(text)} characters")


class answering_panics:
    """Within the block a panic of the Rust library, which is no Exception, is an answer about the tokenizer."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if is_panic(error):
            raise wild(self.source, str(error).splitlines()[0][:200]) from error


def is_panic(error: BaseException | None) -> bool:
    """Of PyO3: it names no class that could be imported."""
    return type(error).__name__ == "PanicException"
