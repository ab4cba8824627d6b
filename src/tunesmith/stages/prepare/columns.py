"""Which columns of foreign rows are the question and which the answer: what `tunesmith init` proposes as `fields`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.text.formats import ANSWERS, COMPLETIONS, JUDGED, PROMPTS, FormatProblem, recognise
from tunesmith.text.preference import LIKED, LISTS, SCORE_LISTS, SIDES

# Words of column names, the likelier first; a name such as "Customer Message" or "agentReply" is cut into its words.
QUESTIONS = (
    "prompt", "question", "query", "instruction", "utterance", "request", "message", "input", "text", "sentence", "review",
    "source", "problem", "document", "article", "comment", "content", "body", "description", "title",
)  # fmt: skip
REPLIES = (
    "completion", "answer", "response", "reply", "output", "target", "label", "category", "intent", "class", "sentiment",
    "summary", "translation", "solution", "expected", "sql", "code",
)  # fmt: skip
EXTRAS = ("context", "passage", "background")  # stand beside a question: the input of an instruction
BESIDE_THE_POINT = {"id", "ids", "uuid", "index", "key", "hash", "url", "date", "time", "timestamp", "split", "score"}
NUMBER = re.compile(r"[-+0-9.,eE:/ ]*")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def propose_fields(rows: Sequence[Any]) -> dict[str, str] | None:
    """Our name -> the rows' column; {} where the rows are known as they are, None where nothing can be made of them.

    rows: the first parsed rows of a file.
    """
    tables = [row for row in rows if isinstance(row, dict)]
    if not tables:
        return None
    columns = [name for name in tables[0] if all(isinstance(row.get(name), str) for row in tables)]
    known = _known(tables[0])
    if known is not None and known != "text":
        return {}
    lowered = _other_case(tables[0])
    if lowered:
        return lowered
    found = _by_names(columns)
    if found is None and known == "text":
        return {}  # texts to learn as they are
    columns = [name for name in columns if not _is_beside_the_point(name, tables)]
    if found is None and len(columns) == 2:
        found = {"prompt": columns[0], "completion": columns[1]}
    if found is None and len(columns) == 1:
        return {"text": columns[0]}
    return found


def propose_format(rows: Sequence[Any], fields: Mapping[str, str]) -> tuple[str, str, str]:
    """(kind, format, filter) for rows with answers that were judged: what lets SFT learn from them; ("", "auto", "") for others.

    kind: pair, ranked or kto. filter: an expression that leaves disliked answers out. fields: of propose_fields.
    """
    ours = {theirs: name for name, theirs in fields.items()}
    tables = [{ours.get(name, name): value for name, value in row.items()} for row in rows if isinstance(row, dict)]
    kinds = Counter(_known(row) for row in tables)
    kind = max(kinds, key=kinds.__getitem__, default=None)
    if kind not in JUDGED:
        return "", "auto", ""
    if kind != "kto":
        return kind, "chosen", ""
    row = next(row for row in tables if _known(row) == kind)
    label = next(name for name in LIKED if name in row)
    plain = _known({name: value for name, value in row.items() if name not in LIKED})
    return kind, plain or "messages", f"{label} is null or {label}"


def _is_beside_the_point(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Ids, dates, numbers: a table's cells are all text, and these are no language."""
    words = {word.lower() for word in WORD.findall(name)}
    return bool(words & BESIDE_THE_POINT) or all(NUMBER.fullmatch(row[name].strip()) for row in rows)


def _known(row: Mapping[str, Any]) -> str | None:
    try:
        return recognise(row)
    except FormatProblem:
        return None


def _other_case(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Names that are ours but for capitals and blanks: Instruction, Output."""
    ours = {name.strip().lower(): name for name in row if isinstance(name, str)}
    form = _known(ours)
    if form is None or form == "text":
        return None
    wanted = {
        "messages": ("messages",),
        "sharegpt": ("conversations", "conversation"),
        "alpaca": ("instruction", "input", "system", *ANSWERS),
        "prompt_completion": (*PROMPTS, *COMPLETIONS),
        "pair": (*PROMPTS, *(name for sides in SIDES for name in sides)),
        "ranked": (*PROMPTS, *LISTS, *SCORE_LISTS),
        "kto": (*PROMPTS, *COMPLETIONS, *LIKED),
    }[form]
    return {name: ours[name] for name in wanted if name in ours and ours[name] != name} or None


def _by_names(columns: Sequence[str]) -> dict[str, str] | None:
    answer = _first(columns, REPLIES)
    question = _first([name for name in columns if name != answer], QUESTIONS)
    if question is None or answer is None:
        return None
    extra = _first([name for name in columns if name not in (question, answer)], EXTRAS)
    if extra is not None:
        return {"instruction": question, "input": extra, "output": answer}
    return {"prompt": question, "completion": answer}


def _first(columns: Sequence[str], words: Sequence[str]) -> str | None:
    """The column with the likeliest word in its name."""
    ranked = [
        (words.index(word), place)
        for place, name in enumerate(columns)
        for word in (part.lower() for part in WORD.findall(name))
        if word in words
    ]
    return columns[min(ranked)[1]] if ranked else None
