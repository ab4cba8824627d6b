"""Shapes of chats: the pieces that every chat of a shape is laid together from, compiled once from the chat template.

A shape is the order of the roles, what single turns say about learning, and the answers to what the template asks about
contents (`text.literal`). Its pieces come from the slow way itself, `Tokenizer.encode_example` and `pieces`, on marks
instead of contents, and are compared with it on real rows before they are used. A shape holds for contents without control
tokens; others are encoded in other pieces.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tunesmith.text.example import Example
from tunesmith.text.literal import Change, Look, NotLiteral, apply, looks_of
from tunesmith.text.policies import Learn
from tunesmith.text.templates import TemplateError
from tunesmith.text.tokenizers import Piece, Tokenizer

VARIANTS = 64  # answers to looks that are compiled for one order of roles; rows beyond go row by row
# Characters that any filter which is not told from outside would change.
MARK = "Aé\"'\\&\n\tß\u27e6shape-{}\u27e7ß\t\n&\\'\"éZ"
MARKED = re.compile("\u27e6shape-(\\d+)\u27e7")
# Both edges first: what is stripped on one side only must not look like what is stripped on both.
BLANKS = (" \n ", "\n", " ", "")


@dataclass(frozen=True)
class Part:
    """Scaffold (`text`), or the content of the turn at `place` after `change`."""

    text: str
    place: int | None = None
    change: Change = ()

    def fill(self, contents: Sequence[str]) -> str:
        return self.text if self.place is None else apply(self.change, contents[self.place])


@dataclass(frozen=True)
class ShapePiece:
    """What is encoded at once. weight: in the loss, 0: not learned. guard: put in front, and its ids taken off again."""

    parts: tuple[Part, ...]
    weight: float
    guard: str


Shape = tuple[ShapePiece, ...]


@dataclass
class Family:
    """Chats of one order of roles and learning.

    example: one of them. looks: what the template asks about contents, as far as known. variants: answers to the looks ->
    shape, or None: row by row. seen: how many rows came before a variant was compiled.
    """

    example: Example
    looks: list[Look] = field(default_factory=list)
    variants: dict[bytes, Shape | None] = field(default_factory=dict)
    seen: dict[bytes, int] = field(default_factory=dict)


class MoreLooks(Exception):
    """The template asks what was not known yet."""


def compile_shape(tokenizer: Tokenizer, learn: Learn, family: Family, answers: Sequence[bool]) -> Shape | None:
    """The pieces of chats with these answers; None where they do not follow from the shape.

    Raises MoreLooks after adding to family.looks.
    """
    wanted = dict(zip(family.looks, answers, strict=True))
    try:
        marked = with_contents(family.example, _marks(family.example, wanted))
        if family.example.text is None:
            _ask(tokenizer, family, marked, wanted)
        pieces, weights = tokenizer.pieces(tokenizer.encode_example(marked, learn))
        return _shape(tokenizer, pieces, weights, marked, wanted)
    except (NotLiteral, TemplateError):
        return None


def with_contents(example: Example, contents: Sequence[str]) -> Example:
    if example.text is not None:
        return replace(example, text=contents[0])
    turns = zip(example.messages, contents, strict=True)
    return replace(example, messages=tuple(replace(message, content=content) for message, content in turns))


def contents_of(example: Example) -> list[str]:
    return [example.text] if example.text is not None else [message.content for message in example.messages]


def is_equal(shape: Shape, contents: Sequence[str], pieces: Sequence[Piece], weights: Sequence[float]) -> bool:
    """Does the shape give these pieces, which the slow way made of these contents."""
    ours = [("".join(part.fill(contents) for part in piece.parts), piece.weight) for piece in shape]
    theirs = [(piece.text, weight) for piece, weight in zip(pieces, weights, strict=True)]
    return ours == theirs and not any(piece.blind for piece in pieces)


def guard_of(tokenizer: Tokenizer, piece: Piece) -> str:
    """What a tokenizer that knows a text's start gets in front of a piece; as `Tokenizer._encode_inside`."""
    if not tokenizer._sticky or not piece.behind:
        return ""
    pattern = tokenizer._control_pattern
    ends = [match for match in pattern.finditer(piece.behind) if match.end() == len(piece.behind)] if pattern else []
    return ends[-1].group() if ends else "\n"


def _ask(tokenizer: Tokenizer, family: Family, marked: Example, wanted: dict[Look, bool]) -> None:
    found = looks_of(tokenizer.template, marked.messages)
    new = [look for look in found if look not in wanted]
    if new:
        family.looks += new
        raise MoreLooks
    if any(found[look] != wanted[look] for look in found):
        raise NotLiteral("no mark gives the same answers")


def _marks(example: Example, wanted: dict[Look, bool]) -> list[str]:
    count = 1 if example.text is not None else len(example.messages)
    return [_mark(place, {look: yes for look, yes in wanted.items() if look.place == place}) for place in range(count)]


def _mark(place: int, wanted: dict[Look, bool]) -> str:
    """A text that answers the looks at its place as wanted and is found again in the rendered chat."""

    def said(kind: str) -> list[str]:
        return [look.what for look, yes in wanted.items() if yes and look.kind == kind and look.what]

    begins, ends = max(said("begins"), key=len, default=""), max(said("ends"), key=len, default="")
    held = "".join(dict.fromkeys(said("holds")))
    middle = f"{begins}{MARK.format(place)}{held}{ends}"
    for before, behind in itertools.product(BLANKS, BLANKS):
        mark = f"{before}{middle}{behind}"
        if all(look.answer(mark) == yes for look, yes in wanted.items()):
            return mark
    raise NotLiteral("no mark gives these answers")


def _shape(
    tokenizer: Tokenizer, pieces: Sequence[Piece], weights: Sequence[float], marked: Example, wanted: dict[Look, bool]
) -> Shape:
    """Pieces of marks as parts. Raises NotLiteral where a mark does not stand in them as it was given, or stripped."""
    marks = contents_of(marked)
    forms: list[dict[str, Change]] = [{mark: ()} for mark in marks]
    for look in wanted:
        if look.kind == "changes":
            forms[look.place].setdefault(apply(look.change, marks[look.place]), look.change)
    used: dict[int, Change] = {}
    out = []
    for piece, weight in zip(pieces, weights, strict=True):
        if piece.blind:
            raise NotLiteral("a content is encoded apart")
        parts = tuple(_parts(piece.text, forms))
        for part in parts:
            if part.place is not None and used.setdefault(part.place, part.change) != part.change:
                raise NotLiteral("a content is printed in two ways")
        out.append(ShapePiece(parts, weight, guard_of(tokenizer, piece)))
    return tuple(out)


def _parts(text: str, forms: Sequence[dict[str, Change]]) -> list[Part]:
    """A text with marks, cut into scaffold and contents."""
    parts: list[Part] = []
    done = 0
    for match in MARKED.finditer(text):
        place = int(match.group(1))
        for form, change in sorted(forms[place].items(), key=lambda item: -len(item[0])):
            start = match.start() - form.index(match.group())
            if start >= done and text.startswith(form, start):
                parts += [Part(text[done:start]), Part("", place, change)]
                done = start + len(form)
                break
        else:
            raise NotLiteral("a content is not printed as it is")
    return [part for part in [*parts, Part(text[done:])] if part.text or part.place is not None]


# ------------------------------------------------------------------------------------------------- answers for many rows


def pack(answers: np.ndarray) -> np.ndarray:
    """bool [R, L] -> one value a row, equal where all answers are equal: void [R]."""
    bits = np.packbits(answers, axis=1) if answers.shape[1] else np.zeros((len(answers), 1), np.uint8)
    return np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1]))).reshape(-1)
