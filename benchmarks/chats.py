"""Short chats made by code, the same for a seed: one to three exchanges, some with a system turn, about 520 bytes a row as JSON.

Words are drawn by Zipf's law from common English words and a vocabulary of made-up ones, with numbers, punctuation and a
few words in other scripts, so that tokenizers and hashes of duplicates meet new text in every row. Some rows are copies
of an earlier one, some differ from an earlier one by a word, and a few hold an e-mail address or a greeting that asks
for nothing, so that cleaning has something to find.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

BLOCK = 10_000  # rows drawn together; a copy is of the same block
COPIES, LOOKALIKES, ADDRESSES, SYSTEMS = 0.02, 0.02, 0.005, 0.2
EXCHANGES = (0.55, 0.3, 0.15)  # share of chats with one, two and three
COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "for",
    "was",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
    "people",
    "my",
    "made",
    "over",
    "did",
    "down",
    "only",
    "way",
    "find",
    "use",
    "may",
    "water",
    "long",
    "little",
    "very",
    "after",
    "words",
    "called",
    "just",
    "where",
    "most",
    "know",
    "get",
    "through",
    "back",
    "much",
    "before",
    "go",
    "good",
    "new",
    "write",
    "our",
    "used",
    "me",
    "man",
    "too",
    "any",
    "day",
    "same",
    "right",
    "look",
    "think",
    "also",
    "around",
    "another",
    "came",
    "come",
    "work",
    "three",
    "word",
    "must",
    "because",
    "does",
    "part",
    "even",
    "place",
    "well",
    "such",
    "here",
    "take",
    "why",
    "help",
    "put",
    "different",
    "away",
    "again",
    "off",
    "went",
    "old",
    "number",
    "great",
    "tell",
    "men",
    "say",
    "small",
    "every",
    "found",
    "still",
    "between",
    "name",
    "should",
    "home",
    "big",
    "give",
    "air",
    "line",
    "set",
    "own",
    "under",
    "read",
    "last",
    "never",
    "us",
    "left",
    "end",
    "along",
    "while",
    "might",
    "next",
    "sound",
    "below",
    "saw",
    "something",
    "thought",
    "both",
    "few",
    "those",
    "always",
    "looked",
    "show",
    "large",
    "often",
    "together",
    "asked",
    "house",
    "world",
    "going",
    "want",
    "school",
    "important",
    "until",
    "form",
    "food",
    "keep",
    "children",
    "feet",
    "land",
]
OTHER = [
    "größer",
    "façade",
    "naïve",
    "señor",
    "über",
    "данные",
    "модель",
    "слово",
    "пример",
    "学习",
    "数据",
    "模型",
    "こんにちは",
    "नमस्ते",
    "αριθμός",
    "שלום",
    "مرحبا",
    "한국어",
    "ăn",
    "đường",
]
MADE_UP = 30_000
STARTS, MIDDLES, ENDS = (
    [
        "b",
        "c",
        "d",
        "f",
        "g",
        "h",
        "j",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "v",
        "w",
        "z",
        "br",
        "ch",
        "cl",
        "dr",
        "fl",
        "gr",
        "pl",
        "pr",
        "sh",
        "sl",
        "sp",
        "st",
        "str",
        "th",
        "tr",
    ],
    ["a", "e", "i", "o", "u", "ai", "ea", "ee", "io", "ou"],
    ["n", "r", "s", "t", "l", "m", "d", "k", "st", "nt", "ng", "ck", "ll", "ss", "tion", "er", "ing", "ly", "al"],
)


@cache
def vocabulary() -> list[str]:
    """Words from the most to the least frequent; the same in every process."""
    random = np.random.Generator(np.random.PCG64(1))
    made = set(COMMON)
    words = list(COMMON)
    while len(words) < len(COMMON) + MADE_UP:
        parts = [
            STARTS[random.integers(len(STARTS))] + MIDDLES[random.integers(len(MIDDLES))]
            for _ in range(random.choice(3, p=(0.35, 0.45, 0.2)) + 1)
        ]
        word = "".join(parts) + ENDS[random.integers(len(ENDS))]
        if word not in made:
            made.add(word)
            words.append(word)
    words[len(COMMON) :] = sorted(words[len(COMMON) :], key=len)  # as in languages, frequent words are short
    for number, word in enumerate(OTHER):
        words.insert(len(COMMON) + 37 * (number + 1), word)
    return words


def write_chats(path: Path, num_rows: int, seed: int = 0) -> int:
    """A JSONL file of {"messages": [{"role", "content"}, ...]}; returns its bytes."""
    with path.open("wb") as file:
        for chat in chats(num_rows, seed):
            file.write(json.dumps({"messages": chat}, ensure_ascii=False).encode() + b"\n")
        return file.tell()


def chats(num_rows: int, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """The messages of each row, in order. A longer set begins with the rows of a shorter one of the same seed."""
    words = np.array(vocabulary(), dtype=object)
    rarity = np.cumsum(1.0 / (np.arange(len(words)) + 2.7))
    for first in range(0, num_rows, BLOCK):
        yield from islice(_block(words, rarity / rarity[-1], seed, first // BLOCK), num_rows - first)


def _block(words: np.ndarray, rarity: np.ndarray, seed: int, number: int) -> Iterator[list[dict[str, str]]]:
    random = np.random.Generator(np.random.PCG64([seed, number]))
    kinds = random.random(BLOCK)
    exchanges = random.choice(len(EXCHANGES), BLOCK, p=EXCHANGES) + 1
    has_system = random.random(BLOCK) < SYSTEMS
    originals = random.integers(0, BLOCK, BLOCK)
    told: list[list[dict[str, str]]] = []
    texts = _Texts(words, rarity, random)
    for place in range(BLOCK):
        kind = kinds[place]
        if kind < COPIES + LOOKALIKES and place:
            chat = [dict(message) for message in told[originals[place] % place]]
            if kind >= COPIES:
                chat[-1]["content"] += f" {texts.take(1)}."
        else:
            chat = [{"role": "system", "content": texts.take(12)}] if has_system[place] else []
            for _ in range(exchanges[place]):
                chat.append({"role": "user", "content": texts.text(4, 22, "?")})
                chat.append({"role": "assistant", "content": texts.text(12, 54, ".")})
            if kind > 1 - ADDRESSES:
                chat[-2]["content"] += f" Write to {texts.take(1)}.{place}@example.org."
        told.append(chat)
        yield chat


class _Texts:
    """Texts of a drawn number of words; words are drawn many at a time."""

    def __init__(self, words: np.ndarray, rarity: np.ndarray, random: np.random.Generator) -> None:
        self._words, self._rarity, self._random = words, rarity, random
        self._drawn: list[str] = []
        self._place = 0

    def take(self, count: int) -> str:
        if self._place + count > len(self._drawn):
            picked = np.searchsorted(self._rarity, self._random.random(200_000), side="right")
            self._drawn, self._place = self._words[picked].tolist(), 0
        self._place += count
        return " ".join(self._drawn[self._place - count : self._place])

    def text(self, fewest: int, most: int, ending: str) -> str:
        """Sentences of 4 to 14 words, one in eight with a number."""
        sentences, left = [], int(self._random.integers(fewest, most))
        while left > 0:
            size = min(left, int(self._random.integers(4, 15)))
            left -= size
            sentence = self.take(size)
            if self._random.random() < 0.125:
                sentence += f" {int(self._random.integers(0, 10_000))}"
            sentences.append(sentence[0].upper() + sentence[1:])
        return ". ".join(sentences) + ending


def write_short_rows(path: Path, num_rows: int, seed: int = 0) -> int:
    """About 100 bytes a row, for counting memory: {"prompt", "completion"}; a tenth are earlier rows again. Returns the bytes."""
    words = np.array(vocabulary(), dtype=object)  # letters alone: nothing to escape in JSON
    random = np.random.Generator(np.random.PCG64([seed, num_rows]))
    with path.open("wb") as file:
        for first in range(0, num_rows, BLOCK):
            block = words[random.integers(0, len(words), (BLOCK, 9))]
            block[9::10] = block[2::10]
            lines = [
                f'{{"prompt": "{" ".join(row[:4])}?", "completion": "{" ".join(row[4:])}."}}\n'
                for row in block[: num_rows - first].tolist()
            ]
            file.write("".join(lines).encode())
        return file.tell()
