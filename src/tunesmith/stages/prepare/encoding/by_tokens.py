"""What only the ids of a row can tell: refused by the template, too long, nothing to learn; and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tunesmith.recipe import Recipe
from tunesmith.stages.prepare.accounts import DROPPED, NONE, QUARANTINED, USED, Accounts
from tunesmith.stages.prepare.decide import Selection
from tunesmith.stages.prepare.encoding.encoder import EncodedBatch, Encoder
from tunesmith.stages.prepare.encoding.split import Piece, split_chat, split_text
from tunesmith.stages.prepare.encoding.tokens import PartTokens
from tunesmith.stages.prepare.rows import Rows

Pieces = dict[int, list[Piece]]  # place in the part -> what the row was split into


@dataclass
class Sizes:
    """Of each row, int32 [N]: tokens and learned tokens, -1 of rows without ids; sequences, those that a used row became; flags
    uint8 [N], as `EncodedBatch` has them.

    learned_lost: learned tokens of over-long rows that were cut off or left out. before: int64 [2, n] of each part: tokens and
    learned tokens of the rows that all rules but those of length left.
    """

    tokens: np.ndarray
    learned: np.ndarray
    sequences: np.ndarray
    flags: np.ndarray
    learned_lost: int = 0
    before: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, num_rows: int) -> Sizes:
        missing = np.full(num_rows, NONE, np.int32)
        return cls(missing, missing.copy(), np.ones(num_rows, np.int32), np.zeros(num_rows, np.uint8))


def judge_tokens(spec: Recipe, rows: Rows, number: int, part: PartTokens, selection: Selection, sizes: Sizes) -> None:
    """Judges the rows of one part by their ids, before it is decided how often each row comes."""
    accounts, limit, base = selection.accounts, spec.data.max_tokens, rows.parts[number]["base"]
    here = slice(base, base + len(part.flags))
    lengths, learned = part.lengths, learned_tokens(part)
    _refuse(part, base, accounts)
    left = accounts.status[here] == USED
    sizes.before.append(np.stack([lengths[left], learned[left]]))
    kept = learned
    if spec.data.too_long == "drop":
        long = np.flatnonzero(left & (lengths > limit))
        _drop(accounts, base, long, "too_long", lengths, limit)
        sizes.learned_lost += int(learned[long].sum())
    elif spec.data.too_long == "truncate":
        kept = learned_tokens(part, limit)
    left = accounts.status[here] == USED
    _drop(accounts, base, np.flatnonzero(left & (kept == 0)), "nothing_to_learn", lengths, limit)
    has_ids = lengths > 0
    sizes.tokens[here] = np.where(has_ids, lengths, NONE)
    sizes.learned[here] = np.where(has_ids, kept, NONE)
    sizes.flags[here] = part.flags


def shorten(
    spec: Recipe, rows: Rows, number: int, part: PartTokens, selection: Selection, encoder: Encoder, sizes: Sizes
) -> Pieces:
    """Notes which rows of one part are cut; returns what over-long ones were split into, where the recipe splits them."""
    accounts, limit, base = selection.accounts, spec.data.max_tokens, rows.parts[number]["base"]
    here = slice(base, base + len(part.flags))
    long = np.flatnonzero((accounts.status[here] == USED) & (part.lengths > limit))
    if not len(long):
        return {}
    if spec.data.too_long == "truncate":
        accounts.note(base + long, "truncated", part.lengths[long], limit)
        sizes.learned_lost += int(learned_tokens(part)[long].sum() - sizes.learned[base + long].sum())
        return {}
    pieces = _split(rows, number, part, long, accounts, encoder, limit)
    for place, made in pieces.items():
        own = sum(learned_in(piece.spans) for piece in made)
        sizes.learned_lost += int(sizes.learned[base + place]) - own
        sizes.sequences[base + place], sizes.learned[base + place] = len(made), own
    split = np.array([*pieces], np.int64)
    _drop(accounts, base, split[sizes.learned[base + split] == 0], "nothing_to_learn", part.lengths, limit)
    return pieces


def over_limit(sizes: Sizes, limit: int) -> dict[str, Any]:
    """{p50, p99, max, rows, learned_lost, learned_share}: lengths before anything was cut, and what the limit costs."""
    lengths, learned = np.concatenate([np.zeros((2, 0), np.int64), *sizes.before], axis=1)
    some = lengths if len(lengths) else np.zeros(1, np.int64)
    return {
        "p50": int(np.percentile(some, 50)),
        "p99": int(np.percentile(some, 99)),
        "max": int(some.max()),
        "rows": int((lengths > limit).sum()),
        "learned_lost": sizes.learned_lost,
        "learned_share": sizes.learned_lost / max(int(learned.sum()), 1),
    }


def _refuse(part: PartTokens, base: int, accounts: Accounts) -> None:
    for place, words in part.refused.items():
        row = base + place
        if accounts.status[row] == USED:
            accounts.status[row], accounts.rule[row] = QUARANTINED, accounts.rule_number("template")
            accounts.details[row] = words


def _drop(accounts: Accounts, base: int, places: np.ndarray, rule: str, values: np.ndarray, threshold: int) -> None:
    if len(places):
        accounts.status[base + places] = DROPPED
        accounts.note(base + places, rule, values[places], threshold)


def _split(
    rows: Rows, number: int, part: PartTokens, places: np.ndarray, accounts: Accounts, encoder: Encoder, limit: int
) -> Pieces:
    """Splits rows of a part; one of which no piece fits is dropped as too long."""
    base, pieces = rows.parts[number]["base"], Pieces()
    for row, example in rows.examples(base + places):
        place = row - base
        left_out = 0
        if example.text is not None:
            first, end = part.span_offsets[place], part.span_offsets[place + 1]
            ids = part.ids[part.offsets[place] : part.offsets[place + 1]]
            made = split_text(ids, part.spans[first:end], part.weights[first:end], limit)
        else:
            made, left_out = split_chat(example, encoder, limit)
        length = np.array([part.lengths[place]])
        if not made:
            accounts.status[row] = DROPPED
            accounts.note(np.array([row]), "too_long", length, limit)
            continue
        accounts.note(np.array([row]), "split", length, limit)
        if left_out:
            accounts.details[row] = f"{left_out} exchange{'s' * (left_out > 1)} too long alone, left out"
        pieces[place] = made
    return pieces


def with_pieces(part: PartTokens, pieces: Pieces) -> tuple[PartTokens, np.ndarray]:
    """(the part with the pieces as further sequences behind its rows, the row of each piece: int64 [P])."""
    made = [(place, piece) for place, all_pieces in sorted(pieces.items()) for piece in all_pieces]
    ids = [part.ids, *(piece.ids for _, piece in made)]
    spans = [part.spans, *(piece.spans for _, piece in made)]

    def grown(offsets: np.ndarray, more: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([offsets, offsets[-1] + np.cumsum([len(values) for values in more], dtype=np.int64)])

    extended = PartTokens(
        np.concatenate(ids),
        grown(part.offsets, ids[1:]),
        np.concatenate(spans),
        grown(part.span_offsets, spans[1:]),
        np.concatenate([part.weights, *(piece.weights for _, piece in made)]),
        part.flags,
        part.refused,
    )
    return extended, np.array([place for place, _ in made], np.int64)


def learned_tokens(part: PartTokens | EncodedBatch, limit: int | None = None) -> np.ndarray:
    """Tokens of each row that are predicted and learned, of its first `limit` ones: int64 [N].

    The first token of a row is predicted by nothing.
    """
    starts, ends = np.maximum(part.spans[:, 0], 1), part.spans[:, 1]
    if limit is not None:
        ends = np.minimum(ends, limit)
    before = np.concatenate([[0], np.cumsum(np.maximum(ends - starts, 0), dtype=np.int64)])[part.span_offsets]
    return np.diff(before)


def learned_in(spans: np.ndarray) -> int:
    """As `learned_tokens`, of the spans of one sequence: int32 [K, 2]."""
    return int((spans[:, 1] - np.maximum(spans[:, 0], 1)).sum())
