"""Row formats: recognised by their keys, turned into columns, or answered with what is wrong and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tunesmith.text import chats, preference
from tunesmith.text.chats import ANSWERS, CHATS, COMPLETIONS, PROMPTS, Found, first
from tunesmith.text.example import Example
from tunesmith.text.turns import MEDIA, FormatProblem, kind, refuse_media

JUDGED = ("pair", "kto", "ranked")  # rows with answers apart, which no chat is learned from

_SIDE_COLUMNS = tuple(dict.fromkeys(name for pair in preference.SIDES for name in pair))
_CHAT_COLUMNS = ("messages", *CHATS)
_PROMPT_COLUMNS = (*_CHAT_COLUMNS, "instruction", "input", "history", *PROMPTS)
_BESIDE = ("system", "tools", "functions")

# What each format reads; a row's other columns with one value are its meta.
READS: dict[str, frozenset[str]] = {
    "messages": frozenset(("messages", "system", "tools", "functions")),
    "sharegpt": frozenset((*CHATS, *_BESIDE)),
    "alpaca": frozenset(("instruction", "input", "history", *ANSWERS, *_BESIDE)),
    "prompt_completion": frozenset((*PROMPTS, *COMPLETIONS, *_BESIDE)),
    "text": frozenset(("text",)),
    "pair": frozenset((*_SIDE_COLUMNS, *_PROMPT_COLUMNS, *_BESIDE)),
    "kto": frozenset((*_PROMPT_COLUMNS, *COMPLETIONS, *preference.LIKED, *_BESIDE)),
    "ranked": frozenset((*_PROMPT_COLUMNS, *preference.LISTS, *preference.SCORE_LISTS, *_BESIDE)),
}
READS["chosen"] = READS["pair"] | READS["ranked"]
MAKERS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "messages": chats.messages,
    "sharegpt": chats.sharegpt,
    "alpaca": chats.alpaca,
    "prompt_completion": chats.prompt_completion,
    "text": chats.text,
    "pair": preference.pair,
    "kto": preference.liked,
    "ranked": preference.ranked,
    "chosen": preference.chosen,
}
# Columns whose values, not names alone, say what a row is.
_BY_VALUE = frozenset((*preference.LIKED, *preference.LISTS, *MEDIA))


class Columns(NamedTuple):
    """A row as a part of Rows stores it; see Example.to_columns. meta: the other columns that hold one value."""

    format: str
    roles: list[int]
    contents: list[str]
    extra: dict[str, Any] | None
    meta: dict[str, Any] | None


class _Shape(NamedTuple):
    format: str
    make: Callable[[dict[str, Any]], Found]
    others: tuple[str, ...]


_SHAPES: dict[tuple[str, ...], _Shape] = {}  # (asked, *columns) -> how such rows are read
MAX_SHAPES = 4096
MAX_TOLD = 12


def recognise(row: Mapping[str, Any]) -> str:
    """The format of a row by its keys. Raises FormatProblem TXT-001 when it is none."""
    if preference.sides_of(row) is not None:
        return "pair"
    if preference.is_ranked(row):
        return "ranked"
    is_asked = any(name in row for name in PROMPTS)
    is_answered = any(name in row for name in COMPLETIONS)
    has_chat = any(name in row for name in _CHAT_COLUMNS)
    if preference.is_liked(row) and (has_chat or (is_asked and is_answered)):
        return "kto"
    if "messages" in row:
        return "messages"
    if has_chat:
        return "sharegpt"
    if "instruction" in row and any(name in row for name in ANSWERS):
        return "alpaca"
    if is_asked and is_answered:
        return "prompt_completion"
    if "text" in row:
        return "text"
    raise FormatProblem(
        "TXT-001",
        f"no known format has the columns {', '.join(map(str, list(row)[:8])) or '(none)'}",
        "messages; conversations; instruction + output; prompt + completion; text; chosen + rejected",
        "name your columns in the recipe: data.sources: [{path: ..., fields: {prompt: YOUR_COLUMN, completion: YOUR_COLUMN}}]",
    )


def to_example(row: Any, asked: str = "auto", fields: Mapping[str, str] | None = None) -> tuple[Example, str]:
    """(example, format) of a parsed row; see to_columns."""
    form, *columns = to_columns(row, asked, fields)
    return Example.from_columns(*columns), form


def to_columns(row: Any, asked: str = "auto", fields: Mapping[str, str] | None = None) -> Columns:
    """A parsed row as columns. asked: a format, or auto. fields: our name -> the row's column, dots lead inwards.

    Raises FormatProblem TXT-0xx.
    """
    if type(row) is not dict:
        raise FormatProblem("TXT-002", f"the row is {kind(row)}", "an object with named columns", "one object per row")
    if fields:
        row = _rename(row, fields)
    shape = _SHAPES.get((asked, *row)) or _shape(row, asked)
    roles, contents, extra = shape.make(row)
    if not shape.others:
        return Columns(shape.format, roles, contents, extra, None)
    meta = {name: value for name in shape.others if (value := row[name]).__class__ not in (dict, list)}
    return Columns(shape.format, roles, contents, extra, meta or None)


def _shape(row: dict[str, Any], asked: str) -> _Shape:
    form = recognise(row) if asked == "auto" else asked
    if not row.keys().isdisjoint(MEDIA):
        refuse_media(row, "")
    make = _quick(form, row, MAKERS[form])
    shape = _Shape(form, make, tuple(name for name in row if name not in READS[form]))
    if is_told_by_columns(row) and len(_SHAPES) < MAX_SHAPES:
        _SHAPES[(asked, *row)] = shape
    return shape


def _quick(
    form: str, row: dict[str, Any], make: Callable[[dict[str, Any]], Found]
) -> Callable[[dict[str, Any]], Found]:
    """The shorter way for rows with the plain columns of their format and no other that it reads."""
    names = plain_columns(form, row)
    if names is None or form == "text":
        return make
    if len(names) == 1:
        return chats.quick(names[0], make)
    question, answer, *beside = names
    return chats.quick_answer(question, answer, beside[0] if beside else None, make)


def plain_columns(form: str, row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The columns that a row is made of where nothing beside them is read: (chat,), (text,) or (question, answer), perhaps
    with what stands beside the question; None for other rows. Which values they hold is not looked at."""
    if form not in ("messages", "sharegpt", "alpaca", "prompt_completion", "text"):
        return None
    read = row.keys() & READS[form]
    if form in ("messages", "sharegpt", "text"):
        column = first(row, CHATS) if form == "sharegpt" else form
        return (column,) if column and read == {column} else None
    question = "instruction" if form == "alpaca" else first(row, PROMPTS)
    answer = first(row, ANSWERS if form == "alpaca" else COMPLETIONS)
    if not question or question not in row or not answer or read & {"history", *_BESIDE}:
        return None
    return (question, answer, "input") if "input" in read else (question, answer)


def is_told_by_columns(row: Mapping[str, Any]) -> bool:
    """Whether the names of its columns alone say how a row is read, so that rows with the same ones are read alike."""
    return row.keys().isdisjoint(_BY_VALUE)


def learnable(columns: Columns) -> Columns:
    """The columns, when a chat or text is learned from them. Raises FormatProblem TXT-048 for answers that are judged."""
    if columns.format not in JUDGED:
        return columns
    raise FormatProblem(
        "TXT-048",
        f"{_JUDGED_NAMES[columns.format]}: SFT learns from one answer to each prompt",
        "a chat or a text",
        _JUDGED_FIXES[columns.format],
    )


_JUDGED_NAMES = {
    "pair": "a preference pair (chosen and rejected)",
    "kto": "an answer with a label",
    "ranked": "ranked answers",
}
_JUDGED_FIXES = {
    "pair": "data.sources: [{path: ..., format: chosen}] learns from the chosen answers",
    "kto": "data.sources: [{path: ..., format: messages}] (or prompt_completion) learns from all answers; a filter keeps those with label true",
    "ranked": "data.sources: [{path: ..., format: chosen}] learns from the best scored answers",
}


def _rename(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    found = {name: _column(row, column) for name, column in fields.items()}
    taken = {*fields.values(), *(column.split(".", 1)[0] for column in fields.values())}
    return {**{key: value for key, value in row.items() if key not in taken}, **found}


def _column(row: dict[str, Any], column: str) -> Any:
    """A column by its name, or by a path inwards: instances.0.output."""
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise FormatProblem(
                "TXT-003",
                f"there is no column {column!r}",
                f"one of: {', '.join(map(str, row))}"[:300],
                "mend data.sources.fields",
            )
    return value


class Evidence:
    """What was recognised, on how many rows, by which columns; and which columns no format reads."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def note(self, form: str, row: Mapping[str, Any], fields: Mapping[str, str] | None = None, count: int = 1) -> None:
        """row: as it was read. fields: the mapping that was applied; mapped columns count under our names. count: of such rows."""
        if fields:
            ours = {column: name for name, column in fields.items()}
            self.counts[form, tuple(ours.get(name, name) for name in row)] += count
        else:
            self.counts[form, tuple(row)] += count

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Format -> {rows, read: {column: rows}, others: {column: rows}}. The others are kept for filters where they hold one value."""
        out: dict[str, dict[str, Any]] = {}
        for (form, columns), rows in self.counts.most_common():
            told = out.setdefault(form, {"rows": 0, "read": {}, "others": {}})
            told["rows"] += rows
            for name in columns:
                kind = told["read" if name in READS[form] else "others"]
                kind[name] = kind.get(name, 0) + rows
        return out


def tell(evidences: Iterable[Mapping[str, Mapping[str, Any]]]) -> tuple[str, str]:
    """For people, of the evidence of several parts: "alpaca 999 by instruction, input, output; ...", and "id (999), ..."."""
    rows: Counter[str] = Counter()
    read: dict[str, Counter[str]] = {}
    others: Counter[str] = Counter()
    for evidence in evidences:
        for form, told in evidence.items():
            rows[form] += told["rows"]
            read.setdefault(form, Counter()).update(told["read"])
            others.update(told["others"])
    forms = [
        f"{form} {count:,} by {', '.join(name for name, _ in read[form].most_common())}"
        for form, count in rows.most_common()
    ]
    unread = [f"{name} ({count:,})" for name, count in others.most_common(MAX_TOLD)]
    more = [f"{len(others) - MAX_TOLD} more"] if len(others) > MAX_TOLD else []
    return "; ".join(forms), ", ".join(unread + more)
