"""Rows a second of the batch encoder alone: 60,000 short chats made by code (about 31 MB), one process, ids and spans in flat arrays.

Beside it: the same tokenizer bare on the rendered chats (no template, no spans, no flags), and both again with `tokenizers`
instead of the fast tokenizer, on a part of the rows. Medians of the repeats; the proof of the tokenizer and the
compiling of shapes are in `first_batch_s`.

    TUNESMITH_TEST_DATA=... python benchmarks/encode.py [--rows 60000] [--threads 1 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import store

BATCH = 8192  # as the stage encodes
PLAIN_ROWS = 6000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizers", nargs="+", default=["minimind"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="print, store nothing")
    asked = parser.parse_args()
    if asked.one:
        print("RESULT " + json.dumps(measure(asked.one[0], int(asked.one[1]), asked.rows, asked.repeats)))
        return
    found: dict[str, Any] = {}
    for name in asked.tokenizers:
        for threads in asked.threads:
            command = [sys.executable, __file__, "--one", name, str(threads), "--rows", str(asked.rows)]
            limits = {
                "RAYON_NUM_THREADS": str(threads),
                "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "true",
            }
            done = subprocess.run(
                [*command, "--repeats", str(asked.repeats)],
                env=os.environ | limits,
                capture_output=True,
                text=True,
                check=False,
            )
            told = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not told:
                raise SystemExit(done.stdout + done.stderr[-4000:])
            found[f"{name}, {threads} threads"] = json.loads(told[0].removeprefix("RESULT "))
            print(name, threads, json.dumps(found[f"{name}, {threads} threads"], indent=1))
    if not asked.dry:
        store("encode", {"rows": asked.rows, "repeats": asked.repeats, "found": found})


def measure(name: str, threads: int, rows: int, repeats: int) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa
    from transformers import AutoTokenizer

    from tunesmith.stages.prepare.encoding.encoder import Encoder, Turns
    from tunesmith.text import fast
    from tunesmith.text.example import ROLES
    from tunesmith.text.templates import CHATML, ChatTemplate
    from tunesmith.text.tokenizers import Tokenizer

    folder = Path(os.environ["TUNESMITH_TEST_DATA"]) / "data"
    hf = AutoTokenizer.from_pretrained(folder / "tokenizers" / name, local_files_only=True)
    tokenizer = Tokenizer(hf, ChatTemplate("chatml", CHATML, hf.bos_token or "", hf.eos_token or ""), frozenset())
    offsets, roles, contents = make_chats(folder, rows)
    texts = pa.array(contents)

    def batches(limit: int) -> list[Turns]:
        out = []
        for first in range(0, limit, BATCH):
            end = min(first + BATCH, limit)
            at, to = offsets[first], offsets[end]
            ends = np.array(offsets[first : end + 1], np.int64) - at
            out.append(Turns(ends, np.array(roles[at:to], np.uint8), texts.slice(at, to - at)))
        return out

    def timed(act: Callable[[], object]) -> float:
        start = time.perf_counter()
        act()
        return time.perf_counter() - start

    rendered = [
        "".join(
            f"<|im_start|>{ROLES[role]}\n{content}<|im_end|>\n"
            for role, content in zip(roles[at:to], contents[at:to], strict=True)
        )
        for at, to in itertools.pairwise(offsets)
    ]

    def both(encoder: Encoder, limit: int) -> dict[str, Any]:
        parts = batches(limit)
        first_s = timed(lambda: encoder.encode(parts[0]))
        raw = [fast.join(rendered[first : min(first + BATCH, limit)]) for first in range(0, limit, BATCH)]
        whole, bare = [], []
        for _ in range(repeats):
            bare.append(timed(lambda: [encoder._backend.encode(part) for part in raw]))
            whole.append(timed(lambda: [encoder.encode(part) for part in parts]))
        took, bare_took = statistics.median(whole), statistics.median(bare)
        return {
            "rows": limit,
            "rows_per_s": round(limit / took),
            "mb_per_s": round(sum(len(text.encode()) for text in contents[: offsets[limit]]) / took / 1e6, 1),
            "bare_rows_per_s": round(limit / bare_took),
            "first_batch_s": round(first_s, 3),
            "ways": dict(encoder.ways),
            "proof": encoder.proof.why if encoder.proof else "",
        }

    fast_figures = both(Encoder(tokenizer, "all"), rows)
    plain = Encoder(tokenizer, "all")
    plain._backend, plain.proof = fast.Plain(hf.backend_tokenizer), fast.Proof(False, "asked for")
    few = min(PLAIN_ROWS, rows)
    plain_figures = both(plain, few)
    threaded = [
        timed(lambda: hf.backend_tokenizer.encode_batch_fast(rendered[:few], add_special_tokens=False))
        for _ in range(repeats)
    ]
    plain_figures["encode_batch_fast_rows_per_s"] = round(few / statistics.median(threaded))
    return {
        "megabytes": round(sum(len(text.encode()) for text in contents) / 1e6, 1),
        "fast": fast_figures,
        "plain": plain_figures,
    }


def make_chats(folder: Path, rows: int) -> tuple[list[int], list[int], list[str]]:
    """(offsets, roles, contents): one or two exchanges cut from real texts, one word in forty made up."""
    draw = random.Random(5)
    lines = (folder / "pretrain" / "c4_demo.jsonl").read_text().splitlines()
    words = [word for line in lines for word in json.loads(line)["text"].split(" ")]
    offsets, roles, contents = [0], [], []

    def text(shortest: int, longest: int) -> str:
        count = draw.randint(shortest, longest)
        at = draw.randrange(len(words) - count)
        made = [f"{draw.choice(words)[:4]}{draw.choice(words)[-4:]}" for _ in range(count // 40 + 1)]
        return (" ".join([*words[at : at + count], *made])).strip() or "x"

    for _ in range(rows):
        if draw.random() < 0.3:
            roles.append(0)
            contents.append("You are a helpful assistant.")
        for _ in range(1 if draw.random() < 0.75 else 2):
            roles += [1, 2]
            contents += [text(4, 40), text(8, 80)]
        offsets.append(len(roles))
    return offsets, roles, contents


if __name__ == "__main__":
    main()
