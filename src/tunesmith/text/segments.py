"""A rendered chat cut into pieces: who wrote each, and which of it the model has to generate.

The rendered text says who wrote each character (`traced`). Where an answer begins follows from rendering the chat before
it with the generation prompt: what that text and the whole text share is given to the model, what follows is learned.
Where it ends follows from rendering the chat up to it: what both share behind the answer's last character closes the turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.text.example import Message
from tunesmith.text.traced import Traced

# What looks like a control token in a template's own text: <|end|>, </s>, [INST], <end_of_turn>, <｜User｜>.
MARKER = re.compile(r"<\|[^|<>\s]*\|?>|<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]")
OPENING = re.compile(r"(?i)start|begin")  # in the names of markers that open a turn: <|im_start|>, <start_of_turn>

# (messages, whether the generation prompt follows) -> the text; None where the template refuses them.
Render = Callable[[Sequence[Message], bool], Traced | None]


class TemplateError(Exception):
    """This chat cannot be rendered by this template; the text says why."""


@dataclass(frozen=True)
class Segment:
    """A piece of rendered text.

    is_content: written by somebody, so control tokens inside it stay text. weight: of each of its tokens in the loss, where
    it is learned. answer: the turn that the model generates this for, learned or not; None: the model is given it.
    """

    text: str
    learned: bool
    is_content: bool
    weight: float = 1.0
    answer: int | None = None


@dataclass(frozen=True)
class Span:
    """text[start:end] is what the turn `place` consists of for the one who speaks: its contents and what closes it."""

    start: int
    end: int
    place: int


def answer_spans(
    whole: Traced, messages: Sequence[Message], render: Render, also: frozenset[int], ends_turns: bool
) -> list[Span]:
    """The spans of all assistant turns and of the turns named in `also`.

    ends_turns: the template closes an answer by a marker; if not, the next turn's opening is what stops the model.
    Raises TemplateError where a turn named in `also` has text and the template leaves all of it out.
    """
    spans: list[Span] = []
    for place, message in enumerate(messages):
        is_answer = message.role == "assistant"
        if not is_answer and place not in also:
            continue
        runs = _runs_of_turn(whole, place)
        said = bool(message.content.strip() or message.tool_calls)
        if not runs and said and place in also:
            left_out = "tool call" if message.tool_calls and not message.content.strip() else "text"
            raise TemplateError(f"the chat template leaves the {left_out} of messages[{place}] out")
        if not runs and (said or not is_answer):
            continue
        if message.tool_calls and place in also:
            _refuse_lost_calls(whole, message, place, runs)
        before = render(messages[:place], True) if is_answer else None
        start = _start(whole, before, place, runs[0][0] if runs else None)
        if start is None or (spans and start < spans[-1].end):
            if place in also:
                raise TemplateError(
                    f"where the answer in messages[{place}] begins cannot be told from the rendered text"
                )
            continue
        upto = whole if place == len(messages) - 1 else render(messages[: place + 1], False)
        last = max(start, _last_of_turn(whole, upto, place, runs)) if runs else start
        spans.append(Span(start, _end(whole, upto, place, last, ends_turns), place))
    return spans


def _refuse_lost_calls(whole: Traced, message: Message, place: int, runs: Sequence[tuple[int, int]]) -> None:
    """A template that knows no tools prints the content and drops the call: the model would learn to announce it only."""
    for call in message.tool_calls:
        name = str(call.get("function", call).get("name", ""))
        texts = [str.__str__(whole[start:end]) for start, end in runs]
        if not any(name in text and text not in message.content for text in texts):
            raise TemplateError(f"the chat template leaves the tool call of messages[{place}] out")


def _runs_of_turn(whole: Traced, place: int) -> list[tuple[int, int]]:
    """Where this message's text stands: up to the first later message's text behind it."""
    mine = [(start, end) for start, end, by in whole.runs if by == place]
    if not mine:
        return []
    later = min((start for start, _, by in whole.runs if by > place and start > mine[0][0]), default=len(whole))
    return [run for run in mine if run[0] < later]


def _last_of_turn(whole: Traced, upto: Traced | None, place: int, runs: Sequence[tuple[int, int]]) -> int:
    """The end of the turn's own text. A template may say a called function's name again where its result stands: in the
    chat up to this turn that is not there yet, so what follows the last run there tells which one is the last here."""
    mine = [end for _, end, by in upto.runs if by == place] if upto is not None else []
    if not mine or upto is whole:
        return runs[-1][1]
    behind = str.__str__(upto[mine[-1] :])
    marker = MARKER.search(behind)
    closing = behind[: marker.end()] if marker else behind.rstrip()
    if not closing:
        return runs[-1][1]

    def closed(text: Traced, ends: Sequence[int]) -> list[int]:
        return [end for end in ends if str.__str__(text[end : end + len(closing)]) == closing]

    here, there = closed(whole, [end for _, end in runs]), closed(upto, mine)
    return here[min(len(here), len(there)) - 1] if here else runs[-1][1]


def _start(whole: Traced, before: Traced | None, place: int, first: int | None) -> int | None:
    """Where the model takes over; None where that cannot be told."""
    if before is None:
        return first
    if whole.startswith(before):
        return len(before)
    # Earlier turns look otherwise by now (dropped thinking, tools that moved): compare behind the last earlier text.
    limit = len(whole) if first is None else first
    base = max((end for _, end, by in whole.runs if 0 <= by < place and end <= limit), default=0)
    base_before = max((end for _, end, by in before.runs if 0 <= by < place), default=0)
    rest, rest_before = whole[base:], before[base_before:]
    shared = _shared(str.__str__(rest), str.__str__(rest_before))
    if shared < len(rest_before):
        shared = _out_of_marker(str.__str__(rest), shared)
    return min(base + shared, limit)


def _shared(one: str, other: str) -> int:
    """Length of what both begin with."""
    if other.startswith(one) or one.startswith(other):
        return min(len(one), len(other))
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def _out_of_marker(text: str, place: int) -> int:
    """`place`, or the start of the marker that it would cut in two."""
    for match in MARKER.finditer(text, max(0, place - 42)):
        if match.start() < place < match.end():
            return match.start()
    return place


def _end(whole: Traced, upto: Traced | None, place: int, last: int, ends_turns: bool) -> int:
    """Where the turn ends: behind the last marker that closes it."""
    following = min((start for start, _, by in whole.runs if start >= last and by != place), default=len(whole))
    rest = str.__str__(whole[last:following])
    if upto is None:
        closing = MARKER.match(rest.lstrip())
        return last + len(rest) - len(rest.lstrip()) + closing.end() if closing else last
    mine = [end for _, end, by in upto.runs if by == place]
    rest_upto = str.__str__(upto[min(mine[-1] if mine else last, len(upto)) :])
    shared = _shared(rest, rest_upto)
    if shared < len(rest):
        shared = min(_out_of_marker(rest, shared), _out_of_marker(rest_upto, shared))
    end = 0
    for match in MARKER.finditer(rest[:shared]):
        if end and OPENING.search(match.group()):
            break  # the next turn has begun
        end = match.end()
    markers = end > 0
    other, other_upto = MARKER.match(rest, shared), MARKER.match(rest_upto, shared)
    closes_inside = not markers and other_upto and len(MARKER.findall(rest, shared)) > 1
    if other and (not ends_turns or closes_inside):
        end = other.end()  # the next turn's opening, or a marker that closes turns inside a chat but not its last one
    return last + end


def cut(whole: Traced, spans: Sequence[Span], weights: dict[int, float]) -> list[Segment]:
    """The whole text in segments. weights: of the turns that are learned."""
    edges = {0, len(whole)} | {edge for span in spans for edge in (span.start, span.end)}
    edges |= {edge for start, end, _ in whole.runs for edge in (start, end)}
    ordered = sorted(edge for edge in edges if edge <= len(whole))
    out: list[Segment] = []
    at_run = at_span = 0
    runs = whole.runs
    for start, end in itertools.pairwise(ordered):
        while at_run < len(runs) and runs[at_run][1] <= start:
            at_run += 1
        while at_span < len(spans) and spans[at_span].end <= start:
            at_span += 1
        author = runs[at_run][2] if at_run < len(runs) and runs[at_run][0] <= start else None
        span = spans[at_span] if at_span < len(spans) and spans[at_span].start <= start else None
        text = str.__str__(whole[start:end])
        if span is None:
            # An answer's own text before its span: the generation prompt has it too, as scaffold.
            given = at_span < len(spans) and author == spans[at_span].place
            segment = Segment(text, False, author is not None and not given)
        else:
            learned = span.place in weights and author in (None, span.place)
            weight = weights.get(span.place, 1.0) if learned else 1.0
            segment = Segment(text, learned, author is not None, weight, span.place)
        if out and replace(out[-1], text="") == replace(segment, text=""):
            out[-1] = replace(segment, text=out[-1].text + text)
        else:
            out.append(segment)
    return out
