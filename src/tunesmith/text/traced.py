"""Strings that know who wrote them: what a template does to a message's text, each character keeps its author.

A template cuts, trims, joins and repeats what it is given. Only the characters themselves can tell afterwards which part
of the rendered text somebody wrote (so that a control token inside it stays text) and which is the template's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import markupsafe

# (start, end, author): characters start:end were written by this author; sorted, not overlapping. Gaps are the template's.
Run = tuple[int, int, int]

SAME_LENGTH = ("lower", "upper", "title", "capitalize", "swapcase", "casefold")
UNKNOWN = -2  # an operation that this file does not follow: the whole result counts as written by somebody


class Traced(str):
    """A string and the runs of it that somebody wrote. Equal and hashed as the plain string.

    What is not followed letter by letter (format, %, translate ...) gives a string that counts as written as a whole:
    then too many characters are kept from being control tokens, never too few.
    """

    __slots__ = ("runs",)
    runs: tuple[Run, ...]

    def __new__(cls, text: str = "", runs: tuple[Run, ...] | None = None) -> Traced:
        self = super().__new__(cls, text)
        self.runs = (((0, len(self), UNKNOWN),) if len(self) else ()) if runs is None else runs
        return self

    @classmethod
    def by(cls, text: str, author: int) -> Traced:
        return cls(text, ((0, len(text), author),) if text else ())

    def __str__(self) -> str:
        return self

    def __reduce__(self) -> Any:
        return (Traced, (plain(self), self.runs))

    # ------------------------------------------------------------------------------------------------- cut and join

    def cut(self, start: int, end: int) -> Traced:
        return Traced(
            str.__getitem__(self, slice(start, end)),
            tuple((max(a, start) - start, min(b, end) - start, by) for a, b, by in self.runs if a < end and b > start),
        )

    def __getitem__(self, place: SupportsIndex | slice) -> Traced:
        if isinstance(place, slice):
            start, end, step = place.indices(len(self))
            if step == 1:
                return self.cut(start, max(start, end))
            return Traced(str.__getitem__(self, place))
        if not hasattr(place, "__index__"):
            raise TypeError(f"string indices must be integers, not {type(place).__name__!r}")
        at = place.__index__()
        at += len(self) if at < 0 else 0
        if not 0 <= at < len(self):
            raise IndexError("string index out of range")
        return self.cut(at, at + 1)

    def __iter__(self) -> Iterator[str]:
        return (self.cut(place, place + 1) for place in range(len(self)))

    def __add__(self, other: str) -> Traced:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Traced:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> Traced:
        return joined([self] * count.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Traced:
        return Traced(str.__mod__(plain(self), values))

    def __rmod__(self, pattern: str) -> Traced:
        return Traced(str.__mod__(pattern, plain(self)))

    def join(self, parts: Iterable[str], /) -> Traced:
        out: list[str] = []
        for part in parts:
            if out and len(self):
                out.append(self)
            out.append(part)
        return joined(out)

    # -------------------------------------------------------------------------------------------------- trim and split

    def strip(self, characters: str | None = None, /) -> Traced:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None, /) -> Traced:
        return self.cut(len(self) - len(str.lstrip(self, characters)), len(self))

    def rstrip(self, characters: str | None = None, /) -> Traced:
        return self.cut(0, len(str.rstrip(self, characters)))

    def removeprefix(self, prefix: str, /) -> Traced:
        return self.cut(len(prefix), len(self)) if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Traced:
        return self.cut(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def _cuts(self, parts: Iterable[str]) -> list[Traced]:
        """The same parts, which stand in this order in the string, with their authors."""
        out, done = [], 0
        for part in parts:
            start = self.index(part, done)
            out.append(self.cut(start, start + len(part)))
            done = start + len(part)
        return out

    def _separated(self, parts: list[str], separator: str) -> list[Traced]:
        out, done = [], 0
        for part in parts:
            out.append(self.cut(done, done + len(part)))
            done += len(part) + len(separator)
        return out

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        parts = str.split(self, sep, maxsplit)
        return self._cuts(parts) if sep is None else self._separated(parts, sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        parts = str.rsplit(self, sep, maxsplit)
        return self._cuts(parts) if sep is None else self._separated(parts, sep)

    def splitlines(self, keepends: bool = False) -> list[Traced]:  # type: ignore[override]
        whole = self._separated(str.splitlines(self, True), "")
        return whole if keepends else [line.cut(0, len(str.splitlines(line)[0])) for line in whole]

    def partition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        at = self.find(sep)
        return self._at(at, sep) if at >= 0 else (self, Traced(), Traced())

    def rpartition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        at = self.rfind(sep)
        return self._at(at, sep) if at >= 0 else (Traced(), Traced(), self)

    def _at(self, at: int, sep: str) -> tuple[Traced, Traced, Traced]:
        return self.cut(0, at), self.cut(at, at + len(sep)), self.cut(at + len(sep), len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        if not old:
            return Traced(str.replace(self, old, new, count))
        out: list[str] = []
        done, left = 0, count.__index__()
        while left != 0 and (at := self.find(old, done)) >= 0:
            out += [self.cut(done, at), new]
            done, left = at + len(old), left - 1
        return joined([*out, self.cut(done, len(self))])


class Safe(Traced):
    """What the filter `safe` makes: adding another string to it escapes that one for HTML, as Jinja's Markup does."""

    __slots__ = ()

    def __html__(self) -> str:
        return plain(self)

    def __add__(self, other: str) -> Safe:
        return _safe(joined((self, _escaped(other)))) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Safe:
        return _safe(joined((_escaped(other), self))) if isinstance(other, str) else NotImplemented


def _safe(text: Traced) -> Safe:
    return Safe(plain(text), text.runs)


def _escaped(text: str) -> str:
    if hasattr(text, "__html__"):
        return text
    if not isinstance(text, Traced):
        return str(markupsafe.escape(text))
    edges = sorted({0, len(text)} | {edge for start, end, _ in text.runs for edge in (start, end)})
    pieces = [text.cut(start, end) for start, end in itertools.pairwise(edges)]
    return joined(
        Traced.by(str(markupsafe.escape(plain(piece))), piece.runs[0][2])
        if piece.runs
        else str(markupsafe.escape(plain(piece)))
        for piece in pieces
    )


def _same_length(name: str) -> Any:
    method = getattr(str, name)

    def changed(self: Traced) -> Traced:
        text = method(self)
        return Traced(text, self.runs if len(text) == len(self) else None)

    changed.__name__ = name
    return changed


def _whole(name: str) -> Any:
    method = getattr(str, name)

    def changed(self: Traced, *values: Any, **named: Any) -> Traced:
        return Traced(method(plain(self), *values, **named))

    changed.__name__ = name
    return changed


for _name in SAME_LENGTH:
    setattr(Traced, _name, _same_length(_name))
for _name in ("center", "expandtabs", "ljust", "rjust", "translate", "zfill"):
    setattr(Traced, _name, _whole(_name))


def plain(text: str) -> str:
    """The same characters, of nobody."""
    return str.__str__(text)  # of a subclass this makes an exact copy


def joined(parts: Iterable[str]) -> Traced:
    """All parts in a row; a plain string's characters are the template's own."""
    runs: list[Run] = []
    texts: list[str] = []
    done = 0
    for part in parts:
        texts.append(part)
        if isinstance(part, Traced):
            for start, end, by in part.runs:
                if runs and runs[-1][1] == start + done and runs[-1][2] == by:
                    runs[-1] = (runs[-1][0], end + done, by)
                else:
                    runs.append((start + done, end + done, by))
        done += len(part)
    return Traced("".join(texts), tuple(runs))


def written(value: Any, author: int) -> Any:
    """The same JSON value with all its strings, keys included, traced to this author."""
    if isinstance(value, str):
        return Traced.by(value, author)
    if isinstance(value, dict):
        return {written(key, author): written(item, author) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item, author) for item in value]
    return value


def is_traced(value: Any) -> bool:
    """Whether a traced string stands in this value, or may stand: a large one is not searched to its end."""
    if isinstance(value, str):
        return isinstance(value, Traced)
    if not isinstance(value, dict | list | tuple):
        return False
    waiting, looked = [value], 0
    while waiting:
        one = waiting.pop()
        for item in (*one, *one.values()) if isinstance(one, dict) else one:
            looked += 1
            if isinstance(item, Traced) or looked > 10_000:
                return True
            if isinstance(item, dict | list | tuple):
                waiting.append(item)
    return False


def to_json(value: Any, **options: Any) -> str:
    """json.dumps that keeps the authors: a string's letters, escapes and all, are its author's; quotes are the template's."""
    if not is_traced(value):
        return json.dumps(value, **options)
    if options.get("sort_keys"):
        value, options = _sorted(value), {**options, "sort_keys": False}
    strings: list[str] = []
    text = json.dumps(_held_out(value, strings), **options)
    parts = text.split(_HOLE)
    out: list[str] = [parts[0]]
    for string, part in zip(strings, parts[1:], strict=True):
        letters = json.dumps(plain(string), ensure_ascii=options.get("ensure_ascii", True))[1:-1]
        authors = {by for _, _, by in string.runs} if isinstance(string, Traced) else set()
        exact = len(letters) == len(string) and isinstance(string, Traced)
        out += [
            Traced(letters, string.runs) if exact else Traced.by(letters, min(authors)) if authors else letters,
            part,
        ]
    return joined(out)


_HOLE = "@7d1e5b52-hole@"  # stands for each string while json lays out the rest


def _held_out(value: Any, strings: list[str]) -> Any:
    if isinstance(value, str):
        strings.append(value)
        return _HOLE
    if isinstance(value, dict):
        # A key that is a number stays one; two keys must stay two, so each hole has its own identity but the same letters.
        return {
            (_Key(_held_out(key, strings)) if isinstance(key, str) else key): _held_out(item, strings)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_held_out(item, strings) for item in value]
    return value


class _Key(str):
    """A hole among the keys of a dictionary: equal only to itself."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in sorted(value.items())}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value
