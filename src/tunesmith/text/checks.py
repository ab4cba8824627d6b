"""What must hold of learned tokens before anything is trained: looked at on a sample of rows, and on all rows in columns.

A mask that is wrong trains in silence: the loss falls, and the model never stops, or learns its users' words. So each check
that fails stops the run and names rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np

from tunesmith.errors import DataError, Problem
from tunesmith.text.example import Example
from tunesmith.text.policies import Learn
from tunesmith.text.segments import Segment
from tunesmith.text.templates import TemplateError
from tunesmith.text.tokenizers import Encoded, Tokenizer

SHOWN = 3


@dataclass
class MaskFacts:
    """What the checks saw. Of the sample: rows, and places of rows, by what was found.

    refused: the template does not take the row. nothing_learned: no token of it is learned. control_in_text: somebody's text
    holds a control token (encoded as text; such a row has other ids than its text encoded whole). whole_differs: of the other
    rows, those whose ids differ from their text's encoded whole. prompt_differs: the template itself renders the prompt
    otherwise than the beginning of the whole chat, so served prompts look otherwise than trained ones. thinking_left_out: the
    template does not print the last answer's thinking. stops: tokens that end
    learned answers, by how many.
    """

    rows: int = 0
    refused: list[str] = field(default_factory=list)
    nothing_learned: list[str] = field(default_factory=list)
    control_in_text: list[str] = field(default_factory=list)
    whole_differs: list[str] = field(default_factory=list)
    prompt_differs: list[str] = field(default_factory=list)
    thinking_left_out: list[str] = field(default_factory=list)
    stops: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class _Failure:
    place: str
    what: str


def check_masks(tokenizer: Tokenizer, rows: Sequence[tuple[str, Example]], learn: Learn) -> MaskFacts:
    """Check a sample of rows, each with its place (file:line).

    Raises DataError TXT-050 no row has anything to learn, TXT-051 a learned answer does not end with a stop token, TXT-052
    the start token is missing or doubled, TXT-053 a control token came out of somebody's text, TXT-054 training's ids do not
    begin with the prompt's that serving makes. All that fail are told at once.
    """
    facts = MaskFacts(rows=len(rows))
    segments: list[list[Segment]] = []
    taken: list[tuple[str, Example]] = []
    for place, example in rows:
        try:
            segments.append(tokenizer.encode_example(example, learn))
            taken.append((place, example))
        except TemplateError:
            facts.refused.append(place)
    failures: dict[str, list[_Failure]] = {}
    for (place, example), own, encoded in zip(taken, segments, tokenizer.encode_segments(segments), strict=True):
        for code, what in _check_row(tokenizer, place, example, own, encoded, facts):
            failures.setdefault(code, []).append(_Failure(place, what))
    if taken and len(facts.nothing_learned) == len(taken):
        failures["TXT-050"] = [_Failure(place, "no token is learned") for place in facts.nothing_learned]
    _refuse(failures, len(taken))
    return facts


def _check_row(
    tokenizer: Tokenizer, place: str, example: Example, own: list[Segment], encoded: Encoded, facts: MaskFacts
) -> list[tuple[str, str]]:
    ids, spans = encoded
    failures: list[tuple[str, str]] = []
    text = "".join(segment.text for segment in own)
    if not sum(end - max(start, 1) for start, end, _ in spans):
        facts.nothing_learned.append(place)
    elif (failure := _unstopped(tokenizer, example, own, ids, spans, facts)) is not None:
        failures.append(("TXT-051", failure))
    if (failure := wrong_start(tokenizer, ids)) is not None:
        failures.append(("TXT-052", failure))
    thought = example.messages[-1].reasoning if example.messages else None
    if thought and thought.strip() not in text:
        facts.thinking_left_out.append(place)
    if tokenizer.holds_control_tokens(own):
        facts.control_in_text.append(place)
    elif tokenizer.encode_whole(text) != ids.tolist():
        facts.whole_differs.append(place)
    if (failure := _forged(tokenizer, own, ids)) is not None:
        failures.append(("TXT-053", failure))
    if (failure := _other_prompt(tokenizer, place, example, text, ids, facts)) is not None:
        failures.append(("TXT-054", failure))
    return failures


def _unstopped(
    tokenizer: Tokenizer,
    example: Example,
    own: Sequence[Segment],
    ids: np.ndarray,
    spans: Sequence[tuple[int, int, float]],
    facts: MaskFacts,
) -> str | None:
    """The last learned turn must end with a token that stops generation. A tool call may end with what hands over to the
    tool, which the template alone knows."""
    last = next(segment for segment in reversed(own) if segment.learned)
    stop = int(ids[spans[-1][1] - 1])
    name = tokenizer.decode([stop], skip_special=False)
    facts.stops[name] = facts.stops.get(name, 0) + 1
    turn = example.messages[last.answer] if last.answer is not None else None
    hands_over = turn is not None and (turn.role != "assistant" or (turn.tool_calls and not last.is_content))
    if stop in tokenizer.stop_ids or hands_over:
        return None
    return f"the learned part ends with {name!r}, which stops nothing"


def wrong_start(tokenizer: Tokenizer, ids: np.ndarray | Sequence[int]) -> str | None:
    """What is wrong with the start token of these ids."""
    start = tokenizer.bos_id
    if start is None or not len(ids):
        return None
    if len(ids) > 1 and ids[0] == start and ids[1] == start and tokenizer.adds_bos:
        return f"{tokenizer.hf.bos_token!r} stands twice at the start"
    if tokenizer.adds_bos and ids[0] != start:
        return f"{tokenizer.hf.bos_token!r} is missing at the start, where this tokenizer puts it"
    return None


def _forged(tokenizer: Tokenizer, own: Sequence[Segment], ids: np.ndarray) -> str | None:
    """As many control tokens as the template wrote (and markers such as <think> in the model's own answers), not one more."""
    written = tokenizer.count_control_tokens(own)
    found = int(np.isin(ids, tokenizer.control_ids).sum())
    return None if found <= written else f"{found - written} control tokens came out of somebody's text"


def _other_prompt(
    tokenizer: Tokenizer, place: str, example: Example, text: str, ids: np.ndarray, facts: MaskFacts
) -> str | None:
    """The ids of a prompt as the gate makes them must be the beginning of the row that answers it."""
    if example.text is not None or not example.messages or example.messages[-1].role != "assistant":
        return None
    asked = example.messages[:-1]
    try:
        prompt = tokenizer.template.render(asked, add_generation_prompt=True, tools=example.tools)
        served = tokenizer.encode_prompt(asked, example.tools)
    except TemplateError:
        return None
    if not text.startswith(prompt):
        facts.prompt_differs.append(place)
        return None
    if ids[: len(served)].tolist() == served:
        return None
    at = next(
        (n for n, (a, b) in enumerate(zip(ids.tolist(), served, strict=False)) if a != b), min(len(ids), len(served))
    )
    return f"token {at} is {tokenizer.decode(ids[at : at + 1].tolist(), skip_special=False)!r}, serving makes {tokenizer.decode(served[at : at + 1], skip_special=False)!r}"


# -------------------------------------------------------------------------------------------------------- all rows at once


class Columns(Protocol):
    """Encoded rows: ids int32 [T], offsets int64 [N+1], spans int32 [K, 2] within the rows, span_offsets int64 [N+1]."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def spans(self) -> np.ndarray: ...
    @property
    def span_offsets(self) -> np.ndarray: ...


@dataclass
class ColumnFacts:
    """Of all rows that have ids. nothing_learned: (part, row in it). learned, stopped: rows with something to learn, and
    those of them whose last learned token stops generation (a tool call and a row that was cut need not)."""

    rows: int = 0
    learned: int = 0
    stopped: int = 0
    nothing_learned: list[tuple[int, int]] = field(default_factory=list)


def check_columns(tokenizer: Tokenizer, parts: Iterable[Columns], name: Callable[[int, int], str]) -> ColumnFacts:
    """The cheap checks on all rows, part by part. name: the place of a row of a part.

    Raises DataError TXT-050 where no row has anything to learn, TXT-051 where no learned row ends with a stop token,
    TXT-052 where a row's start token is missing or doubled.
    """
    facts = ColumnFacts()
    starts: list[_Failure] = []
    unstopped: list[tuple[int, int]] = []
    stops = list(tokenizer.stop_ids)
    for number, part in enumerate(parts):
        filled, has_spans = np.diff(part.offsets) > 0, np.diff(part.span_offsets) > 0
        rows = np.flatnonzero(filled & has_spans)
        ends = part.offsets[rows] + part.spans[part.span_offsets[rows + 1] - 1, 1] - 1 if len(rows) else rows
        is_stopped = np.isin(part.ids[ends], stops)
        facts.rows += int(filled.sum())
        facts.learned += len(rows)
        facts.stopped += int(is_stopped.sum())
        facts.nothing_learned += [(number, row) for row in np.flatnonzero(filled & ~has_spans).tolist()]
        unstopped += [(number, row) for row in rows[~is_stopped][:SHOWN].tolist()]
        for row in _odd_starts(tokenizer, part).tolist():
            what = wrong_start(tokenizer, part.ids[part.offsets[row] : part.offsets[row + 1]])
            starts.append(_Failure(name(number, row), what or ""))
    failures: dict[str, list[_Failure]] = {"TXT-052": starts} if starts else {}
    if facts.rows and not facts.learned:
        nothing = facts.nothing_learned
        failures["TXT-050"] = [_Failure(name(*place), "no token is learned") for place in nothing]
    if facts.learned and not facts.stopped:
        failures["TXT-051"] = [
            _Failure(name(*place), "the learned part ends with no stop token") for place in unstopped
        ]
    _refuse(failures, facts.rows)
    return facts


def _odd_starts(tokenizer: Tokenizer, part: Columns) -> np.ndarray:
    """Rows that do not begin with one start token, where the tokenizer begins a text with it."""
    if not tokenizer.adds_bos or tokenizer.bos_id is None:
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(np.diff(part.offsets) > 0)
    first = part.ids[part.offsets[rows]] == tokenizer.bos_id
    second = np.zeros(len(rows), bool)
    long = np.diff(part.offsets)[rows] > 1
    second[long] = part.ids[part.offsets[rows[long]] + 1] == tokenizer.bos_id
    return rows[~first | second]


def _refuse(failures: dict[str, list[_Failure]], total: int) -> None:
    if not failures:
        return
    problems = [
        Problem(code, failure.place, failure.what + _alike(rows), _CHECKS[code].expected, _CHECKS[code].fix)
        for code, rows in sorted(failures.items())
        for failure in rows[:SHOWN]
    ]
    code, rows = next(iter(sorted(failures.items())))
    raise DataError(
        code,
        f"{len(rows):,} of {total:,} rows looked at would be learned wrongly; nothing was trained",
        problems=problems,
    )


def _alike(rows: Sequence[_Failure]) -> str:
    return f" ({len(rows):,} rows like this)" if len(rows) > 1 else ""


@dataclass(frozen=True)
class _Check:
    code: str
    what: str
    expected: str
    fix: str


_CHECKS = {
    check.code: check
    for check in (
        _Check("TXT-050", "no token of any row is learned", "rows with an answer that is learned",
               "data.learn: all, or mend the rows' learn and weight"),
        _Check("TXT-051", "the learned part of an answer ends with no stop token",
               "a stop token at the end of each answer, learned, or the model will not stop",
               "model.template: instruction, or a .jinja file that prints {{ eos_token }} behind an answer"),
        _Check("TXT-052", "the start token is missing or stands twice", "one start token, as this tokenizer starts a text",
               "model.template: a .jinja file that prints {{ bos_token }} once, at its start"),
        _Check("TXT-053", "a control token came out of somebody's text", "text",
               "nothing was trained; please report the base model's name"),
        _Check("TXT-054", "the row's ids do not begin with those of its prompt as serving makes them",
               "the same ids as the prompt of a served model",
               "leave the rows out, or model.template: a .jinja file with a control token or a line end before an answer"),
    )
}  # fmt: skip


def told(facts: MaskFacts) -> list[str]:
    """The facts of a sample in sentences, for people."""
    out = []
    for rows, what in (
        (facts.nothing_learned, "learn nothing"),
        (facts.control_in_text, "hold a control token in somebody's text; it is encoded as text"),
        (facts.whole_differs, "have other token ids than their text encoded whole, at an answer's edge"),
        (
            facts.prompt_differs,
            "begin otherwise than the prompt that serving renders: so the chat template writes them",
        ),
    ):
        if rows:
            out.append(f"{len(rows):,} of {facts.rows:,} rows looked at {what}, first {rows[0]}")
    return out
