"""Jinja as chat templates use it, in a sandbox that counts: a template that loops, recurses or swells stops within seconds.

A template comes with a model, so it is code from a stranger. Jinja's sandbox keeps it from Python's internals; this file
keeps it from time and memory. Every loop turn, call, filter and printed piece is counted on the way; the clock is looked at
while counting, so the limit holds in any thread. It is processor time: a busy machine stops no good template.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tunesmith.text.traced import Safe, Traced, is_traced, joined, to_json

MAX_SOURCE = 2**20  # characters of a template
SECONDS = 2.0  # of processor time for a render, and the same again for each MiB that goes in
STEPS = 200_000  # loop turns, calls, filters and pieces of a render, and 4 more for each character that goes in
OUTPUT = 2**20  # characters, and 16 more for each that goes in
MAX_NUMBER = 2**20  # widths, counts and repetitions that a template may ask for
MAX_INDENT = 1000
LOOK_EVERY = 16  # steps between two looks at the clock


class Overrun(Exception):
    """A template went beyond a limit; the text says which."""


@dataclass
class Meter:
    """What one render has used. Limits grow with the input, so that a long chat is no bomb."""

    input_characters: int
    steps: int = 0

    def __post_init__(self) -> None:
        self.max_steps = STEPS + 4 * self.input_characters
        self.max_output = OUTPUT + 16 * self.input_characters
        self.seconds = SECONDS * (1 + self.input_characters / 2**20)
        self.deadline = time.thread_time() + self.seconds

    def step(self) -> None:
        self.steps += 1
        if self.steps % LOOK_EVERY == 0:
            if self.steps > self.max_steps:
                raise Overrun(f"more than {self.max_steps:,} steps")
            if time.thread_time() > self.deadline:
                raise Overrun(f"more than {self.seconds:.1f} s of processor time")

    def size(self, characters: int) -> None:
        if characters > self.max_output:
            raise Overrun(f"a text of more than {self.max_output:,} characters")


_running = threading.local()


def _meter() -> Meter:
    """Of the render that runs in this thread; while a template is compiled, one that starts anew each time."""
    return getattr(_running, "meter", None) or Meter(0)


class CompiledTemplate:
    """A template's code. Raises jinja2.TemplateSyntaxError for text that is no template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateSyntaxError(f"the template is longer than {MAX_SOURCE:,} characters", 1)
        self.environment = _Environment()
        try:
            self._template = self.environment.from_string(source)
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            if isinstance(error, jinja2.TemplateSyntaxError):
                raise
            raise jinja2.TemplateSyntaxError(f"the template is nested too deeply or damaged ({error})", 1) from error

    def render(
        self, input_characters: int, spans: list[tuple[int, int]] | None = None, traced: bool = False, **variables: Any
    ) -> str:
        """The text. traced: the variables hold Traced strings, and the text says what became of them. spans: takes the
        places of `{% generation %}` blocks.

        Raises Overrun beyond a limit, and whatever the template itself raises.
        """
        before = getattr(_running, "meter", None)
        _running.meter = Meter(input_characters)
        _running.spans, _running.traced = spans, traced
        try:
            text = self._template.render(**variables)
        except MemoryError as error:
            raise Overrun("more memory than there is") from error
        except RecursionError as error:
            raise Overrun("calls nested too deeply") from error
        finally:
            _running.meter = before
            _running.spans, _running.traced = None, False
        return text


@lru_cache(maxsize=64)
def compiled(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)


# ------------------------------------------------------------------------------------------------------ the environment


class _GenerationMarks(Extension):
    """`{% generation %}` blocks render as what they hold; where that is asked, their places are noted.

    A block's place is known when the whole text is: its text is found in the pieces printed by the template's root, which
    are noted as they come.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

    def _block(self, caller: Callable[[], str]) -> str:
        return _Generated(caller()) if getattr(_running, "spans", None) is not None else caller()


class _Generated(str):
    """The text of a `{% generation %}` block on its way out."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


class _Generator(CodeGenerator):
    """`a ~ b` through the environment, which keeps authors and counts; lists and dictionaries are weighed as they are made."""

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self.write("environment.weighed(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self.write("environment.weighed(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx == "load":
            self.write("environment.weighed(")
        super().visit_Tuple(node, frame)
        if node.ctx == "load":
            self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat([str(_) for _ in (")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")])")


class _Namespace(Namespace):
    """As transformers': no attribute may begin with an underscore."""

    def __init__(*values: Any, **named: Any) -> None:
        self, values = values[0], values[1:]
        attributes = dict(*values, **named)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute with an underscore in front: {name!r}")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the class itself."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values, **named)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=EXTENSIONS,
            finalize=_printed,
        )
        self.filters |= {"tojson": tojson, "join": _join}
        self.filters = {name: _counted_filter(self, name, call) for name, call in self.filters.items()}
        self.filters["__turns__"] = _turns
        self.globals |= GLOBALS

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What a template, a macro or a block prints, in one text."""
        meter, out, characters, of_somebody = _meter(), [], 0, False
        for part in parts:
            meter.step()
            characters += len(part)
            meter.size(characters)
            out.append(part)
            of_somebody = of_somebody or type(part) is Traced
        spans = getattr(_running, "spans", None)
        if spans is not None:
            return _note_generated(out, spans)
        return joined(out) if of_somebody else "".join(out)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "__turns__", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def weighed(self, value: Any) -> Any:
        """Printed, compared or searched, a list takes as long as it is when written out, so that size is limited."""
        meter = _meter()
        meter.size(_size(value, {}, meter.max_output, 0))
        return value

    def call(__self, __context: Any, __obj: Any, *values: Any, **named: Any) -> Any:
        _meter().step()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str):
            _refuse_large((*values, *named.values()))
        # `_loop_vars` and `_block_vars`: Jinja passes a call the variables around it.
        traced = any(map(is_traced, (*values, *(value for name, value in named.items() if name[0] != "_"))))
        if isinstance(owner, str):
            if __obj.__name__ == "join" and values:
                values = (list(values[0]), *values[1:])
            _guard_method(owner, __obj.__name__, values)
        if type(owner) is str and traced and __obj.__name__ in ("join", "replace"):
            __obj = getattr(Traced(owner, ()), __obj.__name__)
        result = super().call(__context, __obj, *values, **named)
        if type(result) in (list, dict, tuple):
            __self.weighed(result)
        return _kept(result, traced or isinstance(owner, Traced))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _meter()
        meter.step()
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    meter.size(len(one) * max(other, 0))
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            meter.size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _refuse_widths(left, right)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 4096:
                raise Overrun("a number of more than 4,096 bits")
        result = super().call_binop(context, operator, left, right)
        if type(result) in (list, tuple):
            return self.weighed(result)
        return _kept(result, isinstance(left, Traced) or is_traced(right))


def _note_generated(parts: Sequence[str], spans: list[tuple[int, int]]) -> str:
    """Join; blocks that stand directly in the outermost text are noted. Inner ones come first and are overwritten."""
    spans.clear()
    done = 0
    for part in parts:
        if isinstance(part, _Generated) and part:
            spans.append((done, done + len(part)))
        done += len(part)
    return "".join(parts)


def _turns(items: Any) -> Iterator[Any]:
    """What a `for` runs over, each turn counted."""
    meter = _meter()
    for item in items:
        meter.step()
        yield item


def _printed(value: Any) -> Any:
    """What `{{ }}` prints: a list or dictionary of somebody's strings is somebody's text."""
    _meter().step()
    if isinstance(value, dict | list | tuple) and is_traced(value):
        return Traced(str(value))
    return value


def _kept(result: Any, traced: bool) -> Any:
    """A text made of somebody's text in a way that lost its authors is somebody's as a whole."""
    if isinstance(result, str) and not isinstance(result, Traced):
        _meter().size(len(result))
        if traced and result:
            return Traced(str(result))
    return result


def _counted_filter(environment: _Environment, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    passes = hasattr(call, "jinja_pass_arg")

    def counted(*values: Any, **named: Any) -> Any:
        _meter().step()
        given = values[1:] if passes else values
        _refuse_large((*given[1:], *named.values()))
        if name in ("indent", "tojson") and any(
            isinstance(n, int) and n > MAX_INDENT for n in (*given[1:], *named.values())
        ):
            raise Overrun(f"an indent of more than {MAX_INDENT:,}")
        traced = getattr(_running, "traced", False)
        if name == "replace" and len(given) >= 3:
            _guard_method(str(given[0]), "replace", given[1:])
            if traced:
                return _replace(*given, **named)
        if name == "format":
            _refuse_widths(str(given[0]), given[1:])
        if name == "safe" and traced:
            return Safe(str(given[0]), given[0].runs if isinstance(given[0], Traced) else ())
        result = call(*values, **named)
        if type(result) in (list, dict, tuple):
            environment.weighed(result)
        return _kept(result, traced and any(map(is_traced, (*given, *named.values()))))

    if passes:
        counted.jinja_pass_arg = call.jinja_pass_arg  # type: ignore[attr-defined]
    return counted


@jinja2.pass_environment
def _join(environment: _Environment, items: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    texts, between = [str(item) for item in items], str(d)
    _meter().size(sum(map(len, texts)) + len(between) * len(texts))
    if isinstance(between, Traced) or any(isinstance(text, Traced) for text in texts):
        return (between if isinstance(between, Traced) else Traced(between, ())).join(texts)
    return between.join(texts)


def _replace(text: Any, old: Any, new: Any, count: Any = None) -> Traced:
    one = text if isinstance(text, Traced) else Traced(str(text), ())
    return one.replace(str(old), str(new), -1 if count is None else count)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return to_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(pattern: str) -> str:
    _refuse_widths(str(pattern), ())
    _meter().size(len(pattern) * 64)
    return datetime.now().strftime(pattern)


def _no_lipsum(**_: Any) -> str:
    """Jinja offers a generator of dummy text; no chat template has a use for it."""
    raise Overrun("dummy text")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _size(value: Any, known: dict[int, int], limit: int, depth: int) -> int:
    """Characters and elements of a value written out; what stands in it twice counts twice, and is looked at once."""
    if isinstance(value, str):
        return len(value) + 1
    if type(value) not in (list, tuple, dict):
        return 1
    if id(value) in known:
        return known[id(value)]
    if depth > 100:
        raise Overrun("lists nested more than 100 deep")
    total = 1
    for item in (*value, *value.values()) if isinstance(value, dict) else value:
        total += _size(item, known, limit, depth + 1)
        if total > limit:
            break
    known[id(value)] = total
    return total


# -------------------------------------------------------------------------------------------- what may not be asked for


def _refuse_large(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise Overrun(f"a count of {str(value)[:30]}")


def _refuse_widths(pattern: str, values: Any) -> None:
    """`%1000000000d` asks for a gigabyte."""
    _refuse_large(values if isinstance(values, list | tuple) else (values,))
    digits = 0
    for letter in pattern:
        digits = digits + 1 if letter.isdigit() else 0
        if digits > 6 and "%" in pattern:
            raise Overrun("a width of more than six digits")


def _guard_method(owner: str, name: str, values: Sequence[Any]) -> None:
    """The size of what `replace` and `join` would make, before they make it."""
    if name == "replace" and len(values) >= 2 and isinstance(values[0], str) and isinstance(values[1], str):
        _meter().size(len(owner) + owner.count(values[0]) * max(0, len(values[1]) - len(values[0])))
    elif name == "translate" and values and isinstance(values[0], dict):
        longest = max((len(new) for new in values[0].values() if isinstance(new, str)), default=1)
        _meter().size(len(owner) * longest)
    elif name == "join" and values and isinstance(values[0], list | tuple | range):
        _meter().size(len(owner) * len(values[0]))
    elif name in ("format", "format_map") and any(
        len(run) > 6 for run in "".join(c if c.isdigit() else " " for c in owner).split()
    ):
        raise Overrun("a width of more than six digits")


EXTENSIONS = (_GenerationMarks, "jinja2.ext.loopcontrols")
# What chat templates may call, as transformers offers it.
GLOBALS: dict[str, Any] = {
    "lipsum": _no_lipsum,
    "raise_exception": _raise,
    "strftime_now": _now,
    "dict": _Dict(),
    "namespace": _Namespace,
}
