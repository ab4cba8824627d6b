"""What a row is compared with others by: hashes of its texts, bands of its MinHash, a sketch of its runs of words.

Row-local: made part by part, in any process. The set-wide rules (`select`) see nothing else of a text.
"""

# N rows, G runs of words ("grams"), K permutations of a MinHash

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.recipe import Recipe
from tunesmith.stages.prepare.sets import words as hashing
from tunesmith.stages.prepare.sets.words import Spans, Words, mixed

PERMUTATIONS = 128
SKETCH = 1024  # least gram hashes kept: similarity is exact where a row has fewer, else its deviation is at most 0.016
RECALL = 0.995  # of pairs exactly at the threshold, those that share a band
SORTED = 1 << 15  # grams sorted at a time
BLOCK = 1024  # rows whose grams stay in the processor's cache while they are permuted
SAMPLED = 20_000  # rows that tell what is boilerplate
BOILERPLATE_SHARE, BOILERPLATE_ROWS = 0.02, 20

_RANDOM = np.random.default_rng(20_26)
_FLIPS = _RANDOM.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)
_FACTORS = _RANDOM.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)


@dataclass(frozen=True)
class View:
    """One way to compare rows. text: prompt, answer or both. unit, length: what a gram is. threshold: of Jaccard."""

    text: str
    unit: str
    length: int
    threshold: float

    @property
    def name(self) -> str:
        return f"{self.text}/{self.unit}{self.length}/{self.threshold:g}"

    @property
    def sketches(self) -> tuple[str, ...]:
        """Columns by which a pair is judged."""
        return (f"{self.name}/sketch", *([f"{self.name}/answer"] if self.text == "both" else []))

    @property
    def bands(self) -> tuple[int, int]:
        """(bands, rows of each): the widest whose chance to miss a pair at the threshold is small.

        A pair with Jaccard s shares one of b bands of r rows with chance 1 - (1 - s^r)^b.
        """
        for rows in range(PERMUTATIONS, 0, -1):
            bands = PERMUTATIONS // rows
            if 1 - (1 - self.threshold**rows) ** bands >= RECALL:
                return bands, rows
        return PERMUTATIONS, 1


@dataclass(frozen=True)
class Views:
    """What a recipe asks rows to be compared by. overlap: words of a run, where shared runs are looked for.

    compares: whether texts are looked at at all.
    """

    duplicates: View | None
    leaks: View | None
    overlap: int | None
    compares: bool

    @classmethod
    def of(cls, spec: Recipe) -> Views:
        asked, watched = spec.data.deduplicate, spec.data.leaks
        duplicates = View(asked.on, asked.unit, asked.length, asked.threshold) if asked.type == "near" else None
        if watched.type != "drop":
            return cls(duplicates, None, None, asked.type != "none")
        leaks = View("prompt", "words", watched.length, watched.near) if watched.near is not None else None
        return cls(duplicates, leaks, watched.overlap_words if watched.overlap is not None else None, True)

    @property
    def near(self) -> tuple[View, ...]:
        """Those that need a MinHash, each once."""
        return tuple(dict.fromkeys(view for view in (self.duplicates, self.leaks) if view is not None))


def made_of(spec: Recipe) -> dict[str, Any]:
    """All of a recipe that decides signatures: a limit, a policy or another file to watch makes none anew."""
    views = Views.of(spec)
    return {
        "seed": spec.seed,
        "drawn": [source.split == "auto" for source in spec.data.sources] if _draws_any(spec) else None,
        "stratify": spec.data.split.stratify,
        "near": [view.name for view in views.near],
        "overlap": views.overlap,
        "compares": views.compares,
    }


def signatures(part: pa.Table, spec: Recipe, boilerplate: dict[str, np.ndarray] | None = None) -> pa.Table:
    """Of each good row of a part, in order, what set-wide rules compare.

    part: columns row, source, format, key, prompt_key, turns, extra, meta of PART; bad rows (format null) are left out.
    boilerplate: see there. Source -1 are rows that are only looked at (data.leaks.against).
    Returns row int64 | draw uint64 (of rows that data.split draws, else 0)
    | prompt_words uint64 (of the words of what is asked; 0 without words) | answer uint64 (of the answer with its
    punctuation; 0 without one) | where asked stratum int64, overlap list<uint64> with overlap_prompt int64 (how many of
    these lie in what is asked)
    | for each View NAME: NAME/band00.. int64 (null without a text), NAME/sketch list<uint32> (see _sketch; of `both` NAME/answer too).
    """
    part = good(part)
    views = Views.of(spec)
    found: dict[str, pa.Array] = {"row": hashing.column(part, "row"), "draw": pa.array(_draws(part, spec))}
    if not views.compares and spec.data.split.stratify is None:
        # Nobody asks: that nothing has words costs nothing.
        nothing = pa.array(np.zeros(part.num_rows, np.uint64))
        return pa.table({**found, "prompt_words": nothing, "answer": nothing})
    contents = hashing.column(part, "turns").flatten().field("content")
    turns = hashing.Turns.of(part)
    tokenised = {"words": hashing.words_of(contents)}
    spans = {"words": hashing.texts(turns, tokenised["words"])}
    answers = hashing.answers(turns, tokenised["words"])
    found["prompt_words"] = pa.array(hashing.whole(tokenised["words"], spans["words"]["prompt"]))
    found["answer"] = pa.array(answers)
    if spec.data.split.stratify is not None:
        found["stratum"] = pa.array(_stratum(part, spec.data.split.stratify, answers))
    if views.overlap is not None:
        every, asked = spans["words"]["both"], spans["words"]["prompt"]
        whole_runs = every.ends - every.starts >= views.overlap
        every = Spans(every.starts, np.where(whole_runs, every.ends, every.starts))
        found["overlap"] = _lists(*hashing.grams(tokenised["words"], every, views.overlap))
        # What is asked stands first, so its runs do.
        found["overlap_prompt"] = pa.array(np.maximum(asked.ends - asked.starts - views.overlap + 1, 0))
    for view in views.near:
        if view.unit not in tokenised:
            tokenised[view.unit] = hashing.words_of(contents, view.unit)
            spans[view.unit] = hashing.texts(turns, tokenised[view.unit])
        common = (boilerplate or {}).get(view.name)
        found |= _minhash(view, tokenised[view.unit], spans[view.unit][view.text], common)
        if view.text == "both":
            found[f"{view.name}/answer"] = _sketch(
                *_grams(tokenised[view.unit], spans[view.unit]["answer"], view.length)
            )
    return pa.table(found)


def good(part: pa.Table) -> pa.Table:
    """The rows that could be read."""
    if "format" not in part.column_names or part.column("format").null_count == 0:
        return part
    return part.filter(pc.is_valid(part.column("format")))


# ---------------------------------------------------------------------------------------------------------- MinHash


def _minhash(view: View, words: Words, spans: Spans, boilerplate: np.ndarray | None) -> dict[str, pa.Array]:
    hashes, offsets = _grams(words, spans, view.length)
    if boilerplate is not None and len(boilerplate) and len(hashes):
        hashes, offsets = _without(hashes, offsets, boilerplate, words, spans)
    count = np.diff(offsets)
    filled = np.flatnonzero(count)
    starts = np.append(offsets[filled], offsets[-1])
    signature = permute(hashes, starts)
    bands, rows = view.bands
    found: dict[str, pa.Array] = {}
    for band in range(bands):
        folded = np.full(len(filled), band + 1, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            folded = (folded ^ signature[row]) * np.uint64(0x9E3779B97F4A7C15)
            folded ^= folded >> np.uint64(29)
        values = np.zeros(len(count), np.int64)
        values[filled] = mixed(folded).view(np.int64)
        found[f"{view.name}/band{band:02d}"] = pa.array(values, mask=count == 0)
    found[f"{view.name}/sketch"] = _sketch(hashes, offsets)
    return found


def _sketch(hashes: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    """Of a row with fewer than SKETCH grams all as they stand, repeated ones too: few rows are ever compared, and those are put
    in order then. Of others the SKETCH least, once each, ascending."""
    count = np.diff(offsets)
    many = count >= SKETCH
    if not many.any():
        return _lists(hashes, offsets)
    inside = np.repeat(many, count)
    sorted_once, cuts = distinct(hashes[inside], np.append(0, np.cumsum(count[many])))
    sizes = np.diff(cuts)
    least = sorted_once[np.arange(len(sorted_once)) - np.repeat(cuts[:-1], sizes) < SKETCH]
    count[many] = np.minimum(sizes, SKETCH)
    kept = np.empty(count.sum(), np.uint32)
    inside_kept = np.repeat(many, count)
    kept[inside_kept], kept[~inside_kept] = least, hashes[~inside]
    return _lists(kept, np.append(0, np.cumsum(count)))


def permute(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint32 [K, N]: under each permutation the least gram of each row. hashes uint32 [G]; starts int64 [N+1], no row empty.

    A permutation flips bits and multiplies by an odd number, both one to one on 32 bits.
    """
    out = np.empty((PERMUTATIONS, len(starts) - 1), np.uint32)
    for first in range(0, len(starts) - 1, BLOCK):
        last = min(first + BLOCK, len(starts) - 1)
        block, places = hashes[starts[first] : starts[last]], starts[first:last] - starts[first]
        moved = np.empty_like(block)
        for number in range(PERMUTATIONS):
            np.bitwise_xor(block, _FLIPS[number], out=moved)
            np.multiply(moved, _FACTORS[number], out=moved)
            np.minimum.reduceat(moved, places, out=out[number, first:last])
    return out


def _grams(words: Words, spans: Spans, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 [G] grams of each text, int64 [N+1] where those of each begin)."""
    hashes, offsets = hashing.grams(words, spans, length)
    return (hashes >> np.uint64(32)).astype(np.uint32), offsets


def distinct(hashes: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grams of each text once, ascending. hashes: uint32 [G]; offsets: int64 [N+1]."""
    count = np.diff(offsets)
    keyed = (np.repeat(np.arange(len(count), dtype=np.uint64), count) << np.uint64(32)) | hashes
    cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], SORTED))
    for first, last in pairwise([*offsets[cuts].tolist(), int(offsets[-1])]):
        keyed[first:last].sort()  # rows stay in order: a block holds whole ones
    fresh = np.ones(len(keyed), bool)
    fresh[1:] = keyed[1:] != keyed[:-1]
    return keyed[fresh].astype(np.uint32), np.append(0, np.cumsum(fresh))[offsets]


def _without(
    hashes: np.ndarray, offsets: np.ndarray, boilerplate: np.ndarray, words: Words, spans: Spans
) -> tuple[np.ndarray, np.ndarray]:
    """The grams without boilerplate; a text of nothing else is compared as a whole."""
    places = np.minimum(np.searchsorted(boilerplate, hashes), len(boilerplate) - 1)
    own = boilerplate[places] != hashes
    hashes, offsets = hashes[own], np.append(0, np.cumsum(own))[offsets]
    is_bare = (np.diff(offsets) == 0) & (spans.ends > spans.starts)
    bare = np.flatnonzero(is_bare)
    alone = hashing.whole(words, Spans(spans.starts[bare], spans.ends[bare])) >> np.uint64(32)
    whole = np.insert(hashes, offsets[bare], alone.astype(np.uint32))
    return whole, offsets + np.append(0, np.cumsum(is_bare))


# ------------------------------------------------------------------------------------------------------ boilerplate


def boilerplate(parts: Iterable[pa.Table], spec: Recipe, num_rows: int, threads: int = 1) -> dict[str, np.ndarray]:
    """View's name -> uint32 grams ascending that stand in so many rows that they say nothing about one.

    A system turn or an instruction that many rows share would else make all of them near-duplicates of each other.
    Counted once per distinct text, over the rows with the least content hashes, about 20,000: more than 2 % of these, and
    more than 20. num_rows: good rows of all parts. threads: parts looked at together.
    """
    views = Views.of(spec).near
    if not views:
        return {}
    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(lambda part: _sampled_grams(_sample(good(part), num_rows), views), parts))
    return {view.name: _frequent([found[view.name] for found in seen]) for view in views}


def _sampled_grams(part: pa.Table, views: Iterable[View]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """View's name -> of each row's text its hash uint64, its distinct grams uint32 end to end, their number."""
    contents, turns = hashing.column(part, "turns").flatten().field("content"), hashing.Turns.of(part)
    tokenised = {unit: hashing.words_of(contents, unit) for unit in {view.unit for view in views}}
    found = {}
    for view in views:
        words = tokenised[view.unit]
        spans = hashing.texts(turns, words)[view.text]
        hashes, offsets = distinct(*_grams(words, spans, view.length))
        found[view.name] = hashing.whole(words, spans), hashes, np.diff(offsets)
    return found


def _sample(part: pa.Table, num_rows: int) -> pa.Table:
    if num_rows <= SAMPLED:
        return part
    return part.filter(pa.array(halves(hashing.column(part, "key"))[0] < np.uint64(2**64 * (SAMPLED / num_rows))))


def _frequent(seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """uint32 grams of more than a share of the distinct texts. seen: per part of each text its hash, its grams, their number."""
    if not seen:
        return np.zeros(0, np.uint32)
    text, gram, count = (np.concatenate(column) for column in zip(*seen, strict=True))
    firsts = np.unique(text, return_index=True)[1]
    once = np.zeros(len(text), bool)
    once[firsts] = True
    values, counts = np.unique(gram[np.repeat(once, count)], return_counts=True)
    num_texts = int((text[firsts] != 0).sum())
    return values[counts > max(BOILERPLATE_ROWS, math.ceil(BOILERPLATE_SHARE * num_texts))]


# ---------------------------------------------------------------------------------------------------------- columns


def halves(keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A binary[16] column as two uint64 [N], the first eight bytes and the others, big-endian so that they sort alike."""
    held = np.frombuffer(keys.buffers()[1], ">u8").reshape(-1, 2)[keys.offset : keys.offset + len(keys)]
    return held[:, 0].astype(np.uint64), held[:, 1].astype(np.uint64)


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _draws_any(spec: Recipe) -> bool:
    """Whether rows are drawn out of `auto` sources at all."""
    return bool(spec.data.split.validation or spec.data.split.test)


def _draws(part: pa.Table, spec: Recipe) -> np.ndarray:
    """uint64 [N] from the seed and the prompt's hash: where it falls decides the split, so added rows move no other."""
    found = np.zeros(part.num_rows, np.uint64)
    if not _draws_any(spec):
        return found
    drawn = [place for place, source in enumerate(spec.data.sources) if source.split == "auto"]
    rows = np.flatnonzero(np.isin(hashing.column(part, "source").to_numpy(), drawn))
    keys = hashing.column(part, "prompt_key").take(pa.array(rows)).to_pylist()
    seed = f"{spec.seed}:"
    digests = [hashlib.blake2b((seed + key.hex()).encode(), digest_size=8).digest() for key in keys]
    found[rows] = np.frombuffer(b"".join(digests), ">u8")
    return found


def _stratum(part: pa.Table, by: str, answers: np.ndarray) -> np.ndarray:
    """int64: equal where the rows are of one kind. by: `answer`, or a column of the rows."""
    if by == "answer":
        return answers.view(np.int64)
    told = hashing.column(part, "meta").to_pylist()
    kinds = pa.array([json.dumps(json.loads(row).get(by)) if row else "null" for row in told], pa.string())
    return hashing.words_of(kinds).contents.view(np.int64)
