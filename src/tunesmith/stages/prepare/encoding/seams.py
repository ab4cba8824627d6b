"""Where segments meet: is joining their ids the same as encoding their joined text.

A tokenizer first cuts a text into words (added tokens, then its pre-tokenizer), and encodes each word alone. Where a cut
falls between two segments whatever stands further away, joining is exact there. That is decided here by the texts around
the seam; what cannot be decided so is left to be encoded whole and compared.

Rests on: pre-tokenizers match from left to right and look at most one character beyond a word, blanks and contractions
aside; so seams beside blanks, letters, digits and apostrophes of the scaffold are left undecided.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Reference

UNKNOWN, BROKEN, CLEAN = -1, 0, 1
PROBES = ("a b", " a", "\na", "é1", "a ", "a\n")


class Seams:
    """Seams of one tokenizer. reference: with its control tokens."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._added: dict[int, AddedToken] = reference.get_added_tokens_decoder()
        self._hard: dict[int, bool] = {}
        self._after: dict[str, np.ndarray] = {}
        self._before: dict[str, np.ndarray] = {}

    def between(self, left: str, right: str) -> bool:
        """Two pieces of scaffold."""
        if self.may_straddle(left, right):
            return False
        before, after = self._tail(left), self._head(right)
        return not before or not after or self._parts(before, after)

    def into_content(self, left: str, first: np.ndarray) -> np.ndarray:
        """A piece of scaffold before contents. first: code point of each content's first character, -1 of an empty one."""
        if left not in self._after:
            self._after[left] = self._table(
                is_ok=not self.may_straddle(left, ""), is_hard=not self._tail(left), edge=left[-1:]
            )
        tail = self._tail(left)
        return self._look_up(self._after[left], first, lambda character: self._parts(tail, character))

    def out_of_content(self, last: np.ndarray, right: str) -> np.ndarray:
        """Contents before a piece of scaffold. last: code point of each content's last character, -1 of an empty one."""
        if right not in self._before:
            self._before[right] = self._table(
                is_ok=not self.may_straddle("", right), is_hard=not self._head(right), edge=right[:1]
            )
        head = self._head(right)
        return self._look_up(self._before[right], last, lambda character: self._parts(character, head))

    @staticmethod
    def _table(*, is_ok: bool, is_hard: bool, edge: str) -> np.ndarray:
        """int8 over code points."""
        value = (
            BROKEN
            if not is_ok or (not is_hard and (edge.isalnum() or edge in "'’_"))
            else CLEAN
            if is_hard
            else UNKNOWN
        )
        return np.full(0x110000, value, np.int8)

    @staticmethod
    def _look_up(table: np.ndarray, characters: np.ndarray, is_clean: Callable[[str], bool]) -> np.ndarray:
        found = table[characters]
        for point in np.unique(characters[(found == UNKNOWN) & (characters >= 0)]).tolist():
            character = chr(point)
            table[point] = CLEAN if not character.isspace() and is_clean(character) else BROKEN
        return (table[characters] == CLEAN) & (characters >= 0)

    def _parts(self, left: str, right: str) -> bool:
        """Is the joined text cut between the two, and both cut as they are alone."""
        return self._words(left + right) == self._words(left) + self._words(right)

    def _words(self, text: str) -> list[str]:
        if self.reference.normalizer is not None:
            text = self.reference.normalizer.normalize_str(text)
        if self.reference.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self.reference.pre_tokenizer.pre_tokenize_str(text)]

    # --------------------------------------------------------------------------------------------------- added tokens

    def _is_hard(self, number: int) -> bool:
        """Does this added token cut a text wherever it stands, and is what stands beside it encoded as it is alone."""
        if number not in self._hard:
            token = self._added.get(number)
            self._hard[number] = (
                token is not None
                and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
                and all(self._cuts(number, token.content, probe) for probe in PROBES)
            )
        return self._hard[number]

    def _cuts(self, number: int, token: str, probe: str) -> bool:
        alone = self._ids(probe)
        return self._ids(token + probe) == [number, *alone] and self._ids(probe + token) == [*alone, number]

    def _ids(self, text: str) -> list[int]:
        return self.reference.encode(text, add_special_tokens=False).ids

    def _tail(self, text: str) -> str:
        """What stands behind the last token that cuts."""
        ends = [end for _, end in self._cuts_in(text)]
        return text[ends[-1] :] if ends else text

    def _head(self, text: str) -> str:
        """What stands before the first token that cuts."""
        starts = [start for start, _ in self._cuts_in(text)]
        return text[: starts[0]] if starts else text

    def _cuts_in(self, text: str) -> list[tuple[int, int]]:
        found = self.reference.encode(text, add_special_tokens=False)
        return [
            (start, end)
            for number, (start, end) in zip(found.ids, found.offsets, strict=True)
            if self._is_hard(number) and text[start:end] == self._added[number].content
        ]

    def may_straddle(self, left: str, right: str) -> bool:
        """Could an added token begin before the seam and end behind it, where one side is known ("" is any text)."""
        for token in (token.content for token in self._added.values()):
            for cut in range(1, len(token)):
                before, after = token[:cut], token[cut:]
                fits_left = not left or left.endswith(before) or before.endswith(left)
                fits_right = not right or right.startswith(after) or after.startswith(right)
                if fits_left and fits_right and (left or right):
                    return True
        return False
