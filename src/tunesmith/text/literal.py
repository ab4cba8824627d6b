"""What a chat template looks at in contents: whether its output for one chat holds for every other chat of its shape.

A template is run with contents that remember what was asked of them. Most templates only print contents, some strip
them, some ask whether they are empty or hold a word such as `</think>`. Then the scaffold follows from the roles and the
answers to these questions (`Look`), and can be made once. Whatever else is done with a content ends in `NotLiteral`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.text.example import Message
from tunesmith.text.sandbox import EXTENSIONS, GLOBALS, tojson
from tunesmith.text.templates import REFUSALS, ChatTemplate, TemplateError, template_input

Change = tuple[tuple[str, str | None], ...]  # stripping methods with their characters, one after the other


class NotLiteral(Exception):
    """The template does with a content what cannot be told from outside; the text says what."""


@dataclass(frozen=True)
class Look:
    """A question about the content of the turn at `place`, after `change`.

    kind: changes (does stripping as `change` change it), holds, begins, ends, equals, filled (not empty).
    """

    place: int
    change: Change
    kind: str
    what: str = ""

    def answer(self, content: str) -> bool:
        changed = apply(self.change, content)
        if self.kind == "changes":
            return changed != content
        return ANSWERS[self.kind](changed, self.what)


ANSWERS: dict[str, Callable[[str, str], bool]] = {
    "holds": lambda text, what: what in text,
    "begins": lambda text, what: text.startswith(what),
    "ends": lambda text, what: text.endswith(what),
    "equals": lambda text, what: text == what,
    "filled": lambda text, what: bool(text),
}


def apply(change: Change, content: str) -> str:
    """A content after stripping."""
    for method, characters in change:
        content = getattr(content, method)(characters)
    return content


def looks_of(template: ChatTemplate, messages: Sequence[Message]) -> dict[Look, bool]:
    """What the template asks about the contents of this chat, with the answers.

    Raises NotLiteral where it does more than ask, strip and print; TemplateError where it refuses the chat.
    """
    looks: dict[Look, bool] = {}
    template.render(messages)  # within limits, which this environment does not watch
    watched = [replace(m, content=Watched(m.content, place, (), looks)) for place, m in enumerate(messages)]
    try:
        _watching(template.source).render(
            messages=template_input(template, watched),
            add_generation_prompt=False,
            tools=None,
            documents=None,
            **dict(template.special_tokens),
        )
    except REFUSALS as error:
        raise TemplateError(f"the chat template refuses this chat: {error}") from error
    return looks


# --------------------------------------------------------------------------------------------- a content that remembers


class Watched(str):
    """A content, or a text joined from contents and fixed parts, of which less may be asked.

    parts: contents and fixed parts in order, empty for a content itself.
    """

    __slots__ = ("change", "looks", "original", "parts", "place")

    def __new__(cls, original: str, place: int, change: Change, looks: dict[Look, bool]) -> Watched:
        made = super().__new__(cls, apply(change, original))
        made.original, made.place, made.change, made.looks, made.parts = original, place, change, looks, ()
        return made

    @classmethod
    def join(cls, parts: Sequence[str]) -> Watched:
        made = super().__new__(cls, "".join([str.__str__(part) for part in parts]))
        made.parts = tuple(one for part in parts for one in (getattr(part, "parts", ()) or (part,)))
        return made

    def _look(self, kind: str, what: Any = "") -> bool:
        if type(what) is not str:
            raise NotLiteral(f"compares contents: {kind}")
        if self.parts:
            return self._told_by_fixed_parts(kind, what)
        look = Look(self.place, self.change, kind, what)
        self.looks[look] = look.answer(self.original)
        return self.looks[look]

    def _told_by_fixed_parts(self, kind: str, what: str) -> bool:
        """The answer that holds for any contents."""
        first, *_, last = ("" if isinstance(part, Watched) else part for part in self.parts)
        known = [part for part in self.parts if not isinstance(part, Watched)]
        if known and (kind == "filled" or (kind == "equals" and not what)):
            return kind == "filled"
        if kind == "holds" and any(what in part for part in known):
            return True
        if kind == "begins" and len(first) >= len(what):
            return first.startswith(what)
        if kind == "ends" and len(last) >= len(what):
            return last.endswith(what)
        raise NotLiteral(f"asks about a text made of contents: {kind}")

    def __contains__(self, what: Any) -> bool:
        return self._look("holds", what)

    def startswith(self, what: Any, *limits: Any) -> bool:
        return self._look("begins", None if limits else what)

    def endswith(self, what: Any, *limits: Any) -> bool:
        return self._look("ends", None if limits else what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._look("equals", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return self._look("filled")

    def strip(self, characters: str | None = None) -> Watched:
        return self._stripped("strip", characters)

    def lstrip(self, characters: str | None = None) -> Watched:
        return self._stripped("lstrip", characters)

    def rstrip(self, characters: str | None = None) -> Watched:
        return self._stripped("rstrip", characters)

    def _stripped(self, method: str, characters: str | None) -> Watched:
        if self.parts:
            return self._stripped_parts(method, characters)
        made = Watched(self.original, self.place, (*self.change, (method, characters)), self.looks)
        made._look("changes")
        return made

    def _stripped_parts(self, method: str, characters: str | None) -> Watched:
        """Stripping that ends within the outermost parts."""
        parts = list(self.parts)
        for side, place in (("lstrip", 0), ("rstrip", -1)):
            if method in ("strip", side):
                parts[place] = getattr(parts[place], side)(characters)
                if not parts[place]:
                    raise NotLiteral("strips more than one part of a text made of contents")
        return Watched.join(parts)

    def split(self, what: Any = None, *limit: Any) -> list[Watched]:
        if what is None or self._look("holds", what):
            raise NotLiteral(f"splits a content at {what!r}")
        return [self]

    def replace(self, what: Any, *with_what: Any) -> Watched:
        if self._look("holds", what):
            raise NotLiteral(f"replaces {what!r} in a content")
        return self

    def __add__(self, other: str) -> str:
        return _joined((self, other))

    def __radd__(self, other: str) -> str:
        return _joined((other, self))

    def __str__(self) -> str:
        return self


class Length(int):
    """The length of a watched text: all that may be asked is whether it is 0."""

    text: Watched

    def __bool__(self) -> bool:
        return bool(self.text)

    def __gt__(self, other: object) -> bool:
        return bool(self.text) if _is(other, 0) else _refusal("> of its length")()

    def __ge__(self, other: object) -> bool:
        return bool(self.text) if _is(other, 1) else _refusal(">= of its length")()

    def __lt__(self, other: object) -> bool:
        return not self.text if _is(other, 1) else _refusal("< of its length")()

    def __le__(self, other: object) -> bool:
        return not self.text if _is(other, 0) else _refusal("<= of its length")()

    def __eq__(self, other: object) -> bool:
        return not self.text if _is(other, 0) else _refusal("== of its length")()

    def __ne__(self, other: object) -> bool:
        return not self == other


def _is(value: object, number: int) -> bool:
    return type(value) is int and value == number


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise NotLiteral(f"does with a content: {name}")

    return refuse


_INNER = {"__class__", "__init__", "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__", "__doc__", "__sizeof__",
          "__subclasshook__", "__dir__", "__reduce__", "__reduce_ex__", "__getstate__", "__repr__", "__getnewargs__", "__new__"}  # fmt: skip
for _watching_type, _plain_type in ((Watched, str), (Length, int)):
    for _name in set(dir(_plain_type)) - set(vars(_watching_type)) - _INNER | {"__hash__"}:
        setattr(_watching_type, _name, _refusal(_name))


def _joined(parts: Iterable[Any]) -> str:
    """`"".join` that remembers contents; a macro or a block that prints one content and nothing else gives that content."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    filled = [text for text in texts if isinstance(text, Watched) or text]
    if len(filled) == 1:
        return filled[0]
    return Watched.join(filled) if any(isinstance(text, Watched) for text in filled) else "".join(filled)


# ------------------------------------------------------------------------------------------- an environment that watches


class _Code(CodeGenerator):
    """Joins and `in` go through the environment: Python's own would forget or ask in silence."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) != 1 or node.ops[0].op not in ("in", "notin"):
            return super().visit_Compare(node, frame)
        self.write("(not environment.holds(" if node.ops[0].op == "notin" else "(environment.holds(")
        self.visit(node.ops[0].expr, frame)
        self.write(", ")
        self.visit(node.expr, frame)
        self.write("))")
        return None


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    concat = staticmethod(_joined)
    intercepted_binops = frozenset({"%"})

    @staticmethod
    def holds(whole: Any, part: Any) -> bool:
        if isinstance(part, Watched) and not isinstance(whole, (list, tuple)):
            raise NotLiteral("looks a content up")
        return part in whole

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _holds_watched([left, right]):
            raise NotLiteral("formats with a content")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        owner = getattr(function, "__self__", None)
        given = [*arguments, *(value for name, value in options.items() if name not in ("_loop_vars", "_block_vars"))]
        if isinstance(owner, str) and not isinstance(owner, Watched) and _holds_watched(given):
            raise NotLiteral(f"{function.__name__} with a content")
        return super().call(context, function, *arguments, **options)


def _holds_watched(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_watched, value.values()))
    return isinstance(value, Watched) or (isinstance(value, (list, tuple)) and any(map(_holds_watched, value)))


# Filters whose own Python code asks only what a content remembers.
OPEN_FILTERS = frozenset({"trim", "string", "default", "d", "list", "first", "last", "selectattr", "rejectattr",
                          "select", "reject", "map", "items", "attr", "reverse",
                          "replace"})  # fmt: skip
# Tests of the type: the same answer for every text.
TYPE_TESTS = frozenset({"string", "mapping", "none", "defined", "undefined", "number", "boolean", "true", "false",
                        "integer", "float", "callable", "sameas"})  # fmt: skip
ALWAYS = frozenset({"iterable", "sequence"})
COMPARISONS = frozenset({"==", "eq", "equalto", "!=", "ne"})


def _watched_filter(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    if name in ("length", "count"):
        return _length
    if name == "join":
        return _join_filter

    @wraps(filter)
    def watched(*arguments: Any, **options: Any) -> Any:
        if name not in OPEN_FILTERS and _holds_watched([*arguments, options]):
            raise NotLiteral(f"filters a content: {name}")
        return filter(*arguments, **options)

    return watched


def _length(value: Any) -> int:
    if not isinstance(value, Watched):
        return len(value)
    made = int.__new__(Length, str.__len__(value))
    made.text = value
    return made


def _join_filter(value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    texts = list(value)
    if attribute is not None or isinstance(value, Watched):
        raise NotLiteral("joins what lies in contents")
    return _joined([part for text in texts for part in (d, text)][1:])


def _watched_test(name: str, test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def watched(*arguments: Any, **options: Any) -> Any:
        if name in ALWAYS and isinstance(arguments[0], Watched):
            return True
        if name not in TYPE_TESTS | COMPARISONS | ALWAYS and _holds_watched([*arguments, options]):
            raise NotLiteral(f"tests a content: {name}")
        return test(*arguments, **options)

    return watched


@lru_cache(maxsize=32)
def _watching(source: str) -> jinja2.Template:
    """The template as `sandbox` compiles it, in an environment that watches instead of counting."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS)
    environment.globals.update(GLOBALS)
    filters = {**environment.filters, "tojson": tojson}
    environment.filters = {name: _watched_filter(name, filter) for name, filter in filters.items()}
    environment.tests = {name: _watched_test(name, test) for name, test in environment.tests.items()}
    return environment.from_string(source)
