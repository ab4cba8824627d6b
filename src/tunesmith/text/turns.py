"""One turn of a chat, in the dialects that are about: who speaks, the text, reasoning, tool calls, whether it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from tunesmith.text.example import ASSISTANT, ROLE_CODES, ROLES, SYSTEM, TOOL, USER

# In `messages` a role is written as OpenAI writes it.
STRICT = {**ROLE_CODES, "developer": SYSTEM, "function": TOOL}
# ShareGPT has as many words as exports.
SHAREGPT = {
    **STRICT,
    "human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT,
    "observation": TOOL, "tool_response": TOOL, "function_response": TOOL, "ipython": TOOL,
}  # fmt: skip
CALLERS = ("function_call", "tool_call")  # ShareGPT turns whose text is a call
SPEAKERS, TEXTS = ("role", "from", "speaker"), ("content", "value", "text", "message")

TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}
REASONING_PARTS = {"reasoning", "thinking", "reasoning_content", "think"}
CALL_PARTS = {"tool_call", "function_call", "tool_use"}
REASONING = ("reasoning_content", "reasoning", "thinking")
MEDIA = ("images", "image", "audios", "audio", "videos", "video")
PLAIN_KEYS = {*SPEAKERS, *TEXTS}


class FormatProblem(Exception):
    """A row that cannot be used: code, what, what was expected, what to do."""

    def __init__(self, code: str, what: str, expected: str, fix: str) -> None:
        super().__init__(what)
        self.code, self.what, self.expected, self.fix = code, what, expected, fix


class Chat(NamedTuple):
    """roles: as in columns. particulars: place -> what the turn holds besides role and content."""

    roles: list[int]
    contents: list[str]
    particulars: dict[int, dict[str, Any]]


def read_chat(turns: Any, name: str, codes: dict[str, int]) -> Chat:
    """A list of turns. name: of its column. codes: STRICT or SHAREGPT. Raises FormatProblem TXT-004 to TXT-011, TXT-040."""
    if type(turns) is not list:
        expected = "a list of {role, content}" if codes is STRICT else "a list of {from, value}"
        raise FormatProblem("TXT-004", f"{name} is {kind(turns)}", expected, "parse the text into a list before")
    chat = Chat([], [], {})
    for place, turn in enumerate(turns):
        role, content, found = _turn(turn, f"{name}[{place}]", codes)
        if found:
            chat.particulars[place] = found
        chat.roles.append(role)
        chat.contents.append(content)
    return chat


def _turn(turn: Any, place: str, codes: dict[str, int]) -> tuple[int, str, dict[str, Any]]:
    speaker = next((key for key in SPEAKERS if key in turn), None) if isinstance(turn, dict) else None
    if speaker is None:
        lacks = " without a role" if isinstance(turn, dict) else ""
        raise FormatProblem("TXT-005", f"{place} is {kind(turn)}{lacks}", "{role, content}", "mend the row")
    refuse_media(turn, place)
    found = _particulars(turn, place)
    text = next((key for key in TEXTS if key in turn), "content")
    if str(turn[speaker]).strip().lower() in CALLERS and codes is SHAREGPT:
        found["tool_calls"] = read_calls(turn.get(text), f"{place}.{text}")
        return ASSISTANT, "", found
    role = role_code(turn[speaker], f"{place}.{speaker}", codes if speaker == "role" else SHAREGPT)
    content = _content(turn.get(text), f"{place}.{text}", found)
    return role, content, found


def role_code(role: Any, place: str, codes: dict[str, int]) -> int:
    """Raises FormatProblem TXT-011 with the role that is likely meant."""
    code = codes.get(role) if isinstance(role, str) else None
    name = str(role).strip().lower()
    if code is None and codes is SHAREGPT:
        code = codes.get(name)
    if code is not None:
        return code
    guess = SHAREGPT.get(name, ASSISTANT if name in ("bot", "ai", "agent") else USER if name == "prompter" else None)
    fix = "use one of these roles" if guess is None else f"write {ROLES[guess]!r}"
    raise FormatProblem("TXT-011", f"{place} is {role!r:.80}", ", ".join(ROLES), fix)


# ------------------------------------------------------------------------------------------------------------- contents


def text_of(value: Any, place: str) -> str:
    """A text, or a list of text parts joined. Raises FormatProblem TXT-007 to TXT-009."""
    found: dict[str, Any] = {}
    text = _content(value, place, found)
    if found:
        raise FormatProblem("TXT-007", f"{place} holds {', '.join(found)}", "text", "write a chat (messages) instead")
    return text


def _content(value: Any, place: str, found: dict[str, Any]) -> str:
    """The text of a turn; reasoning and calls among its parts go to `found`."""
    if type(value) is str:
        return whole(value, place)
    if isinstance(value, dict) and "type" in value:
        value = [value]
    if isinstance(value, list) and value:
        return "".join(_part(part, f"{place}[{number}]", found) for number, part in enumerate(value))
    if value is None and "tool_calls" in found:
        return ""
    raise FormatProblem("TXT-008", f"{place} is {kind(value)}", "text", f"write {place} as a string")


def _part(part: Any, place: str, found: dict[str, Any]) -> str:
    if isinstance(part, str):
        return whole(part, place)
    named = part.get("type") if isinstance(part, dict) else kind(part)
    if named in TEXT_PARTS:
        return whole(_of(part, ("text", "value", "content", "refusal"), place), place)
    if named in REASONING_PARTS:
        text = whole(_of(part, ("text", "value", "thinking", "reasoning", "content"), place), place)
        found["reasoning"] = found.get("reasoning", "") + text
        return ""
    if named in CALL_PARTS:
        called = next((part[key] for key in ("value", "function", "tool_call") if key in part), None)
        if called is None:
            called = {
                "name": part.get("name"),
                "arguments": part.get("input", part.get("arguments")),
                "id": part.get("id"),
            }
        found.setdefault("tool_calls", []).extend(read_calls(called, place))
        return ""
    raise FormatProblem(
        "TXT-007",
        f"{place} is {named if named is not None else 'a part without a type'}, which is not supported yet",
        "text, reasoning or tool calls",
        "leave the row out",
    )


def _of(part: dict[str, Any], names: Sequence[str], place: str) -> Any:
    return next((part[name] for name in names if name in part), None)


def whole(text: Any, place: str) -> str:
    """A string of whole Unicode characters. Raises FormatProblem TXT-008, TXT-009."""
    if not isinstance(text, str):
        raise FormatProblem("TXT-008", f"{place} is {kind(text)}", "text", f"write {place} as a string")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FormatProblem(
                "TXT-009",
                f"{place} holds half a character (a lone surrogate, U+{ord(text[error.start]):04X}) at character {error.start}",
                "whole Unicode characters",
                "write the row again with ensure_ascii=False from the intact text",
            ) from error
    return text


def refuse_media(row: dict[str, Any], place: str) -> None:
    """Raises FormatProblem TXT-041 where images, audio or video belong to the row."""
    for name in MEDIA:
        if row.get(name):
            what = f"{place}{'.' if place else ''}{name}: images, audio and video are not supported yet"
            raise FormatProblem(
                "TXT-041", what, "text", "leave the row out, or name the columns to read (columns: [...])"
            )


# ---------------------------------------------------------------------------------------------------------- particulars


def _particulars(turn: dict[str, Any], place: str) -> dict[str, Any]:
    """What the turn holds besides role and content; see Message."""
    found: dict[str, Any] = {}
    if turn.keys() <= PLAIN_KEYS:
        return found
    _learned(turn, place, found)
    for name in REASONING:
        if turn.get(name):
            found["reasoning"] = whole(turn[name], f"{place}.{name}")
            break
    called = turn.get("tool_calls") or turn.get("function_call")
    if called:
        found["tool_calls"] = read_calls(
            called, f"{place}.{'tool_calls' if turn.get('tool_calls') else 'function_call'}"
        )
    for name in ("name", "tool_call_id"):
        if turn.get(name) is not None:
            found[name] = whole(turn[name], f"{place}.{name}")
    return found


def _learned(turn: dict[str, Any], place: str, found: dict[str, Any]) -> None:
    """learn and weight of a turn. A weight of 0 is not learned; 1 is what learned tokens weigh anyway."""
    for name in ("train", "learn", "training", "loss"):
        value = turn.get(name)
        if value is not None:
            if value not in (0, 1):
                raise FormatProblem("TXT-040", f"{place}.{name} is {value!r:.80}", "true or false", "mend the row")
            found["learn"] = bool(value)
            return
    for name in ("weight", "loss_weight"):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise FormatProblem("TXT-040", f"{place}.{name} is {value!r:.80}", "a number from 0", "mend the row")
        found["learn"] = value > 0
        if value not in (0, 1):
            found["weight"] = float(value)
        return


# ---------------------------------------------------------------------------------------------------------------- tools


def read_calls(called: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls as OpenAI writes them, with arguments as an object. called: one or a list, or JSON of that.

    Raises FormatProblem TXT-006.
    """
    if isinstance(called, str):
        called = _json(called, place, "TXT-006")
    calls = called if isinstance(called, list) else [called]
    if not calls:
        raise _no_call(place, called)
    return [
        _call(call, f"{place}[{number}]" if isinstance(called, list) else place) for number, call in enumerate(calls)
    ]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise _no_call(place, call)
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = _json(arguments, f"{place}.arguments", "TXT-006")
    if not arguments and not isinstance(arguments, (int, list)):
        arguments = {}
    if not isinstance(arguments, dict):
        raise FormatProblem("TXT-006", f"{place}.arguments is {kind(arguments)}", "an object", "mend the call")
    out = {"type": "function", "function": {"name": whole(name, place), "arguments": arguments}}
    _all_whole(arguments, f"{place}.arguments")
    return {"id": whole(call["id"], f"{place}.id"), **out} if call.get("id") else out


def _no_call(place: str, call: Any) -> FormatProblem:
    what = (
        f"{place} is {kind(call)} without a function's name" if isinstance(call, dict) else f"{place} is {kind(call)}"
    )
    return FormatProblem("TXT-006", what, '{"name": ..., "arguments": {...}}', "mend the call or leave the row out")


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """The functions on offer as OpenAI writes them. tools: a list, or JSON of one. Raises FormatProblem TXT-042."""
    if isinstance(tools, str):
        return _tools_in(tools)
    return _tools(tools)


@lru_cache(maxsize=256)  # rows of one set offer the same functions
def _tools_in(text: str) -> list[dict[str, Any]]:
    return _tools(_json(text, "tools", "TXT-042")) if text.strip() else []


def _tools(tools: Any) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise FormatProblem("TXT-042", f"tools is {kind(tools)}", "a list of functions", "mend the row")
    out = []
    for place, tool in enumerate(tools):
        tool = _json(tool, f"tools[{place}]", "TXT-042") if isinstance(tool, str) else tool
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            what = f"tools[{place}] is {kind(tool)} without a function's name"
            raise FormatProblem("TXT-042", what, '{"name": ..., "parameters": {...}}', "mend the row")
        _all_whole(function, f"tools[{place}]")
        out.append({"type": "function", "function": function})
    return out


def _json(text: str, place: str, code: str) -> Any:
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        why = str(error).split(": line")[0]
        raise FormatProblem(code, f"{place} is not JSON ({why})", "JSON", "write it with json.dumps") from error


def _all_whole(value: Any, place: str) -> None:
    """What JSON cannot carry on: half characters, numbers beyond 64 bits."""
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise FormatProblem(
            "TXT-008", f"{place}: {error}", "whole characters, numbers of 64 bits", "mend the row"
        ) from error


def kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
