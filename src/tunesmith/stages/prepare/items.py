"""The used held-out rows: of chats the prompt that evaluation asks, and the answer it should get; of plain text none.

A prompt's ids are those that serving makes, `Tokenizer.encode_prompt`. Where a row was learned as usual they are the row's own
ids up to its last answer, which costs nothing: a few rows of each sequence of roles prove it, and a sequence that fails the
proof, or a row that is out of the ordinary, is encoded as a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import SPLITS
from tunesmith.stages.prepare.decide import Selection
from tunesmith.stages.prepare.encoding.tokens import PartTokens, Tokens
from tunesmith.stages.prepare.rows import Rows
from tunesmith.text.example import Example
from tunesmith.text.tokenizers import Tokenizer

PROVEN_BY = 4  # rows of each sequence of roles


def held_out_items(
    spec: Recipe, rows: Rows, tokens: Tokens, selection: Selection, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """The lines of items.jsonl, see runs/dataset.py."""
    chosen = np.flatnonzero(selection.accounts.left & (selection.splits > 0))
    prompts = _Prompts(tokenizer, learns_answers=spec.data.learn in ("all", "last"))
    number, part = -1, None
    for row, example in rows.examples(chosen):
        while number < 0 or row >= rows.parts[number]["base"] + rows.parts[number]["rows"]:
            number += 1
            part = None
        facts = rows.parts[number]
        if part is None:
            part = tokens.part(number)
            keys = rows.part(number, ("key",))["key"]
        split = SPLITS[selection.splits[row]]
        place = row - facts["base"]
        is_chat = example.text is None
        said = rows.splits[facts["source"]] == "test"
        yield {
            "row": row,
            "part": rows.source_name(facts) if said else split,
            "split": split,
            "key": keys[place].as_py().hex(),
            "messages": [message.to_json() for message in example.prompt] if is_chat else None,
            "expected": example.answer if is_chat else None,
            "prompt_ids": prompts.ids(example, part, place) if is_chat else None,
        }


class _Prompts:
    """Ids of prompts. learns_answers: whether the last span of a row is its last answer."""

    def __init__(self, tokenizer: Tokenizer, *, learns_answers: bool) -> None:
        self.tokenizer, self.learns_answers = tokenizer, learns_answers
        self._proven: dict[tuple[str, ...], int] = {}  # roles -> rows that agreed; -1 once one did not

    def ids(self, example: Example, part: PartTokens, place: int) -> list[int]:
        roles = tuple(message.role for message in example.messages)
        if not self._is_usual(example, part, place, roles):
            return self._encoded(example)
        first, end = part.offsets[place], part.offsets[place] + part.spans[part.span_offsets[place + 1] - 1, 0]
        cut = part.ids[first:end].tolist()
        agreed = self._proven.get(roles, 0)
        if agreed >= PROVEN_BY:
            return cut
        truth = self._encoded(example)
        self._proven[roles] = agreed + 1 if agreed >= 0 and cut == truth else -1
        return truth

    def _is_usual(self, example: Example, part: PartTokens, place: int, roles: tuple[str, ...]) -> bool:
        plain = not example.tools and not any(message.particulars() for message in example.messages)
        has_span = part.span_offsets[place + 1] > part.span_offsets[place]
        ends_with_answer = roles[-1:] == ("assistant",) and roles[-2:-1] != ("assistant",)
        usual = self.learns_answers and plain and has_span and ends_with_answer and not part.flags[place]
        return bool(usual) and self._proven.get(roles, 0) >= 0

    def _encoded(self, example: Example) -> list[int]:
        return self.tokenizer.encode_prompt(example.prompt, example.tools)
