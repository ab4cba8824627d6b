"""Row formats: recognised by their keys, turned into an Example, or answered with what is wrong and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tunesmith.text.example import ROLES, Example, Message

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
ANSWERS = ("output", "response", "answer")
PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "answer", "response")
KNOWN = {
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "system",
    "text",
    *ANSWERS,
    *PROMPTS,
    *COMPLETIONS,
}


class FormatProblem(Exception):
    """A row that cannot be used: code, what, what was expected, what to do."""

    def __init__(self, code: str, what: str, expected: str, fix: str) -> None:
        super().__init__(what)
        self.code, self.what, self.expected, self.fix = code, what, expected, fix


def recognise(row: Mapping[str, Any]) -> str:
    """The format of a row by its keys. Raises FormatProblem TXT-001 when it is none."""
    if "messages" in row:
        return "messages"
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "instruction" in row and any(key in row for key in ANSWERS):
        return "alpaca"
    if any(key in row for key in PROMPTS) and any(key in row for key in COMPLETIONS):
        return "prompt_completion"
    if "text" in row:
        return "text"
    raise FormatProblem(
        "TXT-001",
        f"no known format has the columns {', '.join(map(str, list(row)[:8])) or '(none)'}",
        "messages; conversations; instruction + output; prompt + completion; text",
        "name your columns in the recipe: data.sources: [{path: ..., fields: {prompt: YOUR_COLUMN, completion: YOUR_COLUMN}}]",
    )


class Columns(NamedTuple):
    """A row as a part of Rows stores it; see Example.to_columns. meta: the other columns that hold one value."""

    format: str
    roles: list[int]
    contents: list[str]
    extra: dict[str, Any] | None
    meta: dict[str, Any] | None


def to_example(row: Any, asked: str = "auto", fields: Mapping[str, str] | None = None) -> tuple[Example, str]:
    """(example, format) of a parsed row; see to_columns."""
    form, *columns = to_columns(row, asked, fields)
    return Example.from_columns(*columns), form


def to_columns(row: Any, asked: str = "auto", fields: Mapping[str, str] | None = None) -> Columns:
    """A parsed row as columns. fields: our name -> the row's column. Raises FormatProblem TXT-0xx."""
    if not isinstance(row, dict):
        raise FormatProblem("TXT-002", f"the row is {_kind(row)}", "an object with named columns", "one object per row")
    if fields:
        row = _rename(row, fields)
    form = recognise(row) if asked == "auto" else asked
    example = MAKERS[form](row)
    meta = {key: value for key, value in row.items() if key not in KNOWN and not isinstance(value, (dict, list))}
    return Columns(form, *example.to_columns()[:3], meta or None)


def _rename(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    missing = [column for column in fields.values() if column not in row]
    if missing:
        raise FormatProblem(
            "TXT-003",
            f"there is no column {missing[0]!r}",
            f"one of: {', '.join(map(str, row))}",
            "mend data.sources.fields",
        )
    taken = set(fields.values())
    return {
        **{key: value for key, value in row.items() if key not in taken},
        **{name: row[column] for name, column in fields.items()},
    }


# ------------------------------------------------------------------------------------------------------ the formats


def _messages(row: dict[str, Any]) -> Example:
    turns = row["messages"]
    if not isinstance(turns, list):
        raise FormatProblem(
            "TXT-004", f"messages is {_kind(turns)}", "a list of {role, content}", "parse the text into a list before"
        )
    out = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or "role" not in turn:
            raise FormatProblem(
                "TXT-005", f"messages[{place}] is {_kind(turn)} without a role", "{role, content}", "mend the row"
            )
        if turn.get("tool_calls"):
            raise FormatProblem(
                "TXT-006",
                f"messages[{place}] holds tool calls, which are not supported yet",
                "text content",
                "leave the row out",
            )
        content = _content(turn.get("content"), f"messages[{place}].content")
        learn = turn.get("train", turn.get("learn"))
        if learn is None and "weight" in turn:
            learn = bool(turn["weight"])
        out.append(Message(_role(turn["role"], f"messages[{place}].role"), content, learn))
    return _checked(Example(tuple(out)))


def _sharegpt(row: dict[str, Any]) -> Example:
    name = "conversations" if "conversations" in row else "conversation"
    turns = row[name]
    if not isinstance(turns, list):
        raise FormatProblem(
            "TXT-004", f"{name} is {_kind(turns)}", "a list of {from, value}", "parse the text into a list before"
        )
    out = []
    if isinstance(row.get("system"), str) and row["system"]:
        out.append(Message("system", row["system"]))
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise FormatProblem("TXT-005", f"{name}[{place}] is {_kind(turn)}", "{from, value}", "mend the row")
        who = turn.get("from", turn.get("role"))
        role = SHAREGPT_ROLES.get(str(who).strip().lower())
        content = _content(turn.get("value", turn.get("content")), f"{name}[{place}].value")
        out.append(Message(role or _role(who, f"{name}[{place}].from"), content))
    return _checked(Example(tuple(out)))


def _alpaca(row: dict[str, Any]) -> Example:
    answer = next((key for key in ANSWERS if key in row), "output")
    instruction = _content(row.get("instruction"), "instruction")
    extra = _content(row.get("input") or "", "input")
    turns = [Message("user", f"{instruction}\n\n{extra}" if extra.strip() else instruction)]
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, Message("system", row["system"]))
    turns.append(Message("assistant", _content(row.get(answer), answer)))
    return _checked(Example(tuple(turns)))


def _prompt_completion(row: dict[str, Any]) -> Example:
    prompt = next((key for key in PROMPTS if key in row), "prompt")
    completion = next((key for key in COMPLETIONS if key in row), "completion")
    if isinstance(row.get(prompt), list) and isinstance(row.get(completion), list):
        return _messages({"messages": [*row[prompt], *row[completion]]})
    turns = (
        Message("user", _content(row.get(prompt), prompt)),
        Message("assistant", _content(row.get(completion), completion)),
    )
    return _checked(Example(turns))


def _text(row: dict[str, Any]) -> Example:
    text = _content(row.get("text"), "text")
    if not text.strip():
        raise FormatProblem("TXT-010", "text is empty", "some text", "leave the row out")
    return Example(text=text)


MAKERS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
}


# ------------------------------------------------------------------------------------------------------- the checks


def _content(value: Any, place: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        kinds = {str(part.get("type", "?")) for part in value}
        if kinds == {"text"}:
            return "".join(str(part.get("text", part.get("value", ""))) for part in value)
        raise FormatProblem(
            "TXT-007",
            f"{place} holds {', '.join(sorted(kinds - {'text'}))} parts, which are not supported yet",
            "text",
            "leave the row out",
        )
    if not isinstance(value, str):
        raise FormatProblem("TXT-008", f"{place} is {_kind(value)}", "text", f"write {place} as a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatProblem(
            "TXT-009",
            f"{place} holds half a character (a lone surrogate, U+{ord(value[error.start]):04X}) at character {error.start}",
            "whole Unicode characters",
            "write the row again with ensure_ascii=False from the intact text",
        ) from error
    return value


def _role(role: Any, place: str) -> str:
    if role in ROLES:
        return role
    name = str(role).strip().lower()
    guess = SHAREGPT_ROLES.get(name, "assistant" if name in ("bot", "ai") else None)
    raise FormatProblem(
        "TXT-011", f"{place} is {role!r}", ", ".join(ROLES), f"write {guess!r}" if guess else "use one of these roles"
    )


def _checked(example: Example) -> Example:
    """Order and substance of a chat: something is asked, and something is answered."""
    turns = example.messages
    if not turns:
        raise FormatProblem(
            "TXT-012", "the chat has no turns", "at least a question and an answer", "leave the row out"
        )
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise FormatProblem("TXT-013", "there is no assistant turn: nothing to learn", "an answer", "leave the row out")
    if turns[0].role == "assistant" or answers[0] == 0 or all(turn.role == "system" for turn in turns[: answers[0]]):
        raise FormatProblem(
            "TXT-014", "the assistant speaks first", "a user turn before the first answer", "put the question in front"
        )
    if any(turn.role == "system" for turn in turns[1:]):
        raise FormatProblem(
            "TXT-015", "a system turn stands in the middle", "at most one, at the start", "move it to the start"
        )
    if not turns[answers[-1]].content.strip():
        raise FormatProblem(
            "TXT-016", f"messages[{answers[-1]}].content, the answer, is empty", "some text", "leave the row out"
        )
    return example


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
