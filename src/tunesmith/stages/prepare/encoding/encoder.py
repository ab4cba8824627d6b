"""Chats in columns to token ids in flat arrays: rows are laid together from compiled pieces, all encoded in one call.

Equal, id by id and span by span, to the slow way: `Tokenizer.encode_example` and `encode_segments`, row by row. Rows whose
shape cannot be compiled (tools, reasoning, templates that rewrite contents) or whose contents hold a control token go that
way; only their text is made row by row.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.stages.prepare.encoding.contents import Contents, buffers, holding, put
from tunesmith.stages.prepare.encoding.seams import Seams
from tunesmith.stages.prepare.encoding.shapes import (
    VARIANTS,
    Family,
    MoreLooks,
    Shape,
    compile_shape,
    contents_of,
    guard_of,
    is_equal,
    pack,
)
from tunesmith.text.example import Example
from tunesmith.text.fast import Ids, Proof, best_encoder
from tunesmith.text.literal import Look
from tunesmith.text.policies import Learn, wanted
from tunesmith.text.templates import TemplateError
from tunesmith.text.tokenizers import Piece, Tokenizer

# N rows, M turns, Q parts (scaffold or a content), P pieces (parts that are encoded at once), T tokens, K spans
JOINED_DIFFERS, CONTROL_IN_TEXT, NOTHING_LEARNED = 1, 2, 4
ENOUGH = 4  # rows of a shape that are worth compiling it
COMPARED_FIRST, COMPARED_RANDOM, COMPARED_LATER = 2, 4, 1  # rows of a shape that are also made the slow way
SAMPLE = 64  # of the first batch's contents, for the proof of the tokenizer


@dataclass(frozen=True)
class Turns:
    """Rows in columns.

    offsets: int64 [N+1] into the turns; a row without turns gets no ids. roles: uint8 [M], places in ROLES, or TEXT.
    contents: utf8 [M]. extras: what few rows have besides (learn, weight, tools ...), as `Example.from_columns` takes it.
    """

    offsets: np.ndarray
    roles: np.ndarray
    contents: pa.Array
    extras: Sequence[dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """Token ids of rows and what of them is learned.

    ids: int32 [T]. offsets: int64 [N+1]. spans: int32 [K, 2], start:end within the row. span_offsets: int64 [N+1].
    weights: float32 [K]. refused: row -> the template's words; such a row has no ids.
    flags: uint8 [N], bits: 1 the ids of the segments joined differ from the ids of the whole text, 2 a control token
    stands inside somebody's text (it was encoded as text, and bit 1 says nothing), 4 nothing is learned.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    weights: np.ndarray
    refused: dict[int, str]
    flags: np.ndarray


@dataclass
class _Draft:
    """Rows of one batch as pieces, before anything is encoded."""

    contents: Contents
    compiled: list[tuple[np.ndarray, Shape]] = field(default_factory=list)  # rows, their shape
    slow: dict[int, tuple[list[Piece], list[float]]] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)  # slow rows with a control token in somebody's text
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Laid:
    """All rows' pieces in order.

    rows: int64 [N+1] into the pieces. pieces: int64 [P+1] into the parts. source: int64 [Q], number of the part's text.
    weight: float32 [P], 0: not learned. guard: int64 [P], number of the guard's text, -1: none. blind: pieces that only the
    tokenizer itself encodes, and behind what. clean: bool [N], the pieces' ids joined are those of the whole text.
    """

    rows: np.ndarray
    pieces: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    guard: np.ndarray
    blind: dict[int, Piece]
    clean: np.ndarray
    texts: pa.Array  # large_utf8


class Encoder:
    """A tokenizer with its template and a choice of what is learned.

    proof: whether the fast tokenizer encodes, and why (not); None before the first batch. ways: rows by compiled shapes and
    row by row, and rows that were encoded whole to compare. mismatches: shapes that failed on real rows and went slow.
    """

    def __init__(self, tokenizer: Tokenizer, learn: Learn) -> None:
        self.tokenizer, self.learn = tokenizer, learn
        self.proof: Proof | None = None
        self.ways: Counter[str] = Counter()
        self.mismatches = 0
        self._families: dict[Any, Family] = {}
        self._seams = Seams(tokenizer.hf.backend_tokenizer)

    def encode(self, turns: Turns) -> EncodedBatch:
        """The ids, spans and flags of a batch of rows."""
        self.prove(turns.contents)
        draft = self._draft(turns)
        laid = self._lay_out(turns, draft)
        return self._finish(draft, laid, *self._encode(laid))

    def prove(self, contents: pa.Array) -> Proof:
        """Settle which tokenizer encodes, by the hard texts and a sample of these contents. The first call decides."""
        if self.proof is None:
            places = np.linspace(0, max(len(contents) - 1, 0), min(SAMPLE, len(contents))).astype(np.int64)
            sample = [text[:4000] for text in contents.take(pa.array(places)).to_pylist()]
            self._backend, self.proof = best_encoder(self.tokenizer.hf.backend_tokenizer, sample)
        return self.proof

    def learned_turns(self, example: Example) -> list[bool]:
        """Which turns of a chat are learned."""
        learned = wanted(example.messages, self.learn)
        return [place in learned for place in range(len(example.messages))]

    # -------------------------------------------------------------------------------------------------- rows to pieces

    def _draft(self, turns: Turns) -> _Draft:
        draft = _Draft(Contents(turns.contents))
        odd = self._odd_rows(turns, draft.contents)
        for key, rows in _families(turns):
            self._slowly(turns, draft, rows[odd[rows]])
            rows = rows[~odd[rows]]
            if key is None:
                self._slowly(turns, draft, rows)
                continue
            if key not in self._families and len(rows):
                self._families[key] = Family(self._example(turns, int(rows[0])))
            for chosen, shape in self._variants(turns, draft, self._families[key], rows) if len(rows) else ():
                chosen = self._without_moved_blanks(turns, draft, shape, chosen)
                if shape is not None:
                    draft.compiled.append((chosen, shape))
                    self.ways["compiled"] += len(chosen)
        return draft

    def _odd_rows(self, turns: Turns, contents: Contents) -> np.ndarray:
        """bool [N]: rows with a control token in a content, or with a content of blanks: both are cut otherwise."""
        odd = self._holding_control(contents.texts) | ~contents.answer(Look(0, (("strip", None),), "filled"))
        out = np.zeros(len(turns.offsets) - 1, bool)
        out[np.searchsorted(turns.offsets, np.flatnonzero(odd), "right") - 1] = True
        return out

    def _holding_control(self, texts: pa.Array) -> np.ndarray:
        """bool [M]: contents with the text of a control token in them."""
        hit = np.zeros(len(texts), bool)
        for stem, pattern in self._control_patterns.items():
            near = holding(texts, stem)
            near = near[~hit[near]]
            if len(near):
                found = pc.match_substring_regex(texts.take(pa.array(near)), pattern)
                hit[near[found.to_numpy(zero_copy_only=False)]] = True
        return hit

    @cached_property
    def _control_patterns(self) -> dict[str, str]:
        """First two characters of control tokens -> a pattern of those that begin so: plain search finds few candidates fast."""
        by_stem: dict[str, list[str]] = {}
        for token in sorted(self.tokenizer.control):
            by_stem.setdefault(token[:2], []).append(token)
        return {stem: "|".join(map(_quoted, tokens)) for stem, tokens in by_stem.items()}

    def _variants(
        self, turns: Turns, draft: _Draft, family: Family, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Shape | None]]:
        """Rows of a family by the answers to its looks, with the shape; None: row by row."""
        while True:
            answers = np.zeros((len(rows), len(family.looks)), bool)
            for number, look in enumerate(family.looks):
                answers[:, number] = draft.contents.answer(look)[turns.offsets[rows] + look.place]
            kinds, first, members = np.unique(pack(answers), return_index=True, return_inverse=True)
            groups = [rows[members.reshape(-1) == number] for number in range(len(kinds))] if len(kinds) > 1 else [rows]
            try:
                shapes = [
                    self._shape(turns, family, kinds[number].tobytes(), answers[first[number]].tolist(), group)
                    for number, group in enumerate(groups)
                ]
            except MoreLooks:
                family.variants.clear()
                family.seen.clear()
                continue
            yield from zip(groups, shapes, strict=True)
            return

    def _shape(self, turns: Turns, family: Family, kind: bytes, answers: list[bool], rows: np.ndarray) -> Shape | None:
        if kind in family.variants:
            shape, compared = family.variants[kind], rows[:COMPARED_LATER]
        else:
            family.seen[kind] = family.seen.get(kind, 0) + len(rows)
            if family.seen[kind] < ENOUGH or len(family.variants) >= VARIANTS:
                return None
            shape = family.variants[kind] = self._compiled(family, answers)
            drawn = np.random.default_rng(len(rows)).choice(rows, COMPARED_RANDOM)
            compared = np.unique([*rows[:COMPARED_FIRST], *drawn])
        if shape is not None and not all(self._holds(turns, shape, int(row)) for row in compared):
            self.mismatches += 1
            shape = family.variants[kind] = None
        return shape

    def _compiled(self, family: Family, answers: list[bool]) -> Shape | None:
        shape = compile_shape(self.tokenizer, self.learn, family, answers)
        if shape is None:
            return None
        # Where a control token could come about across the edge of a content, letters of it are encoded apart.
        for piece in shape:
            for left, right in itertools.pairwise(piece.parts):
                if self._seams.may_straddle(left.text, right.text):
                    return None
        return shape

    def _holds(self, turns: Turns, shape: Shape, row: int) -> bool:
        """Does a shape give the pieces that the slow way makes of this row."""
        example = self._example(turns, row)
        try:
            pieces, weights = self.tokenizer.pieces(self.tokenizer.encode_example(example, self.learn))
        except TemplateError:
            return False
        swallowing = self.tokenizer._swallows and any(piece.text[:1].isspace() for piece in pieces)
        return bool(swallowing) or is_equal(shape, contents_of(example), pieces, weights)

    def _without_moved_blanks(self, turns: Turns, draft: _Draft, shape: Shape | None, rows: np.ndarray) -> np.ndarray:
        """Rows that the shape holds for; the others are made row by row. Some added tokens swallow the blanks behind them, so
        where a piece begins with a content that begins with a blank, the cut may move."""
        if shape is None:
            self._slowly(turns, draft, rows)
            return rows[:0]
        if not self.tokenizer._swallows:
            return rows
        first, _ = draft.contents.edges
        moved = np.zeros(len(rows), bool)
        for piece in shape[1:]:
            part = piece.parts[0]
            if part.place is not None:
                moved |= [chr(max(point, 0)).isspace() for point in first[turns.offsets[rows] + part.place].tolist()]
        self._slowly(turns, draft, rows[moved])
        return rows[~moved]

    def _slowly(self, turns: Turns, draft: _Draft, rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                segments = self.tokenizer.encode_example(self._example(turns, row), self.learn)
            except TemplateError as error:
                draft.refused[row] = str(error)
                continue
            draft.slow[row] = self.tokenizer.pieces(segments)
            if self.tokenizer.holds_control_tokens(segments):
                draft.held.add(row)
        if len(rows):
            self.ways["row by row"] += len(rows)

    def _example(self, turns: Turns, row: int) -> Example:
        first, end = int(turns.offsets[row]), int(turns.offsets[row + 1])
        contents = turns.contents.slice(first, end - first).to_pylist()
        return Example.from_columns(
            turns.roles[first:end].tolist(), contents, turns.extras[row] if turns.extras else None
        )

    # --------------------------------------------------------------------------------------------- pieces in one order

    def _lay_out(self, turns: Turns, draft: _Draft) -> _Laid:
        count, num_turns = len(turns.offsets) - 1, len(draft.contents)
        num_pieces, num_parts = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for rows, shape in draft.compiled:
            num_pieces[rows] = len(shape)
            num_parts[rows] = sum(len(piece.parts) for piece in shape)
        for row, (pieces, _) in draft.slow.items():
            num_pieces[row] = num_parts[row] = len(pieces)
        at_piece, at_part = _ends(num_pieces), _ends(num_parts)
        source, sizes = np.zeros(at_part[-1], np.int64), np.ones(at_piece[-1], np.int64)
        weight, guard = np.zeros(at_piece[-1], np.float32), np.full(at_piece[-1], -1, np.int64)
        clean, blind = np.ones(count, bool), {}
        texts = _Numbered(num_turns)  # behind the contents

        for rows, shape in draft.compiled:
            begins, part_places = turns.offsets[rows], at_part[rows]
            for number, piece in enumerate(shape):
                places = at_piece[rows] + number
                sizes[places], weight[places] = len(piece.parts), piece.weight
                guard[places] = texts[piece.guard] if piece.guard else -1
                for part in piece.parts:
                    source[part_places] = texts[part.text] if part.place is None else begins + part.place
                    part_places = part_places + 1
            clean[rows] = self._clean(shape, begins, *draft.contents.edges)
        for row, (pieces, weights) in draft.slow.items():
            clean[row] = False
            for place, (piece, own) in enumerate(zip(pieces, weights, strict=True), int(at_piece[row])):
                part = int(at_part[row]) + place - int(at_piece[row])
                source[part], weight[place] = texts[piece.text], own
                if piece.blind:
                    blind[place] = piece
                elif found := guard_of(self.tokenizer, piece):
                    guard[place] = texts[found]
        contents = self._change(turns, draft, clean)
        return _Laid(
            at_piece, _ends(sizes), source, weight, guard, blind, clean, pa.concat_arrays([contents, texts.array])
        )

    @staticmethod
    def _change(turns: Turns, draft: _Draft, clean: np.ndarray) -> pa.Array:
        """Contents as their shapes print them; rows whose contents' edges went are compared whole."""
        changed: dict[int, str] = {}
        for rows, shape in draft.compiled:
            for part in {part for piece in shape for part in piece.parts if part.change}:
                places, texts = draft.contents.changed(part.change)
                for number in np.flatnonzero(np.isin(places, turns.offsets[rows] + part.place)).tolist():
                    changed[int(places[number])] = texts[number]
        places = np.array(sorted(changed), np.int64)
        clean[np.searchsorted(turns.offsets, places, "right") - 1] = False
        return put(draft.contents.texts, places, [changed[place] for place in places.tolist()])

    def _clean(self, shape: Shape, begins: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """bool [R]: rows of a shape whose pieces meet where the whole text is cut too."""
        out = np.ones(len(begins), bool)
        for before, after in itertools.pairwise(shape):
            left, right = before.parts[-1], after.parts[0]
            if left.place is None and right.place is None:
                out &= self._seams.between(left.text, right.text)
            elif left.place is None:
                out &= self._seams.into_content(left.text, first[begins + right.place])
            elif right.place is None:
                out &= self._seams.out_of_content(last[begins + left.place], right.text)
            else:
                out[:] = False
        return out

    # -------------------------------------------------------------------------------------------------- pieces to ids

    def _encode(self, laid: _Laid) -> Ids:
        """(ids of all pieces in order, int64 [P+1])."""
        guarded = laid.guard >= 0
        if not guarded.any() and not laid.blind:
            return self._backend.encode(self._text_of(laid, laid.source, laid.pieces))
        # Guards stand in front of their pieces' first parts.
        source = np.insert(laid.source, laid.pieces[:-1][guarded], laid.guard[guarded])
        ids, ends = self._backend.encode(
            self._text_of(laid, source, laid.pieces + np.concatenate([[0], np.cumsum(guarded)]))
        )
        starts, failed = ends[:-1].copy(), []
        for number in np.unique(laid.guard[guarded]).tolist():
            places = np.flatnonzero(laid.guard == number)
            own = self._backend.encode(buffers(laid.texts.slice(number, 1)))[0]
            is_whole = ends[places + 1] - starts[places] > len(own)
            for step, id in enumerate(own.tolist()):
                is_whole[is_whole] &= ids[starts[places[is_whole]] + step] == id
            starts[places[is_whole]] += len(own)
            failed += places[~is_whole].tolist()
        alone = {place: laid.blind[place] for place in laid.blind} | {
            place: self._piece(laid, place) for place in failed
        }
        return self._with_others(ids, starts, ends[1:], alone)

    def _with_others(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, alone: dict[int, Piece]) -> Ids:
        """ids[start:end] of each piece, but those that the tokenizer itself encodes."""
        places = sorted(alone)
        own = self.tokenizer._encode_all([alone[place] for place in places])
        pool = np.concatenate([ids, *(np.array(each, np.int32) for each in own)]).astype(np.int32, copy=False)
        starts, ends = starts.copy(), ends.copy()
        own_ends = len(ids) + _ends(np.array(list(map(len, own)), np.int64))
        starts[places], ends[places] = own_ends[:-1], own_ends[1:]
        return gather(pool, starts, ends), _ends(ends - starts)

    def _piece(self, laid: _Laid, place: int) -> Piece:
        def text(number: int) -> str:
            return "".join(
                laid.texts.take(pa.array(laid.source[laid.pieces[number] : laid.pieces[number + 1]])).to_pylist()
            )

        return Piece(text(place), False, text(place - 1))

    @staticmethod
    def _text_of(laid: _Laid, source: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data, offsets = buffers(laid.texts.take(pa.array(source)))
        return data, offsets[ends]

    # ---------------------------------------------------------------------------------------------------- spans, flags

    def _finish(self, draft: _Draft, laid: _Laid, ids: np.ndarray, ends: np.ndarray) -> EncodedBatch:
        offsets = ends[laid.rows]
        spans, span_offsets, weights = learned_spans(laid.rows, ends, laid.weight > 0, laid.weight)
        flags = np.zeros(len(offsets) - 1, np.uint8)
        filled = np.diff(laid.rows) > 0
        flags[filled & (np.diff(span_offsets) == 0)] |= NOTHING_LEARNED
        held = np.array(sorted(draft.held), np.int64)
        flags[held] |= CONTROL_IN_TEXT
        doubtful = ~laid.clean & filled
        doubtful[held] = False
        rows = np.flatnonzero(doubtful)
        flags[rows[self._differs(laid, ids, offsets, rows)]] |= JOINED_DIFFERS
        return EncodedBatch(ids, offsets, spans, span_offsets, weights, draft.refused, flags)

    def _differs(self, laid: _Laid, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """bool [R]: rows whose whole text has other ids than its pieces joined."""
        if not len(rows):
            return np.zeros(0, bool)
        self.ways["compared whole"] += len(rows)
        first, last = laid.pieces[laid.rows[rows]], laid.pieces[laid.rows[rows + 1]]
        source = laid.source[np.repeat(first, last - first) + _arange(last - first)]
        whole, whole_offsets = self._backend.encode(self._text_of(laid, source, _ends(last - first)))
        lengths = np.diff(offsets)[rows]
        out = np.diff(whole_offsets) != lengths
        same = np.flatnonzero(~out)
        ours = ids[np.repeat(offsets[rows[same]], lengths[same]) + _arange(lengths[same])]
        theirs = whole[np.repeat(whole_offsets[same], lengths[same]) + _arange(lengths[same])]
        out[np.repeat(same, lengths[same])[ours != theirs]] = True
        return out


def learned_spans(
    rows: np.ndarray, ends: np.ndarray, learned: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(spans int32 [K, 2] within the row, span offsets int64 [N+1], weights float32 [K]).

    rows: int64 [N+1] into the segments. ends: int64 [S+1] in tokens. Neighbours of one weight make one span; segments
    without tokens part nothing.
    """
    filled = np.flatnonzero(np.diff(ends) > 0)
    row_of = np.searchsorted(rows, filled, "right") - 1
    chosen = np.flatnonzero(learned[filled])
    if not len(chosen):
        return np.zeros((0, 2), np.int32), np.zeros(len(rows), np.int64), np.zeros(0, np.float32)
    of, at = row_of[chosen], filled[chosen]
    joins = (np.diff(chosen) == 1) & (np.diff(of) == 0) & (weight[at[1:]] == weight[at[:-1]])
    starts = np.concatenate([[0], np.flatnonzero(~joins) + 1])
    lasts = np.concatenate([starts[1:] - 1, [len(chosen) - 1]])
    begins = ends[rows][of[starts]]
    spans = np.stack([ends[at[starts]] - begins, ends[at[lasts] + 1] - begins], axis=1).astype(np.int32)
    counts = np.bincount(of[starts], minlength=len(rows) - 1)
    return spans, np.concatenate([[0], np.cumsum(counts)]), weight[at[starts]].astype(np.float32)


def gather(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """values[start:end] of each piece, one after the other: copied piece by piece, not id by id. Pieces may not overlap."""
    order = np.argsort(starts, kind="stable")
    edges = np.stack([starts[order], np.maximum(starts, ends)[order]], axis=1).reshape(-1)
    cut = np.concatenate([[0], edges, [len(values)]])
    pieces = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(cut) - 1, [None, pa.py_buffer(cut * 4), pa.py_buffer(np.ascontiguousarray(values))]
    )
    number = np.empty(len(starts), np.int64)
    number[order] = 1 + 2 * np.arange(len(starts))
    laid = pieces.take(pa.array(number))
    _, offsets, data = laid.buffers()
    if data is None or not len(laid):
        return np.zeros(0, np.int32)
    total = np.frombuffer(offsets, np.int64)[laid.offset + len(laid)]
    return np.frombuffer(data, np.int32, int(total) // 4)


class _Numbered:
    """Texts with numbers in order of first use, from `first` on."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._numbers: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self._numbers.setdefault(text, self._first + len(self._numbers))

    @property
    def array(self) -> pa.Array:
        return pa.array(list(self._numbers), pa.large_utf8())


def _families(turns: Turns) -> Iterator[tuple[Any, np.ndarray]]:
    """(key, rows) by the order of roles and what turns say about learning; key None: rows that only the slow way takes."""
    lengths = np.diff(turns.offsets)
    special = np.zeros(len(lengths), bool)
    own: dict[Any, list[int]] = {}
    for row, extra in enumerate(turns.extras or ()):
        if extra and lengths[row]:
            special[row] = True
            key = _learning(extra)
            if key is not None:
                key = (turns.roles[turns.offsets[row] : turns.offsets[row + 1]].tobytes(), key)
            own.setdefault(key, []).append(row)
    for length in np.unique(lengths[~special & (lengths > 0)]).tolist():
        rows = np.flatnonzero((lengths == length) & ~special)
        roles = turns.roles[turns.offsets[rows][:, None] + np.arange(length)].astype(np.uint8)
        packed = np.ascontiguousarray(roles).view(np.dtype((np.void, length))).reshape(-1)
        orders, members = np.unique(packed, return_inverse=True)
        for number, order in enumerate(orders):
            yield (order.tobytes(), ()), rows[members.reshape(-1) == number]
    for key, rows in own.items():
        yield key, np.array(rows, np.int64)


def _learning(extra: dict[str, Any]) -> Any:
    """What turns say about learning, if the row says nothing else; otherwise None."""
    turns = extra.get("turns", {})
    if set(extra) != {"turns"} or any(set(turn) - {"learn", "weight"} for turn in turns.values()):
        return None
    return tuple(sorted((place, *sorted(turn.items())) for place, turn in turns.items()))


def _ends(sizes: np.ndarray) -> np.ndarray:
    """Where each ends, laid one after the other, with a 0 in front."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _arange(sizes: np.ndarray) -> np.ndarray:
    """0..size-1 for each size, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)


def _quoted(text: str) -> str:
    return re.sub(r"([^\w\s])", r"\\\1", text, flags=re.ASCII)
