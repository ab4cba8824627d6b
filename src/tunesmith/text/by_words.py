"""Batches of text to ids by `tokenizers`, which sees each distinct word once; the ids of the others are copied.

A word here reaches from one certain cut of a text to the next: before a blank with a printable ASCII character on its left and
an ASCII letter on its right. Such a place is certain where the tokenizer itself cuts there whatever stands further away, or,
where it cuts nothing (SentencePiece), where no token of its vocabulary reaches across. `cuts_of` asks the tokenizer
for that and `text.fast` proves it on texts before it is used; what cannot be told so is encoded text by text.

Rests on what `stages.prepare.encoding.seams` rests on: pre-tokenizers match from left to right and look at most one character beyond a
word, blanks aside.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer as Reference
from tokenizers import models

if TYPE_CHECKING:
    from tunesmith.text.fast import BatchEncoder, Ids, Texts

BLANK = ord(" ")
PRINTABLE = [chr(point) for point in range(0x21, 0x7F)]
LETTERS = [character for character in PRINTABLE if character.isalpha()]
# Normalizers that change no character by what stands on the other side of a blank.
LOCAL = ("NFC", "NFD", "NFKC", "NFKD")
UNDERLINE = "\u2581"  # SentencePiece's blank
CONTEXTS = ("q{0}{0}", " {}", "\n1{}")  # of the character on the left
ENDINGS = ("{} ", "{0}e'{0}\n")  # of the letter on the right
LIKELY = "bXstdlrv"  # letters of contractions, and others
REMEMBERED, LONGEST = 1 << 17, 64  # words with known ids, and bytes of one: at most about 30 MB
AT_ONCE = 4096  # words whose ids are lists of Python numbers at a time
WORTH = 0.5  # share of a batch's bytes that its distinct words may have; beyond, cutting gains nothing


@dataclass(frozen=True)
class Cuts:
    """left: bool [256], bytes that may stand before the blank. right: bool [256], bytes that may stand behind it.

    without_blank: a word behind a cut is encoded without its blank, which the normalizer puts there itself.
    """

    left: np.ndarray
    right: np.ndarray
    without_blank: bool


class ByWords:
    """By `tokenizers`, on all its threads. plain: encodes batches of texts whose words hardly repeat."""

    def __init__(self, reference: Reference, cuts: Cuts, plain: BatchEncoder, worth: float = WORTH) -> None:
        self.reference, self.cuts, self.plain, self.worth = reference, cuts, plain, worth
        self._known: dict[bytes, bytes] = {}  # word -> its ids, int32

    def encode(self, texts: Texts) -> Ids:
        words, firsts = cut(texts, self.cuts)
        found = words.dictionary_encode()
        distinct = found.dictionary.to_pylist()
        if sum(map(len, distinct)) > self.worth * int(texts[1][-1] - texts[1][0]):
            return self.plain.encode(texts)
        pieces = self._ids(distinct)
        ends = np.concatenate([[0], np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))])
        laid = _binary(np.frombuffer(b"".join(pieces), np.uint8), ends).take(found.indices)
        _, offsets, data = laid.buffers()
        places = np.frombuffer(offsets, np.int64)[firsts] // 4
        ids = np.frombuffer(data, np.int32, int(places[-1])) if data is not None else np.zeros(0, np.int32)
        return ids, places

    def _ids(self, words: list[bytes]) -> list[bytes]:
        """int32 of each word."""
        out: list[Any] = list(map(self._known.get, words))
        new = [place for place, ids in enumerate(out) if ids is None]
        for first in range(0, len(new), AT_ONCE):
            places = new[first : first + AT_ONCE]
            texts = [words[place].decode() for place in places]
            for place, encoding in zip(
                places, self.reference.encode_batch_fast(texts, add_special_tokens=False), strict=True
            ):
                out[place] = array("i", encoding.ids).tobytes()
        if len(self._known) < REMEMBERED:
            self._known.update((words[place], out[place]) for place in new if len(words[place]) <= LONGEST)
        return out


def cut(texts: Texts, cuts: Cuts) -> tuple[pa.Array, np.ndarray]:
    """(words as large_binary [W], int64 [N+1]: each text's first word)."""
    data, offsets = texts
    ends = offsets - offsets[0]
    view = data[offsets[0] : offsets[-1]]
    begins_text = np.zeros(len(view) + 1, bool)
    begins_text[ends] = True
    blanks = np.flatnonzero(view[1:-1] == BLANK) + 1
    blanks = blanks[cuts.left[view[blanks - 1]] & cuts.right[view[blanks + 1]]]
    blanks = blanks[~(begins_text[blanks] | begins_text[blanks + 1])]
    begins = begins_text
    begins[blanks] = True
    places = np.flatnonzero(begins)  # the last one is the end
    firsts = np.searchsorted(places, ends)
    if cuts.without_blank and len(blanks):
        kept = np.ones(len(view), bool)
        kept[blanks] = False
        places = places - np.searchsorted(blanks, places)
        view = view[kept]
    return _binary(view, places), firsts


def _binary(data: np.ndarray, ends: np.ndarray) -> pa.Array:
    """large_binary over bytes without a copy. ends: int64, the first is where the first begins."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(ends, np.int64)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers)


# ------------------------------------------------------------------------------------------- where a tokenizer is cut


def cuts_of(reference: Reference) -> Cuts | None:
    """Where texts may be cut for this tokenizer; None where that cannot be told."""
    if reference.truncation is not None or reference.padding is not None:
        return None
    normalizers = list(_steps(reference.normalizer))
    if not all(map(_is_local, normalizers)):
        return None
    without_blank = any(step["type"] == "Prepend" for step in normalizers)
    edges = _edges_of_added(reference)
    if edges is None:
        return None
    words = _Words(reference, without_blank)
    left = [character for character in PRINTABLE if character not in edges[0] and words.part(character, LIKELY)]
    if not words.are_cut:
        left = _uncrossed(reference, left, words.blank)
    right = [letter for letter in LETTERS if letter not in edges[1] and words.part("a", letter)]
    return Cuts(_table(left), _table(right), without_blank) if left and right else None


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """The states of a normalizer, those of a sequence one by one."""
    if component is None:
        return
    waiting = [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step["normalizers"]
        else:
            yield step


def _is_local(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return step["pattern"] == {"String": " "} and step["content"] == UNDERLINE
    return step["type"] in LOCAL or (step["type"] == "Prepend" and step["prepend"] == UNDERLINE)


def _edges_of_added(reference: Reference) -> tuple[set[str], set[str]] | None:
    """(last characters, first characters) of added tokens, beside which nothing is cut; None where one could hold a cut or
    depends on the letters beside it."""
    last, first = set(), set()
    for token in reference.get_added_tokens_decoder().values():
        forms = {token.content}
        if token.normalized and reference.normalizer is not None:
            forms.add(reference.normalizer.normalize_str(token.content))
        for form in (form.replace(UNDERLINE, " ") for form in forms):
            if token.single_word or form == " " or re.search(r" [A-Za-z]|[!-~] $", form):
                return None
            last.add(form[-1:])
            first.add(form.lstrip()[:1])
    return last, first


class _Words:
    """What a tokenizer makes of texts before its model. are_cut: before a blank. blank: what a blank becomes."""

    def __init__(self, reference: Reference, without_blank: bool) -> None:
        self.reference, self.without_blank = reference, without_blank
        self._known: dict[str, list[str]] = {}
        self.are_cut = len(self._of("a b")) > 1
        self.blank = self._of("a b")[-1][-2:-1]

    def part(self, left: str, letters: Iterable[str]) -> bool:
        """Is a text between this character and a blank with one of these letters laid together from its two sides."""
        for letter in letters:
            for context in CONTEXTS:
                for ending in ENDINGS:
                    if not self._joins(context.format(left), ending.format(letter)):
                        return False
        return True

    def _joins(self, before: str, after: str) -> bool:
        *first, last = self._alone(before)
        next_one, *rest = self._alone(after if self.without_blank else f" {after}")
        seam = [last, next_one] if self.are_cut else [last + next_one]
        return self._of(f"{before} {after}") == [*first, *seam, *rest]

    def _alone(self, text: str) -> list[str]:
        if text not in self._known:
            self._known[text] = self._of(text)
        return self._known[text]

    def _of(self, text: str) -> list[str]:
        if self.reference.normalizer is not None:
            text = self.reference.normalizer.normalize_str(text)
        if self.reference.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self.reference.pre_tokenizer.pre_tokenize_str(text)]


def _uncrossed(reference: Reference, left: list[str], blank: str) -> list[str]:
    """Of characters, those behind which no token of a BPE goes on over a blank: merges on its two sides do not meet."""
    model = reference.model
    if not isinstance(model, models.BPE) or model.dropout or model.ignore_merges:
        return []
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return []
    tokens = reference.get_vocab(with_added_tokens=False)
    if not blank or blank not in tokens:  # unknown ones may be one token with their neighbours
        return []
    crossed = {before for token in tokens for before in re.findall(f"(.){re.escape(blank)}", token, re.DOTALL)}
    return [character for character in left if character not in crossed]


def _table(characters: Iterable[str]) -> np.ndarray:
    """bool [256]."""
    out = np.zeros(256, bool)
    out[list(map(ord, characters))] = True
    return out
