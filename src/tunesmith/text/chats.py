"""Chats and texts of each format as columns: one question after another, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from tunesmith.text.example import ASSISTANT, SYSTEM, TEXT, USER
from tunesmith.text.turns import SHAREGPT, STRICT, Chat, FormatProblem, kind, read_chat, read_tools, text_of, whole

ANSWERS = ("output", "response", "answer")
PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "answer", "response")
CHATS = ("conversations", "conversation")

Found = tuple[list[int], list[str], dict[str, Any] | None]  # roles, contents, extra
_ORDERS: set[tuple[int, ...]] = set()  # orders of roles that were judged good
MAX_ORDERS = 4096


def quick(column: str, make: Callable[[dict[str, Any]], Found]) -> Callable[[dict[str, Any]], Found]:
    """`make` for rows whose only column of a chat is `column`, with a way of its own for those that are nothing but texts.

    That way is taken by nearly all rows, so it is one function; whatever it does not know goes through `make`.
    """
    names, codes = (("role", "content"), STRICT) if column == "messages" else (("from", "value"), SHAREGPT)
    speaker_of, content_of = map(itemgetter, names)
    code_of = codes.__getitem__

    def made(row: dict[str, Any]) -> Found:
        turns = row[column]
        try:
            roles = [*map(code_of, map(speaker_of, turns))]
            contents = [*map(content_of, turns)]
            whole = "".join(contents)  # a TypeError where one is no text
            if not whole.isascii():
                whole.encode()
        except (KeyError, TypeError, UnicodeEncodeError):
            return make(row)
        if (
            tuple(roles) not in _ORDERS
            or sum(map(len, turns)) != 2 * len(turns)
            or "" in contents
            or True in map(str.isspace, contents)
        ):
            return make(row)
        return roles, contents, None

    return made


def quick_answer(
    question: str, answer: str, beside: str | None, make: Callable[[dict[str, Any]], Found]
) -> Callable[[dict[str, Any]], Found]:
    """The same for a question (with what stands beside it) and an answer that are plain texts."""

    def made(row: dict[str, Any]) -> Found:
        asked, answered = row[question], row[answer]
        more = row[beside] if beside else ""
        try:
            if not (asked + more + answered).isascii():
                (asked + more + answered).encode()
        except (TypeError, UnicodeEncodeError):
            return make(row)
        if type(asked) is not str or not answered or answered.isspace():
            return make(row)
        if more and not more.isspace():
            asked = f"{asked}\n\n{more}"
        return [USER, ASSISTANT], [asked, answered], None

    return made


def messages(row: dict[str, Any]) -> Found:
    """OpenAI: messages [{role, content, tool_calls ...}], tools."""
    return finished(with_system(read_chat(row["messages"], "messages", STRICT), row), row)


def sharegpt(row: dict[str, Any]) -> Found:
    """conversations [{from, value}], system, tools."""
    return finished(sharegpt_turns(row), row)


def sharegpt_turns(row: dict[str, Any]) -> Chat:
    name = first(row, CHATS) or "conversations"
    return with_system(read_chat(row.get(name), name, SHAREGPT), row)


def alpaca(row: dict[str, Any]) -> Found:
    """instruction, input, output, system, history [[question, answer], ...]."""
    chat = alpaca_question(row)
    answer = first(row, ANSWERS) or "output"
    chat.roles.append(ASSISTANT)
    chat.contents.append(text_of(row.get(answer), answer))
    return finished(chat, row)


def alpaca_question(row: dict[str, Any]) -> Chat:
    instruction = text_of(row.get("instruction"), "instruction")
    beside = row.get("input")
    if beside:
        beside = text_of(beside, "input")
        if beside and not beside.isspace():
            instruction = f"{instruction}\n\n{beside}"
    chat = Chat([], [], {})
    for place, pair in enumerate(row.get("history") or ()):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            what = f"history[{place}] is {kind(pair)}"
            raise FormatProblem("TXT-049", what, "[question, answer]", "mend the row")
        chat.roles.extend((USER, ASSISTANT))
        chat.contents.extend(text_of(text, f"history[{place}]") for text in pair)
    chat.roles.append(USER)
    chat.contents.append(instruction)
    return with_system(chat, row)


def prompt_completion(row: dict[str, Any]) -> Found:
    """prompt and completion (question and answer): texts, or lists of messages."""
    chat = asked(row)
    name = first(row, COMPLETIONS) or "completion"
    completion = row.get(name)
    answer = read_chat(completion, name, STRICT) if isinstance(completion, list) and _is_chat(completion) else None
    return finished(joined(chat, answer or Chat([ASSISTANT], [text_of(completion, name)], {})), row)


def asked(row: dict[str, Any]) -> Chat:
    """The prompt alone."""
    name = first(row, PROMPTS) or "prompt"
    prompt = row.get(name)
    if isinstance(prompt, list) and _is_chat(prompt):
        return with_system(read_chat(prompt, name, STRICT), row)
    return with_system(Chat([USER], [text_of(prompt, name)], {}), row)


def text(row: dict[str, Any]) -> Found:
    """text: learned as it is."""
    content = row.get("text")
    if type(content) is not str or not content.isascii():
        content = text_of(content, "text")
    if not content or content.isspace():
        raise FormatProblem("TXT-010", "text is empty", "some text", "leave the row out")
    return [TEXT], [content], None


# ------------------------------------------------------------------------------------------------------------ the parts


def first(row: dict[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if name in row:
            return name
    return None


def _is_chat(value: list[Any]) -> bool:
    """Messages, and not the typed parts of one content."""
    return not value or not isinstance(value[0], dict) or "type" not in value[0] or "role" in value[0]


def joined(chat: Chat, more: Chat) -> Chat:
    shift = len(chat.roles)
    particulars = {**chat.particulars, **{place + shift: found for place, found in more.particulars.items()}}
    return Chat(chat.roles + more.roles, chat.contents + more.contents, particulars)


def with_system(chat: Chat, row: dict[str, Any]) -> Chat:
    """The column `system`, where there is one, as the first turn."""
    system = row.get("system")
    if not system:
        return chat
    if whole(system, "system").isspace() or (chat.roles and chat.roles[0] == SYSTEM):
        return chat
    return joined(Chat([SYSTEM], [system], {}), chat)


def finished(chat: Chat, row: dict[str, Any]) -> Found:
    """The chat as columns, when its order is one that can be learned and no answer is empty."""
    check_order(chat.roles)
    for place, role in enumerate(chat.roles):
        content = chat.contents[place]
        if role == ASSISTANT and (not content or content.isspace()):
            _refuse_empty(chat, place)
    offered = row.get("tools") or row.get("functions")
    if not chat.particulars and not offered:
        return chat.roles, chat.contents, None
    return chat.roles, chat.contents, extra_of(chat, offered)


def extra_of(chat: Chat, offered: Any) -> dict[str, Any] | None:
    extra: dict[str, Any] = {}
    if chat.particulars:
        extra["turns"] = {str(place): found for place, found in chat.particulars.items()}
    tools = read_tools(offered) if offered else None
    if tools:
        extra["tools"] = tools
    return extra or None


def _refuse_empty(chat: Chat, place: int) -> None:
    found = chat.particulars.get(place, {})
    if "tool_calls" not in found and found.get("learn") is not False:
        raise empty_answer(f"messages[{place}].content")


def empty_answer(place: str) -> FormatProblem:
    return FormatProblem("TXT-016", f"{place}, an answer, is empty", "some text", "leave the row out")


def check_order(roles: list[int]) -> None:
    """Something is asked, and something is answered. Raises FormatProblem TXT-012 to TXT-015."""
    order = tuple(roles)
    if order in _ORDERS:
        return
    if not roles:
        raise FormatProblem(
            "TXT-012", "the chat has no turns", "at least a question and an answer", "leave the row out"
        )
    if ASSISTANT not in roles:
        raise FormatProblem("TXT-013", "there is no assistant turn: nothing to learn", "an answer", "leave the row out")
    check_question(roles[: roles.index(ASSISTANT)])
    check_system(roles)
    if len(_ORDERS) < MAX_ORDERS:
        _ORDERS.add(order)


def check_system(roles: list[int]) -> None:
    """Raises FormatProblem TXT-015 for a system turn that is not the first."""
    if SYSTEM in roles[1:]:
        raise FormatProblem(
            "TXT-015", "a system turn stands in the middle", "at most one, at the start", "move it to the start"
        )


def check_question(before: list[int]) -> None:
    """Raises FormatProblem TXT-014 where nothing is asked before the first answer. before: the roles up to it."""
    if all(role == SYSTEM for role in before):
        raise FormatProblem(
            "TXT-014", "the assistant speaks first", "a user turn before the first answer", "put the question in front"
        )
