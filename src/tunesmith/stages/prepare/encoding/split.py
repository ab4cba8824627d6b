"""Rows that are too long, cut where a person would cut them: chats between exchanges, texts into windows.

A piece of a chat is the system turn and as many whole exchanges as fit; an exchange is what is asked and what is answered to
it. What was learned before is learned still, and nothing twice. An exchange that is too long alone is left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tunesmith.stages.prepare.encoding.encoder import EncodedBatch, Encoder, Turns
from tunesmith.text.example import Example, Message


@dataclass(frozen=True)
class Piece:
    """ids: int32 [T]. spans: int32 [K, 2]. weights: float32 [K]."""

    ids: np.ndarray
    spans: np.ndarray
    weights: np.ndarray


def split_text(ids: np.ndarray, spans: np.ndarray, weights: np.ndarray, limit: int) -> list[Piece]:
    """Windows of `limit` tokens, the last one shorter; spans are cut with them."""
    pieces = []
    for start in range(0, len(ids), limit):
        end = min(start + limit, len(ids))
        inside = (spans[:, 0] < end) & (spans[:, 1] > start)
        cut = np.clip(spans[inside], start, end) - start
        pieces.append(Piece(ids[start:end], cut.astype(np.int32), weights[inside]))
    return pieces


def split_chat(example: Example, encoder: Encoder, limit: int) -> tuple[list[Piece], int]:
    """(the pieces of a chat, exchanges left out because they are too long alone)."""
    example = _with_learned_turns(example, encoder)
    head = [message for message in example.messages[:1] if message.role == "system"]
    exchanges = _exchanges(example.messages[len(head) :])
    pieces: list[Piece] = []
    left_out, first = 0, 0
    while first < len(exchanges):
        fitting = _longest_fitting(example, head, exchanges[first:], encoder, limit)
        if fitting is None:
            left_out += 1
            first += 1
            continue
        count, piece = fitting
        if len(piece.spans):
            pieces.append(piece)
        first += count
    return pieces, left_out


def _longest_fitting(
    example: Example, head: list[Message], exchanges: Sequence[Sequence[Message]], encoder: Encoder, limit: int
) -> tuple[int, Piece] | None:
    """(how many exchanges from the first on fit together, the piece they make); None where not even one does."""
    growing = [
        replace(example, messages=(*head, *(message for exchange in exchanges[:count] for message in exchange)))
        for count in range(1, len(exchanges) + 1)
    ]
    encoded = encoder.encode(turns_of_examples(growing))
    lengths = np.diff(encoded.offsets)
    fits = np.flatnonzero((lengths > 0) & (lengths <= limit))
    if not len(fits):
        return None
    place = int(fits[-1])
    return place + 1, _piece(encoded, place)


def turns_of_examples(examples: Sequence[Example]) -> Turns:
    columns = [example.to_columns() for example in examples]
    offsets = np.cumsum([0, *(len(roles) for roles, *_ in columns)], dtype=np.int64)
    roles = np.array([role for roles, *_ in columns for role in roles], np.uint8)
    contents = pa.array([content for _, contents, *_ in columns for content in contents], pa.utf8())
    return Turns(offsets, roles, contents, [extra for _, _, extra, _ in columns])


def _piece(encoded: EncodedBatch, place: int) -> Piece:
    first, end = encoded.span_offsets[place], encoded.span_offsets[place + 1]
    return Piece(
        encoded.ids[encoded.offsets[place] : encoded.offsets[place + 1]],
        encoded.spans[first:end],
        encoded.weights[first:end],
    )


def _exchanges(messages: Sequence[Message]) -> list[list[Message]]:
    """Cut before each user turn that follows an answer."""
    out: list[list[Message]] = []
    for place, message in enumerate(messages):
        if not out or (message.role == "user" and messages[place - 1].role != "user"):
            out.append([])
        out[-1].append(message)
    return out


def _with_learned_turns(example: Example, encoder: Encoder) -> Example:
    """Each turn says itself whether it is learned: a policy such as `last` would choose anew in every piece."""
    learned = encoder.learned_turns(example)
    turns = zip(example.messages, learned, strict=True)
    return replace(example, messages=tuple(replace(message, learn=is_learned) for message, is_learned in turns))
