"""Chats in columns to token ids in flat arrays: rows are laid together from compiled pieces, contents encoded in one call.

Equal, id by id and span by span, to the slow way: `Tokenizer.encode_example` and `encode_segments`, row by row. Rows whose
shape cannot be compiled (tools, reasoning, templates that rewrite contents) go that way; only their text is made row by row.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.stages.prepare.contents import Contents, buffers, edges, put
from tunesmith.stages.prepare.seams import Seams
from tunesmith.stages.prepare.shapes import (
    VARIANTS,
    Family,
    MoreLooks,
    Shape,
    compile_shape,
    contents_of,
    is_equal,
    pack,
    segments_of,
    weight_of,
    with_contents,
)
from tunesmith.text.example import SYSTEM, Example
from tunesmith.text.fast import BatchEncoder, Proof, best_encoder
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Encoded, Tokenizer

# N rows, M turns, S segments, T tokens, K spans
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
    """Rows of one batch as segments, before anything is encoded.

    Texts are numbered: contents of turns first, then what `more` holds, then scaffold.
    """

    contents: Contents
    compiled: list[tuple[np.ndarray, Shape]] = field(default_factory=list)  # rows, their shape
    slow: dict[int, list[Segment]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Segments:
    """All segments in order of rows. offsets: int64 [N+1]. source: int64 [S], number of the text. clean: bool [N], joining is exact."""

    offsets: np.ndarray
    source: np.ndarray
    learned: np.ndarray
    weight: np.ndarray
    clean: np.ndarray
    texts: pa.Array  # large_utf8: contents, more, scaffold
    num_contents: int  # texts before the scaffold


class Encoder:
    """A tokenizer with its template and a choice of what is learned.

    proof: whether the fast tokenizer encodes, and why (not); None before the first batch. ways: rows by compiled shapes and
    row by row, and rows that were encoded whole to compare. mismatches: shapes that failed on real rows and went slow.
    """

    def __init__(self, tokenizer: Tokenizer, learn: str) -> None:
        self.tokenizer, self.learn = tokenizer, learn
        self.proof: Proof | None = None
        self.ways: Counter[str] = Counter()
        self.mismatches = 0
        self._families: dict[Any, Family] = {}
        self._seams = Seams(tokenizer.hf.backend_tokenizer)
        self._scaffold: dict[str, np.ndarray] = {}

    def encode(self, turns: Turns) -> EncodedBatch:
        """The ids, spans and flags of a batch of rows."""
        self.prove(turns.contents)
        draft = self._draft(turns)
        segments = self._lay_out(turns, draft)
        ids, lengths = self._encode(turns, segments)
        return self._mend(turns, draft, self._finish(turns, draft, segments, ids, lengths))

    def prove(self, contents: pa.Array) -> Proof:
        """Settle which tokenizer encodes, by the hard texts and a sample of these contents. The first call decides."""
        if self.proof is None:
            sample = contents.take(pa.array(np.linspace(0, len(contents) - 1, min(SAMPLE, len(contents))).astype(int)))
            self._sample: list[str] = [text[:4000] for text in sample.to_pylist()]
            self._content, self.proof = best_encoder(self.tokenizer._content, self._sample)
        return self.proof

    def learned_turns(self, example: Example) -> list[bool]:
        """Which turns of a chat are learned."""
        marks = [f"\u27e6turn-{place}\u27e7" for place in range(len(example.messages))]
        segments = self.tokenizer.encode_example(with_contents(example, marks), self.learn)
        learned = "".join(segment.text for segment in segments if segment.learned)
        return [mark in learned for mark in marks]

    @cached_property
    def _whole(self) -> BatchEncoder:
        """For whole rendered texts, control tokens included."""
        return best_encoder(self.tokenizer._scaffold, self._sample)[0]

    # ------------------------------------------------------------------------------------------------ rows to segments

    def _draft(self, turns: Turns) -> _Draft:
        draft = _Draft(Contents(turns.contents))
        for key, rows in _families(turns):
            family = self._families.get(key)
            if family is None and key is not None:
                family = self._families[key] = Family(self._example(turns, int(rows[0])))
            if family is None:
                self._slowly(turns, draft, rows)
                continue
            for chosen, shape in self._variants(turns, draft, family, rows):
                if shape is None:
                    self._slowly(turns, draft, chosen)
                else:
                    draft.compiled.append((chosen, shape))
                    self.ways["compiled"] += len(chosen)
        return draft

    def _variants(
        self, turns: Turns, draft: _Draft, family: Family, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Shape | None]]:
        """Rows of a family by the answers to its looks, with the shape; None: row by row."""
        while True:
            answers = np.zeros((len(rows), len(family.looks)), bool)
            for number, look in enumerate(family.looks):
                answers[:, number] = draft.contents.answer(look)[turns.offsets[rows] + look.place]
            packed = pack(answers)
            kinds, first, members = np.unique(packed, return_index=True, return_inverse=True)
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
            shape, compared = family.variants[kind], rows[:: max(1, len(rows) // COMPARED_LATER)][:COMPARED_LATER]
        else:
            family.seen[kind] = family.seen.get(kind, 0) + len(rows)
            if family.seen[kind] < ENOUGH or len(family.variants) >= VARIANTS:
                return None
            shape = family.variants[kind] = compile_shape(self.tokenizer, self.learn, family, answers)
            drawn = np.random.default_rng(len(rows)).choice(rows, COMPARED_RANDOM)
            compared = np.unique([*rows[:COMPARED_FIRST], *drawn])
        if shape is not None and not all(self._holds(turns, shape, int(row)) for row in compared):
            self.mismatches += 1
            shape = family.variants[kind] = None
        return shape

    def _holds(self, turns: Turns, shape: Shape, row: int) -> bool:
        """Does a shape give the segments that the slow way makes of this row."""
        example = self._example(turns, row)
        try:
            return is_equal(shape, contents_of(example), self.tokenizer.encode_example(example, self.learn))
        except TemplateError:
            return False

    def _slowly(self, turns: Turns, draft: _Draft, rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                draft.slow[row] = self.tokenizer.encode_example(self._example(turns, row), self.learn)
            except TemplateError as error:
                draft.refused[row] = str(error)
        self.ways["row by row"] += len(rows)

    def _example(self, turns: Turns, row: int) -> Example:
        first, end = int(turns.offsets[row]), int(turns.offsets[row + 1])
        contents = turns.contents.slice(first, end - first).to_pylist()
        return Example.from_columns(
            turns.roles[first:end].tolist(), contents, turns.extras[row] if turns.extras else None
        )

    # ------------------------------------------------------------------------------------------- segments in one order

    def _lay_out(self, turns: Turns, draft: _Draft) -> _Segments:
        count, num_turns = len(turns.offsets) - 1, len(draft.contents)
        sizes = np.zeros(count, np.int64)
        for rows, shape in draft.compiled:
            sizes[rows] = len(shape)
        for row, segments in draft.slow.items():
            sizes[row] = len(segments)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        source = np.zeros(offsets[-1], np.int64)
        learned, weight = np.zeros(offsets[-1], bool), np.ones(offsets[-1], np.float32)
        clean = np.ones(count, bool)

        scaffold = _Numbered()
        more = _Numbered()
        changed: dict[int, str] = {}
        first, last = edges(draft.contents.texts)
        for rows, shape in draft.compiled:
            places = offsets[rows]
            begins = turns.offsets[rows]
            for number, piece in enumerate(shape):
                if piece.place is None:
                    source[places + number] = -1 - scaffold[piece.text]
                else:
                    source[places + number] = begins + piece.place
                    self._note_changes(draft, begins + piece.place, piece.change, changed)
                learned[places + number] = piece.learned
                weight[places + number] = piece.weight
            clean[rows] = self._clean(shape, begins, first, last)
        for row, segments in draft.slow.items():
            clean[row] = False
            at = int(turns.offsets[row])
            own = {text: at + n for n, text in enumerate(self._own(turns, row))}
            for number, segment in enumerate(segments, int(offsets[row])):
                if segment.is_content:
                    turn = own.get(segment.text)
                    source[number] = turn if turn is not None else num_turns + more[segment.text]
                else:
                    source[number] = -1 - scaffold[segment.text]
                learned[number], weight[number] = segment.learned, weight_of(segment)

        places = np.array(sorted(changed), np.int64)
        contents = put(draft.contents.texts, places, [changed[place] for place in places.tolist()])
        # A change moves an edge; such rows are compared whole.
        if len(places):
            clean[np.searchsorted(turns.offsets, places, "right") - 1] = False
        num_contents = num_turns + len(more)
        source = np.where(source < 0, num_contents - 1 - source, source)
        texts = pa.concat_arrays([contents, more.texts, scaffold.texts])
        return _Segments(offsets, source, learned, weight, clean, texts, num_contents)

    @staticmethod
    def _own(turns: Turns, row: int) -> list[str]:
        first, end = int(turns.offsets[row]), int(turns.offsets[row + 1])
        return turns.contents.slice(first, end - first).to_pylist()

    @staticmethod
    def _note_changes(draft: _Draft, turns: np.ndarray, change: Any, changed: dict[int, str]) -> None:
        if change:
            places, texts = draft.contents.changed(change)
            for number in np.flatnonzero(np.isin(places, turns)).tolist():
                changed[int(places[number])] = texts[number]

    def _clean(self, shape: Shape, begins: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """bool [R]: rows of a shape whose seams are all exact."""
        out = np.ones(len(begins), bool)
        for left, right in itertools.pairwise(shape):
            if left.place is None and right.place is None:
                out &= self._seams.between(left.text, right.text)
            elif left.place is None:
                out &= self._seams.into_content(left.text, first[begins + right.place])
            elif right.place is None:
                out &= self._seams.out_of_content(last[begins + left.place], right.text)
            else:
                out[:] = False
        return out

    # ------------------------------------------------------------------------------------------------ segments to ids

    def _encode(self, turns: Turns, segments: _Segments) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all segments in order, tokens of each segment)."""
        used = np.zeros(len(segments.texts), bool)
        used[segments.source] = True
        contents = np.flatnonzero(used[: segments.num_contents])
        slots, (content_ids, content_ends) = self._encode_contents(turns, segments.texts, contents)
        pieces = [self._scaffold_ids(text.as_py()) for text in segments.texts.slice(segments.num_contents)]
        ids = np.concatenate([content_ids, *pieces]).astype(np.int32, copy=False)
        ends = np.concatenate(
            [content_ends, content_ends[-1] + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)]
        )
        place = np.zeros(len(segments.texts), np.int64)
        place[contents] = slots
        place[segments.num_contents :] = len(content_ends) - 1 + np.arange(len(pieces))
        order = place[segments.source]
        return gather(ids, ends, order), np.diff(ends)[order]

    def _encode_contents(
        self, turns: Turns, texts: pa.Array, used: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(number of the encoded text for each used one, ids). The same system turn over and over is encoded once."""
        is_system = np.zeros(len(used), bool)
        of_turns = used < len(turns.roles)
        is_system[of_turns] = turns.roles[used[of_turns]] == SYSTEM
        repeated = texts.take(pa.array(used[is_system])).dictionary_encode()
        others = texts if len(used) == len(texts) and not len(repeated) else texts.take(pa.array(used[~is_system]))
        slots = np.zeros(len(used), np.int64)
        slots[~is_system] = np.arange(len(others))
        slots[is_system] = len(others) + repeated.indices.to_numpy()
        chosen = pa.concat_arrays([others, repeated.dictionary]) if len(repeated) else others
        return slots, self._content.encode(buffers(chosen))

    def _scaffold_ids(self, text: str) -> np.ndarray:
        if text not in self._scaffold:
            if len(self._scaffold) > 100_000:
                self._scaffold.clear()
            ids = self.tokenizer._scaffold.encode(text, add_special_tokens=False).ids
            self._scaffold[text] = np.array(ids, np.int32)
        return self._scaffold[text]

    # ---------------------------------------------------------------------------------------------------- spans, flags

    def _finish(
        self, turns: Turns, draft: _Draft, segments: _Segments, ids: np.ndarray, lengths: np.ndarray
    ) -> EncodedBatch:
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets = ends[segments.offsets]
        spans, span_offsets, weights = learned_spans(segments.offsets, ends, segments.learned, segments.weight)
        flags = np.zeros(len(offsets) - 1, np.uint8)
        filled = np.diff(segments.offsets) > 0
        flags[filled & (np.diff(span_offsets) == 0)] |= NOTHING_LEARNED
        control = self._rows_with_control(turns, draft.contents.texts) & filled
        flags[control] |= CONTROL_IN_TEXT
        doubtful = np.flatnonzero(~segments.clean & ~control & filled)
        flags[doubtful[self._differs(segments, ids, offsets, doubtful)]] |= JOINED_DIFFERS
        return EncodedBatch(ids, offsets, spans, span_offsets, weights, draft.refused, flags)

    def _differs(self, segments: _Segments, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """bool [R]: rows whose whole text has other ids than its segments joined."""
        self.ways["compared whole"] += len(rows)
        if not len(rows):
            return np.zeros(0, bool)
        sizes = np.diff(segments.offsets)[rows]
        chosen = np.repeat(segments.offsets[rows], sizes) + _arange(sizes)
        data, ends = buffers(segments.texts.take(pa.array(segments.source[chosen])))
        whole, whole_offsets = self._whole.encode((data, ends[np.concatenate([[0], np.cumsum(sizes)])]))
        lengths = np.diff(offsets)[rows]
        out = np.diff(whole_offsets) != lengths
        same = np.flatnonzero(~out)
        ours = ids[np.repeat(offsets[rows[same]], lengths[same]) + _arange(lengths[same])]
        theirs = whole[np.repeat(whole_offsets[same], lengths[same]) + _arange(lengths[same])]
        out[np.repeat(same, lengths[same])[ours != theirs]] = True
        return out

    def _mend(self, turns: Turns, draft: _Draft, batch: EncodedBatch) -> EncodedBatch:
        """Rows whose segments cannot be encoded one by one, made the slow way: contents that melt into the scaffold
        beside them, or that hold a control token."""
        rows = np.flatnonzero(batch.flags & (JOINED_DIFFERS | CONTROL_IN_TEXT))
        if not len(rows):
            return batch
        self.ways["mended"] += len(rows)
        chosen = set(rows.tolist())
        shapes = {row: shape for of_shape, shape in draft.compiled for row in chosen.intersection(of_shape.tolist())}
        segments = [
            segments_of(shapes[row], contents_of(self._example(turns, row))) if row in shapes else draft.slow[row]
            for row in rows.tolist()
        ]
        flags = batch.flags.copy()
        mended: dict[int, Encoded] = {}
        for row, own, encoded in zip(rows.tolist(), segments, self.tokenizer.encode_segments(segments), strict=True):
            mended[row] = encoded
            flags[row] &= ~np.uint8(JOINED_DIFFERS | CONTROL_IN_TEXT)
            if self.tokenizer.holds_control_tokens(own):
                flags[row] |= CONTROL_IN_TEXT
            elif encoded[0].tolist() != self.tokenizer.encode_whole("".join(segment.text for segment in own)):
                flags[row] |= JOINED_DIFFERS
        return put_rows(replace(batch, flags=flags), mended)

    def _rows_with_control(self, turns: Turns, texts: pa.Array) -> np.ndarray:
        """bool [N]: rows with a control token's text in a content."""
        hit = np.zeros(len(texts), bool)
        for stem, pattern in self._control_patterns.items():
            near = np.flatnonzero(pc.match_substring(texts, stem).to_numpy(zero_copy_only=False) & ~hit)
            if len(near):
                found = pc.match_substring_regex(texts.take(pa.array(near)), pattern)
                hit[near[found.to_numpy(zero_copy_only=False)]] = True
        rows = np.searchsorted(turns.offsets, np.flatnonzero(hit), "right") - 1
        out = np.zeros(len(turns.offsets) - 1, bool)
        out[rows] = True
        return out

    @cached_property
    def _control_patterns(self) -> dict[str, str]:
        """First two characters of control tokens -> a pattern of those that begin so: plain search finds few candidates fast."""
        by_stem: dict[str, list[str]] = {}
        for token in sorted(self.tokenizer.control):
            by_stem.setdefault(token[:2], []).append(token)
        return {stem: "|".join(map(_quoted, tokens)) for stem, tokens in by_stem.items()}


def put_rows(batch: EncodedBatch, rows: dict[int, Encoded]) -> EncodedBatch:
    """The batch with some rows' ids and spans exchanged."""
    ids = np.split(batch.ids, batch.offsets[1:-1])
    spans, weights = np.split(batch.spans, batch.span_offsets[1:-1]), np.split(batch.weights, batch.span_offsets[1:-1])
    for row, (own, own_spans) in rows.items():
        ids[row] = own
        spans[row] = np.array([span[:2] for span in own_spans], np.int32).reshape(-1, 2)
        weights[row] = np.array([span[2] for span in own_spans], np.float32)
    return replace(
        batch,
        ids=np.concatenate(ids),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        spans=np.concatenate(spans),
        span_offsets=np.cumsum([0, *map(len, spans)], dtype=np.int64),
        weights=np.concatenate(weights),
    )


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


def gather(values: np.ndarray, ends: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Pieces of int32 values, cut at `ends` [P+1], in another order: copied piece by piece, not id by id."""
    pieces = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(ends) - 1, [None, pa.py_buffer(ends * 4), pa.py_buffer(np.ascontiguousarray(values))]
    )
    laid = pieces.take(pa.array(order))
    _, offsets, data = laid.buffers()
    if data is None or not len(laid):
        return np.zeros(0, np.int32)
    total = np.frombuffer(offsets, np.int64)[laid.offset + len(laid)]
    return np.frombuffer(data, np.int32, int(total) // 4)


class _Numbered:
    """Texts with numbers in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def texts(self) -> pa.Array:
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


def _arange(sizes: np.ndarray) -> np.ndarray:
    """0..size-1 for each size, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)


def _quoted(text: str) -> str:
    return re.sub(r"([^\w\s])", r"\\\1", text, flags=re.ASCII)
