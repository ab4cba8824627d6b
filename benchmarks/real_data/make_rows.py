"""SNIPS and banking77 as JSONL for the recipes beside this file: `python make_rows.py INTENT_FOLDER OUT_FOLDER`.

An explicit step, because neither set comes in a format that names prompt and answer: SNIPS keeps each sentence as spans in one JSON object
per intent, banking77 is a CSV of text and category. Each row becomes {"prompt": "<text> =>", "completion": " <label>"}.

Nothing is repaired here. PlayMusic holds bytes that are not UTF-8 (a surrogate pair written as CESU-8): they are copied as they are,
so that the row arrives broken at tunesmith's reader, which has to answer it with line and column and set it apart.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

NUM_TEST_ROWS = 400
SAMPLE_SEED = 77  # which of the unseen rows are asked: the same for every run
SETS = ("snips", "banking77")

Row = tuple[str, str]  # text, label


def write_sets(intent: Path, out: Path) -> None:
    """`<set>_train.jsonl` and `<set>_test.jsonl` of both sets in `out`. intent: the folder with snips/ and banking77/."""
    out.mkdir(parents=True, exist_ok=True)
    for name, train, test in (
        ("snips", snips(intent / "snips", "train_*_full.json.gz"), snips(intent / "snips", "validate_*.json")),
        ("banking77", banking77(intent / "banking77/train.csv"), banking77(intent / "banking77/test_public.csv")),
    ):
        known = list(train)
        for part, rows in (("train", known), ("test", unseen(test, known))):
            (out / f"{name}_{part}.jsonl").write_bytes(b"".join(map(line, rows)))


def unseen(rows: Iterable[Row], known: Iterable[Row]) -> list[Row]:
    """NUM_TEST_ROWS of the held-out rows, chosen by SAMPLE_SEED: each text once, and none that training holds."""
    seen = {_plain(text) for text, _ in known}
    distinct = {_plain(text): (text, label) for text, label in rows if _plain(text) not in seen}
    return random.Random(SAMPLE_SEED).sample(list(distinct.values()), NUM_TEST_ROWS)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def snips(folder: Path, pattern: str) -> Iterable[Row]:
    """(sentence, intent) of all files of a part; bytes that are not UTF-8 are carried as surrogate escapes."""
    for path in sorted(folder.glob(pattern)):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        ((intent, examples),) = json.loads(raw.decode("utf-8", "surrogateescape")).items()
        for example in examples:
            yield "".join(span["text"] for span in example["data"]).strip(), intent


def banking77(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield " ".join(row["text"].split()), row["category"]


def line(row: Row) -> bytes:
    """One row of JSONL; escaped bytes come out as the bytes they were."""
    text, label = row
    content = {"prompt": f"{text} =>", "completion": f" {label}"}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


if __name__ == "__main__":
    write_sets(Path(sys.argv[1]), Path(sys.argv[2]))
