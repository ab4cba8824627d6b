"""Answers that were judged: pairs, answers that were liked or not, ranked ones; the prompt they share stands apart.

Schemas: TRL (prompt, chosen, rejected; with or without the prompt in them), LLaMA-Factory (conversations, chosen,
rejected; messages, label), ms-swift (messages, rejected_response), OpenAI (input, preferred_output,
non_preferred_output), chosen_messages/rejected_messages, Stack Exchange (question, response_j, response_k), Anthropic's
flat "\\n\\nHuman: ...", UltraFeedback (instruction, completions with scores).
"""

from __future__ import annotations

import re
from typing import Any

from tunesmith.text.chats import (
    CHATS,
    COMPLETIONS,
    PROMPTS,
    Found,
    alpaca_question,
    asked,
    check_question,
    check_system,
    empty_answer,
    extra_of,
    finished,
    first,
    joined,
    sharegpt_turns,
    with_system,
)
from tunesmith.text.example import ASSISTANT, ROLES, USER
from tunesmith.text.turns import SHAREGPT, STRICT, Chat, FormatProblem, kind, read_chat, text_of

SIDES = (
    ("chosen", "rejected"), ("chosen_messages", "rejected_messages"), ("response_j", "response_k"),
    ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),
)  # fmt: skip
REJECTED = ("rejected_response", "rejected_messages", "rejected")  # beside `messages` that end with the chosen answer
LIKED = ("label", "kto_tag")
LISTS = ("answers", "responses", "completions", "candidates")
SCORE_LISTS = ("scores", "ratings", "rewards")
SCORES = ("score", "rating", "reward", "overall_score")
ANSWER_TEXTS = ("text", "content", "response", "answer", "output", "completion")
FLAT = re.compile(r"\n\n(Human|Assistant): ?")


def sides_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer. "" as the first: it is the last of `messages`."""
    for better, worse in SIDES:
        if better in row or worse in row:
            if better not in row and worse in REJECTED and ("messages" in row or first(row, CHATS)):
                return "", worse
            if better in row or worse != "rejected_response":
                return better, worse
    return None


def is_liked(row: dict[str, Any]) -> bool:
    return any(type(row.get(name)) is bool for name in LIKED)


def is_ranked(row: dict[str, Any]) -> bool:
    """A list of answers to one prompt, each with a score."""
    name = first(row, LISTS)
    answers = row.get(name) if name else None
    if not isinstance(answers, list) or not answers:
        return False
    inside = all(isinstance(answer, dict) and first(answer, SCORES) for answer in answers)
    return inside or (first(row, SCORE_LISTS) is not None and all(isinstance(a, (str, list, dict)) for a in answers))


# ---------------------------------------------------------------------------------------------------------------- pairs


def pair(row: dict[str, Any]) -> Found:
    """A prompt with answers chosen and rejected. Raises FormatProblem TXT-043 to TXT-045."""
    prompt, chosen, rejected = _pair(row)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(side, name)
    if chosen == rejected:
        raise FormatProblem(
            "TXT-044", "the chosen and the rejected answer are equal", "two answers", "leave the row out"
        )
    return _with_answers(prompt, row, [_answer(chosen, "chosen"), _answer(rejected, "rejected")])


def chosen(row: dict[str, Any]) -> Found:
    """The better answer of a pair, or the best scored one, as a chat to learn from."""
    if sides_of(row) is None:
        if is_ranked(row):
            prompt, answers = _ranked(row)
            return finished(joined(prompt, max(answers, key=lambda answer: answer[1])[0]), row)
        raise FormatProblem(
            "TXT-043",
            "there is no pair of answers in the row",
            "chosen and rejected",
            "format: auto reads chats; this source is said to hold pairs (data.sources.format: chosen)",
        )
    prompt, better, _ = _pair(row)
    _check_answer(better, "chosen")
    return finished(joined(prompt, better), row)


def _pair(row: dict[str, Any]) -> tuple[Chat, Chat, Chat]:
    names = sides_of(row) or SIDES[0]
    for name in names:
        if name and row.get(name) in (None, "", [], {}):
            what = f"{name} is {'missing' if name not in row else 'empty'}"
            raise FormatProblem("TXT-043", what, f"both {names[0] or 'messages'} and {names[1]}", "leave the row out")
    prompt = _prompt(row)
    if not names[0]:
        better = prompt or Chat([], [], {})
        prompt = None
        last = len(better.roles)
        while last and better.roles[last - 1] == ASSISTANT:
            last -= 1
        worse = _side(row[names[1]], names[1])
        if worse.roles[:1] == [ASSISTANT]:
            return _cut(better, 0, last), _cut(better, last), worse
    else:
        better, worse = (_side(row[name], name) for name in names)
    if prompt is not None and better.roles[:1] == worse.roles[:1] == [ASSISTANT]:
        return prompt, better, worse
    if prompt is not None and _starts_with(better, prompt) and _starts_with(worse, prompt):
        shared = len(prompt.roles)
        return prompt, _cut(better, shared), _cut(worse, shared)
    return _cut_apart(better, worse)


def _prompt(row: dict[str, Any]) -> Chat | None:
    """The prompt of a row that names it; None where it stands in the answers."""
    offered = row.get("input")
    if isinstance(offered, dict) and "messages" in offered:
        return read_chat(offered["messages"], "input.messages", STRICT)
    if row.get("messages") is not None:
        return with_system(read_chat(row["messages"], "messages", STRICT), row)
    if first(row, CHATS):
        return sharegpt_turns(row)
    if "instruction" in row:
        return alpaca_question(row)
    if first(row, PROMPTS):
        return asked(row)
    return None


def _side(value: Any, name: str) -> Chat:
    if isinstance(value, str) and FLAT.match(value):
        return _flat(value, name)
    if isinstance(value, str):
        return Chat([ASSISTANT], [text_of(value, name)], {})
    turns = [value] if isinstance(value, dict) else value
    speaks = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]
    return read_chat(turns, name, SHAREGPT if speaks else STRICT)


def _flat(value: str, name: str) -> Chat:
    """Anthropic's form: a whole chat in one text."""
    _, *pieces = FLAT.split(text_of(value, name))
    roles = [USER if who == "Human" else ASSISTANT for who in pieces[::2]]
    return Chat(roles, [text.strip() for text in pieces[1::2]], {})


def _cut(chat: Chat, start: int, end: int | None = None) -> Chat:
    end = len(chat.roles) if end is None else end
    particulars = {place - start: found for place, found in chat.particulars.items() if start <= place < end}
    return Chat(chat.roles[start:end], chat.contents[start:end], particulars)


def _starts_with(chat: Chat, beginning: Chat) -> bool:
    size = len(beginning.roles)
    return chat.roles[:size] == beginning.roles and chat.contents[:size] == beginning.contents


def _cut_apart(better: Chat, worse: Chat) -> tuple[Chat, Chat, Chat]:
    """The turns that both share are the prompt; what differs must be answers."""
    shared = 0
    for ours, theirs in zip(
        zip(better.roles, better.contents, strict=True), zip(worse.roles, worse.contents, strict=True), strict=False
    ):
        if ours != theirs:
            break
        shared += 1
    if shared == len(better.roles) == len(worse.roles):
        raise FormatProblem(
            "TXT-044", "the chosen and the rejected answer are equal", "two answers", "leave the row out"
        )
    if USER in better.roles[shared:] + worse.roles[shared:] or not shared:
        what = (
            "chosen and rejected answer different prompts" if shared else "there is no prompt that both answers share"
        )
        raise FormatProblem(
            "TXT-045",
            what,
            "the same turns up to the answer",
            "leave the row out, or name the prompt's column in fields",
        )
    return _cut(better, 0, shared), _cut(better, shared), _cut(worse, shared)


def _check_answer(side: Chat, name: str) -> None:
    if not side.roles or side.roles[0] != ASSISTANT:
        who = ROLES[side.roles[0]] if side.roles else "nobody"
        raise FormatProblem("TXT-045", f"{name} begins with {who}", "an answer to the prompt", "leave the row out")
    for place, (role, content) in enumerate(zip(side.roles, side.contents, strict=True)):
        if role == ASSISTANT and not content.strip() and "tool_calls" not in side.particulars.get(place, {}):
            raise empty_answer(name)


# ------------------------------------------------------------------------------------------------- liked, and ranked ones


def liked(row: dict[str, Any]) -> Found:
    """KTO: a chat or prompt/completion, with label true or false. Raises FormatProblem TXT-046."""
    name = first(row, LIKED) or "label"
    label = row.get(name)
    if type(label) is not bool:
        raise FormatProblem("TXT-046", f"{name} is {label!r:.80}", "true or false", "mend the row")
    completion = first(row, COMPLETIONS)
    if "messages" in row or first(row, CHATS):
        chat = _prompt(row) or Chat([], [], {})
        if chat.roles[-1:] != [ASSISTANT]:
            raise FormatProblem("TXT-039", "the chat does not end with an answer", "an answer", "leave the row out")
        prompt, answer = _cut(chat, 0, len(chat.roles) - 1), _cut(chat, len(chat.roles) - 1)
    else:
        prompt = _prompt(row) or Chat([], [], {})
        answer = _side(row.get(completion), completion) if completion else Chat([], [], {})
    _check_answer(answer, completion or "the last turn")
    return _with_answers(prompt, row, [{**_answer(answer, "candidate"), "label": label}])


def ranked(row: dict[str, Any]) -> Found:
    """A prompt with several answers, each with a score. Raises FormatProblem TXT-047."""
    prompt, answers = _ranked(row)
    return _with_answers(prompt, row, [{**_answer(a, "candidate"), "score": score} for a, score in answers])


def _ranked(row: dict[str, Any]) -> tuple[Chat, list[tuple[Chat, float]]]:
    name = first(row, LISTS) or "answers"
    answers = row.get(name)
    scores = row.get(first(row, SCORE_LISTS) or "scores")
    if not isinstance(answers, list) or not answers:
        raise FormatProblem("TXT-047", f"{name} is {kind(answers)}", "a list of answers", "mend the row")
    if scores is None:
        scores = [answer.get(first(answer, SCORES)) if isinstance(answer, dict) else None for answer in answers]
    if not isinstance(scores, list) or len(scores) != len(answers):
        count = len(scores) if isinstance(scores, list) else kind(scores)
        raise FormatProblem(
            "TXT-047", f"{len(answers)} answers, scores: {count}", "one score for each answer", "mend the row"
        )
    found = []
    for place, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if (
            isinstance(score, bool)
            or not isinstance(score, (int, float))
            or abs(score) == float("inf")
            or score != score
        ):
            raise FormatProblem("TXT-047", f"the score of {name}[{place}] is {score!r:.80}", "a number", "mend the row")
        if isinstance(answer, dict) and "role" not in answer and "from" not in answer:
            answer = answer.get(first(answer, ANSWER_TEXTS))
        side = _side(answer, f"{name}[{place}]")
        _check_answer(side, f"{name}[{place}]")
        found.append((side, float(score)))
    prompt = _prompt(row)
    if prompt is None:
        raise FormatProblem(
            "TXT-045", "there is no prompt", "prompt, question, instruction or messages", "map it by fields"
        )
    return prompt, found


def _answer(chat: Chat, role: str) -> dict[str, Any]:
    turns = [
        {"role": ROLES[code], "content": content, **chat.particulars.get(place, {})}
        for place, (code, content) in enumerate(zip(chat.roles, chat.contents, strict=True))
    ]
    return {"role": role, "messages": turns}


def _with_answers(prompt: Chat, row: dict[str, Any], answers: list[dict[str, Any]]) -> Found:
    check_question(prompt.roles)
    check_system(prompt.roles)
    if prompt.roles[-1] == ASSISTANT:
        raise FormatProblem("TXT-045", "the prompt ends with an answer", "a prompt that asks", "mend the row")
    offered = row.get("tools") or row.get("functions")
    return prompt.roles, prompt.contents, {**(extra_of(prompt, offered) or {}), "answers": answers}
