"""What a report may show of the texts of rows, prompts and answers: report.texts of the recipe.

shown    as they are
masked   letters become x and digits 0, so that lengths, lines and marks can still be seen
hidden   left out

Places (FILE:LINE), counts, rules and scores stay. Nothing of this changes what a run makes; `tunesmith explain`,
events.jsonl and the Dataset itself hold what they held.
"""

from __future__ import annotations

from typing import Any, Literal

Texts = Literal["shown", "masked", "hidden"]

# Families whose errors tell of settings, models and machines, and errors that tell of rows by counts and places only.
QUOTE_NOTHING = ("RCP", "PLN", "RUN", "CLI", "TUN", "TRK", "MDL", "TRN")
COUNT_ONLY = {"DAT": (31, 32, 33, 64), "EVL": (10, 11), "EXP": (1,)}
LEFT_OUT = "(may quote a row, so it is left out here: report.texts)"
ANSWERS = ("trained", "exported", "evaluation", "endpoint")


def redact(facts: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """The facts of a report with the texts in them as they may be shown; `shown` changes nothing."""
    if texts == "shown":
        return facts
    return {
        **facts,
        "samples": [_sample(row, texts) for row in facts["samples"] or ()] or None,
        "examples": _examples(facts["examples"], texts),
        "statistics": _statistics(facts["statistics"], texts),
        "parity": {stage: _parity(found, texts) for stage, found in facts["parity"].items()},
        "status": {**facts["status"], "trouble": _trouble(facts["status"]["trouble"])},
    }


def masked(text: str) -> str:
    """`Order 12: où?` -> `xxxxx 00: xx?`: blanks and ASCII signs stay, other digits become 0, all else x."""
    return "".join(map(_masked, text))


def _masked(character: str) -> str:
    if character.isspace() or (character.isascii() and not character.isalnum()):
        return character
    return "0" if character.isnumeric() and not character.isalpha() else "x"


def _text(text: str, texts: Texts) -> str:
    return masked(text) if texts == "masked" else ""


def _sample(row: dict[str, Any], texts: Texts) -> dict[str, Any]:
    pieces = [{**piece, "text": masked(piece["text"])} for piece in row["pieces"]] if texts == "masked" else []
    return {**row, "pieces": pieces}


def _examples(found: dict[str, Any] | None, texts: Texts) -> dict[str, Any] | None:
    if found is None:
        return None

    def entry(item: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": said["role"], "content": _text(str(said["content"]), texts)} for said in item["messages"]]
        answers = {who: _text(item[who], texts) for who in ("expected", "base", "tuned")}
        return {**item, **answers, "messages": messages if texts == "masked" else []}

    return {**found, "shown": {kind: [entry(item) for item in items] for kind, items in found["shown"].items()}}


def _statistics(statistics: dict[str, Any] | None, texts: Texts) -> dict[str, Any] | None:
    """What a filter found in the first rows it took may be their words."""
    told = (statistics or {}).get("told")
    if not told or "filters" not in told.get("cleaning", {}):
        return statistics

    def first(found: list[list[Any]]) -> list[list[Any]]:
        return [[row, _text(value, texts) if isinstance(value, str) else value] for row, value in found]

    filters = {name: {**seen, "first": first(seen["first"])} for name, seen in told["cleaning"]["filters"].items()}
    return {**statistics, "told": {**told, "cleaning": {**told["cleaning"], "filters": filters}}}  # type: ignore[dict-item]


def _parity(found: dict[str, Any] | None, texts: Texts) -> dict[str, Any] | None:
    if not found or not found.get("differences"):
        return found
    differences = [
        {name: _text(str(value), texts) if name in ANSWERS else value for name, value in entry.items()}
        for entry in found["differences"]
    ]
    return {**found, "differences": differences}


def _trouble(trouble: dict[str, Any] | None) -> dict[str, Any] | None:
    """An error of rows, of answers, or a bug of ours may quote any text: its code and its place stay."""
    if trouble is None:
        return None
    told = trouble["what"]
    if not isinstance(told, dict):
        return {**trouble, "what": LEFT_OUT}
    problems = [
        problem if _quotes_nothing(problem["code"]) else _bare(problem) for problem in told.get("problems") or ()
    ]
    what = told.get("what", "") if _quotes_nothing(str(told.get("error", ""))) else LEFT_OUT
    return {**trouble, "what": {**told, "what": what, "problems": problems}}


def _quotes_nothing(code: str) -> bool:
    family, _, number = code.partition("-")
    return family in QUOTE_NOTHING or (number.isdecimal() and int(number) in COUNT_ONLY.get(family, ()))


def _bare(problem: dict[str, Any]) -> dict[str, Any]:
    return {**problem, "what": LEFT_OUT, "expected": "", "fix": ""}
