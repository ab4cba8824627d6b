"""What the rules of a ledger are called in words, in the order in which they look at a row. Light."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS = {
    # while reading
    "bad_row": "could not be read",
    # each row by itself
    "too_short": "too short (characters)",
    "too_long_text": "too long (characters)",
    "quality": "low quality column",
    "score": "out of the bounds of a column",
    "where": "an expression is not true",
    "control_characters": "control characters",
    "language": "another language",
    "residue": "leftovers of a template or an assistant",
    "refusal": "refuses to answer",
    "repeated_ngrams": "repeats its words",
    "repeated_lines": "repeats its lines",
    "longest_run": "repeats one character",
    "api_keys": "API key",
    "private_keys": "private key",
    "tokens": "web token",
    "email": "e-mail address",
    "phone": "phone number",
    "iban": "bank account (IBAN)",
    "card": "payment card",
    "ip": "IP address",
    "national_id": "national id",
    "personal": "personal data, by a model",
    "heuristics": "low score by rules of thumb",
    "perplexity": "perplexity of the answer out of bounds",
    "difficulty": "difficulty out of bounds",
    # among all rows
    "duplicate": "exact duplicate",
    "near_duplicate": "near duplicate",
    "conflict": "same prompt, another answer",
    "leak": "gives held-out rows away",
    "mixture": "left out by the mixture",
    # as tokens
    "template": "refused by the template",
    "too_long": "too long (tokens)",
    "nothing_to_learn": "nothing to learn",
    # of rows that are used
    "truncated": "cut at the limit",
    "split": "split at turns",
    "redacted": "redacted",
}
ORDER = {rule: place for place, rule in enumerate(WORDS)}
CODE = re.compile(r"[A-Z]{3}-\d{3}")


def in_words(rule: str) -> str:
    """`score.helpfulness` and `where.2` say which column and which expression, an error code which error."""
    if CODE.fullmatch(rule):
        return f"could not be read ({rule})"
    family, _, which = rule.partition(".")
    if family == "score" and which:
        return f"column {which} out of bounds"
    if family == "where" and which:
        return f"expression {which} is not true"
    return WORDS.get(rule, rule.replace("_", " "))


def in_order(rules: Iterable[str]) -> list[str]:
    """As they look at a row: reading, each row by itself, among all rows, as tokens; unknown ones last, by name."""
    return sorted(rules, key=_place)


def _place(rule: str) -> tuple[int, str]:
    if CODE.fullmatch(rule):
        return ORDER["bad_row"], rule
    return ORDER.get(rule.partition(".")[0], len(ORDER)), rule
