"""Batches of text to ids in flat arrays: by gigatoken where it is proven to give the ids of `tokenizers`, else by those, each
distinct word once where that is proven too (`by_words`).

The only door to gigatoken (https://github.com/marcelroed/gigatoken), which is optional. Texts come as UTF-8 bytes with
offsets, as Arrow holds them; ids leave as int32 with offsets, so that no token is a Python object on the way.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as Reference

from tunesmith.text.by_words import ByWords, cuts_of
from tunesmith.text.hard_texts import HARD

Texts = tuple[np.ndarray, np.ndarray]  # uint8 [B], int64 [N+1]
Ids = tuple[np.ndarray, np.ndarray]  # int32 [T], int64 [N+1]
NEIGHBOURHOODS = ("{}", "a{}b", " {} ", "\n{}\n", "{0}{0}", "x {0}y", "{0} z")
CHUNK = 1024  # texts that are lists of Python numbers at a time


class BatchEncoder(Protocol):
    """Encodes texts one by one, without what a post-processor would add."""

    def encode(self, texts: Texts) -> Ids: ...


@dataclass(frozen=True)
class Proof:
    """Whether the fast tokenizer gives the ids of `tokenizers`. why: what was compared, or what speaks against it.

    rows: texts that were compared.
    """

    fast: bool
    why: str
    rows: int = 0


class Plain:
    """By `tokenizers`, on all its threads."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def encode(self, texts: Texts) -> Ids:
        data, offsets = texts
        raw, ends = data.tobytes(), offsets.tolist()
        parts: list[bytes] = []
        lengths = np.zeros(len(ends) - 1, np.int64)
        for first in range(0, len(ends) - 1, CHUNK):
            last = min(first + CHUNK, len(ends) - 1)
            words = [raw[ends[place] : ends[place + 1]].decode() for place in range(first, last)]
            ids = [found.ids for found in self.reference.encode_batch_fast(words, add_special_tokens=False)]
            lengths[first:last] = list(map(len, ids))
            parts += [array("i", each).tobytes() for each in ids]
        return np.frombuffer(b"".join(parts), np.int32), np.concatenate([[0], np.cumsum(lengths)])


class Fast:
    """By gigatoken. Raises whatever it raises for a tokenizer that it does not know."""

    def __init__(self, reference: Reference) -> None:
        import awkward
        import gigatoken

        self._awkward = awkward
        self._tokenizer = gigatoken.Tokenizer.from_json(reference.to_str())

    def encode(self, texts: Texts) -> Ids:
        data, offsets = texts
        if len(offsets) < 2:
            return np.zeros(0, np.int32), np.zeros(1, np.int64)
        contents = self._awkward.contents
        letters = contents.NumpyArray(data, parameters={"__array__": "char"})
        index = self._awkward.index.Index64(offsets)
        rows = contents.ListOffsetArray(index, letters, parameters={"__array__": "string"})
        layout = self._tokenizer.encode_batch(self._awkward.Array(rows)).layout
        # The ids are uint32 and far below 2^31.
        starts = np.asarray(layout.offsets.data, np.int64)
        return np.asarray(layout.content.data).view(np.int32)[starts[0] : starts[-1]], starts - starts[0]


def best_encoder(reference: Reference, sample: Sequence[str] = ()) -> tuple[BatchEncoder, Proof]:
    """The fastest exact encoder for a tokenizer. sample: texts of the user's, compared besides the hard ones."""
    plain = Plain(reference)
    texts = [*hard_texts(reference), *sample]
    if not _is_installed():
        return by_tokenizers(plain, texts), Proof(False, "gigatoken is not installed")
    try:
        fast = Fast(reference)
        proof = prove(plain, fast, texts)
    # Rust code that panics raises a BaseException of its own.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        proof = Proof(False, f"gigatoken does not know this kind of tokenizer ({_first_line(error)})")
    return (fast if proof.fast else by_tokenizers(plain, texts)), proof


def by_tokenizers(plain: Plain, texts: Sequence[str]) -> BatchEncoder:
    """`tokenizers` with each distinct word once, where that is proven on texts to give the same; else text by text."""
    cuts = cuts_of(plain.reference)
    if cuts is None:
        return plain
    around = [f"said, {text} then" for text in texts]
    always = ByWords(plain.reference, cuts, plain, worth=float("inf"))
    proof = prove(plain, always, [*texts, *around])
    return ByWords(plain.reference, cuts, plain) if proof.fast else plain


def prove(plain: BatchEncoder, fast: BatchEncoder, texts: Sequence[str]) -> Proof:
    """Compare both on texts, id by id; the first difference is the reason against."""
    flat = join(texts)
    (wanted, wanted_offsets), (found, found_offsets) = plain.encode(flat), fast.encode(flat)
    if np.array_equal(wanted, found) and np.array_equal(wanted_offsets, found_offsets):
        return Proof(True, f"equal ids on {len(texts)} texts", len(texts))
    for place, text in enumerate(texts):
        ours = found[found_offsets[place] : found_offsets[place + 1]]
        theirs = wanted[wanted_offsets[place] : wanted_offsets[place + 1]]
        if not np.array_equal(ours, theirs):
            return Proof(False, f"gigatoken gives other ids for {text[:40]!r}", len(texts))
    raise AssertionError("the ids differ and no text does")


def join(texts: Sequence[str]) -> Texts:
    """Strings as bytes with offsets."""
    raw = [text.encode() for text in texts]
    offsets = np.concatenate([[0], np.cumsum(list(map(len, raw)), dtype=np.int64)]).astype(np.int64)
    return np.frombuffer(b"".join(raw), np.uint8), offsets


def _is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("gigatoken", "awkward"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hard_texts(reference: Reference) -> list[str]:
    """Texts on which tokenizers part: the tokenizer's own added tokens in every neighbourhood, and HARD."""
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    around = [text.format(token) for token in added[:64] for text in NEIGHBOURHOODS]
    return ["".join(added), " ".join(added), *around, *HARD]
