"""Shapes of chats: the pieces that every chat of a shape is laid together from, compiled once from the chat template.

A shape is the order of the roles, what single turns say about learning, and the answers to what the template asks about
contents (`text.literal`). Its pieces come from the slow way itself, `Tokenizer.encode_example`, on marks instead of
contents, and are compared with it on real rows before they are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tunesmith.text.example import Example
from tunesmith.text.literal import Change, Look, NotLiteral, apply, looks_of
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Tokenizer

VARIANTS = 64  # answers to looks that are compiled for one order of roles; rows beyond go row by row
# Characters that any filter which is not told from outside would change.
MARK = "Aé\"'\\<&>\n\tß\u27e6shape-{}\u27e7ß\t\n>&<\\'\"éZ"
# Both edges first: what is stripped on one side only must not look like what is stripped on both.
BLANKS = (" \n ", "\n", " ", "")


@dataclass(frozen=True)
class Piece:
    """Scaffold (`text`), or the content of the turn at `place` after `change`."""

    text: str
    place: int | None
    change: Change
    learned: bool
    weight: float
    answer: int | None = None  # as a Segment's

    @property
    def is_content(self) -> bool:
        return self.place is not None

    def fill(self, contents: Sequence[str]) -> str:
        return self.text if self.place is None else apply(self.change, contents[self.place])


Shape = tuple[Piece, ...]


@dataclass
class Family:
    """Chats of one order of roles and learning.

    example: one of them. looks: what the template asks about contents, as far as known. variants: answers to the looks ->
    shape, or None: row by row.
    """

    example: Example
    looks: list[Look] = field(default_factory=list)
    variants: dict[bytes, Shape | None] = field(default_factory=dict)
    seen: dict[bytes, int] = field(default_factory=dict)


class MoreLooks(Exception):
    """The template asks what was not known yet."""


def compile_shape(tokenizer: Tokenizer, learn: str, family: Family, answers: Sequence[bool]) -> Shape | None:
    """The pieces of chats with these answers; None where they do not follow from the shape.

    Raises MoreLooks after adding to family.looks.
    """
    wanted = dict(zip(family.looks, answers, strict=True))
    try:
        marked = with_contents(family.example, _marks(family.example, wanted))
        if family.example.text is None:
            _ask(tokenizer, family, marked, wanted)
        return _pieces(tokenizer.encode_example(marked, learn), marked, wanted)
    except (NotLiteral, TemplateError):
        return None


def with_contents(example: Example, contents: Sequence[str]) -> Example:
    if example.text is not None:
        return replace(example, text=contents[0])
    turns = zip(example.messages, contents, strict=True)
    return replace(example, messages=tuple(replace(message, content=content) for message, content in turns))


def contents_of(example: Example) -> list[str]:
    return [example.text] if example.text is not None else [message.content for message in example.messages]


def segments_of(shape: Shape, contents: Sequence[str]) -> list[Segment]:
    """The segments of one row of a shape."""
    filled = ((piece, piece.fill(contents)) for piece in shape)
    return [Segment(text, p.learned, p.is_content, p.weight, p.answer) for p, text in filled if text]


def is_equal(shape: Shape, contents: Sequence[str], segments: Sequence[Segment]) -> bool:
    """Does the shape give these segments, which the slow way made of these contents."""
    return _merged(segments_of(shape, contents)) == _merged(segments)


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Around an empty content the slow way sees one piece of scaffold."""
    out: list[Segment] = []
    for segment in segments:
        if out and replace(out[-1], text="") == replace(segment, text=""):
            out[-1] = replace(segment, text=out[-1].text + segment.text)
        else:
            out.append(segment)
    return out


def weight_of(segment: Segment) -> float:
    return float(getattr(segment, "weight", 1.0))


def _ask(tokenizer: Tokenizer, family: Family, marked: Example, wanted: dict[Look, bool]) -> None:
    found = looks_of(tokenizer.template, marked.messages)
    new = [look for look in found if look not in wanted]
    if any(look.kind == "changes" for look in new):
        # The slow way takes all contents stripped or none, whatever the template does with each.
        places = range(len(marked.messages))
        new += [
            other
            for place in places
            for look in list(new)
            if look.kind == "changes" and (other := replace(look, place=place)) not in [*new, *wanted]
        ]
    if new:
        family.looks += dict.fromkeys(new)
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
    core = MARK.format(place)
    middle = f"{begins}{core}{held}{core if held else ''}{ends}"
    for before, behind in itertools.product(BLANKS, BLANKS):
        mark = f"{before}{middle}{behind}"
        if all(look.answer(mark) == yes for look, yes in wanted.items()):
            return mark
    raise NotLiteral("no mark gives these answers")


def _pieces(segments: Sequence[Segment], marked: Example, wanted: dict[Look, bool]) -> Shape:
    """Segments of marks as pieces. Raises NotLiteral where a mark stands elsewhere than in a content of its own."""
    marks = contents_of(marked)
    changes: list[list[Change]] = [[()] for _ in marks]
    for look in wanted:
        if look.kind == "changes":
            changes[look.place].append(look.change)
    known = {
        apply(change, mark): (place, change) for place, mark in enumerate(marks) for change in reversed(changes[place])
    }
    out, used = [], {}
    for segment in segments:
        place, change = None, ()
        if segment.is_content:
            if segment.text not in known:
                raise NotLiteral("a content is not printed as it is")
            place, change = known[segment.text]
            if used.setdefault(place, change) != change:
                raise NotLiteral("a content is printed in two ways")
        elif "\u27e6shape-" in segment.text:
            raise NotLiteral("a content stands in what the slow way takes for scaffold")
        text = "" if segment.is_content else segment.text
        out.append(Piece(text, place, change, segment.learned, weight_of(segment), segment.answer))
    return tuple(out)


# ------------------------------------------------------------------------------------------------- answers for many rows


def pack(answers: np.ndarray) -> np.ndarray:
    """bool [R, L] -> one value a row, equal where all answers are equal: void [R]."""
    bits = np.packbits(answers, axis=1) if answers.shape[1] else np.zeros((len(answers), 1), np.uint8)
    return np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1]))).reshape(-1)
