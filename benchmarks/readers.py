"""Rows a second from a file's bytes to columns with their keys, per kind of file, on one core; process start apart.

python benchmarks/readers.py              into results/readers.json
python benchmarks/readers.py --rows 20000 --no-store
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from fuzz import zst

from tunesmith.stages.prepare.reading.reader import Bad, read_rows
from tunesmith.text.formats import to_columns
from tunesmith.text.keys import content_key, prompt_key

WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
]
REPEATS = 3


def files(count: int) -> dict[str, tuple[str, bytes]]:
    """Kind -> (file name, content): short chats of 40 and 60 words."""
    rng = random.Random(5)

    def words(number: int) -> str:
        return " ".join(rng.choices(WORDS, k=number)).capitalize() + "."

    said = [(words(40), words(60)) for _ in range(count)]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    turns = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in said]
    messages = lines([{"messages": chat} for chat in chats])
    return {
        "messages": ("a.jsonl", messages),
        "sharegpt": ("a.jsonl", lines(turns)),
        "alpaca": ("a.jsonl", lines([{"instruction": q, "input": "", "output": a} for q, a in said])),
        "prompt_completion": ("a.jsonl", lines([{"prompt": q, "completion": a} for q, a in said])),
        "six turns": ("a.jsonl", lines([{"id": n, "messages": chat * 3} for n, chat in enumerate(chats)])),
        "preference": ("a.jsonl", lines([{"prompt": q, "chosen": a, "rejected": q} for q, a in said])),
        "weights by turn": (
            "a.jsonl",
            lines([{"messages": [{**turn, "weight": 1} for turn in chat]} for chat in chats]),
        ),
        "json array": ("a.json", orjson.dumps([{"messages": chat} for chat in chats])),
        "csv": ("a.csv", ("prompt,completion\n" + "".join(f'"{q}","{a}"\n' for q, a in said)).encode()),
        "txt": ("a.txt", "".join(f"{q} {a}\n" for q, a in said).encode()),
        "jsonl.gz": ("a.jsonl.gz", gzip.compress(messages, 6)),
        "jsonl.zst": ("a.jsonl.zst", zst(messages)),
        "parquet": ("a.parquet", columnar([{"messages": chat} for chat in chats], "parquet")),
        "arrow": ("a.arrow", columnar([{"messages": chat} for chat in chats], "arrow")),
    }


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def columnar(rows: list[dict[str, Any]], kind: str) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet

    out = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, out)
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=10_000)
    return out.getvalue()


def timed(path: Path) -> tuple[int, float, float]:
    """(rows, CPU seconds of reading alone, of reading and converting)."""
    begin = time.process_time()
    for _ in read_rows(path):
        pass
    read = time.process_time() - begin
    begin, count = time.process_time(), 0
    for row in read_rows(path):
        if type(row) is Bad:
            raise SystemExit(row)
        _, roles, contents, extra, _ = to_columns(row.value)
        content_key(roles, contents, extra)
        prompt_key(roles, contents, extra)
        count += 1
    return count, read, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--no-store", action="store_true")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, (name, content) in files(arguments.rows).items():
            path = Path(folder) / name
            path.write_bytes(content)
            gc.collect()
            gc.disable()  # as the workers of the preparation have it
            runs = [timed(path) for _ in range(REPEATS)]
            gc.enable()
            rows = runs[0][0]
            read, whole = min(run[1] for run in runs), min(run[2] for run in runs)
            figures[kind] = {
                "rows": rows,
                "mb": round(len(content) / 1e6, 1),
                "read_rows_per_s": round(rows / read),
                "rows_per_s": round(rows / whole),
            }
            print(kind, figures[kind])
    if not arguments.no_store:
        from record import store

        store("readers", {"unit": "rows per second of CPU time, one core", "kinds": figures})


if __name__ == "__main__":
    main()
