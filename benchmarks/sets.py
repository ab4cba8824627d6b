"""Time and memory of the set-wide rules: exact duplicates and leaks on many rows, near-duplicates on a tenth of them.

    python benchmarks/sets.py exact --rows 10000000
    python benchmarks/sets.py near --rows 1000000

Rows are made in parts, signed part by part and written as Arrow files, as preparation does it; the rules then read those
files by memory map. A tenth of the rows are twins of others: equal (exact), or with two of their words changed (near).
Memory is what the process holds besides files (RssAnon), sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from record import RESULTS, provenance, store

from tunesmith.recipe import parse_recipe
from tunesmith.stages.prepare.layout import KEY
from tunesmith.stages.prepare.sets.groups import Parts
from tunesmith.stages.prepare.sets.mixture import mix
from tunesmith.stages.prepare.sets.select import select
from tunesmith.stages.prepare.sets.signatures import boilerplate, signatures

PART = 100_000
VOCABULARY, LETTERS = 20_000, 6
ASKS = {
    "exact": ("deduplicate: exact, leaks: {near: null}", (8, 8)),
    "near": ("deduplicate: near, leaks: drop", (40, 60)),
}


class Memory:
    """The most that the process held outside of files, in GiB."""

    def __enter__(self) -> Memory:
        self.peak, self._over = 0.0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, held / 2**20)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watch.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(ASKS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(asked.kind, asked.rows, Path(folder))
    known: dict[str, Any] = {}
    path = RESULTS / "sets.json"
    if path.exists():
        known = json.loads(path.read_text())
        known.pop("provenance")
    measured = {name: provenance()[name] for name in ("date", "commit", "command")}
    store("sets", {**known, asked.kind: {**figures, **measured}})


def measure(kind: str, num_rows: int, folder: Path) -> dict[str, Any]:
    data, words = ASKS[kind]
    spec = parse_recipe(f"data: {{sources: [rows.jsonl], {data}}}\n")
    seconds: dict[str, float] = {}
    with Memory() as memory:
        start = time.perf_counter()
        common = boilerplate(
            (make_part(kind, words, first) for first in range(0, min(num_rows, PART), PART)), spec, PART
        )
        seconds["boilerplate"] = time.perf_counter() - start
        seconds["signatures"] = 0.0
        for first in range(0, num_rows, PART):
            table = make_part(kind, words, first)
            start = time.perf_counter()
            signed = signatures(table, spec, common)
            seconds["signatures"] += time.perf_counter() - start
            facts = table.select(["row", "source", "key", "prompt_key", "score", "gone"])
            write(folder / f"{first}.signatures.arrow", signed)
            write(folder / f"{first}.facts.arrow", facts)
            del table, signed, facts
        making = memory.peak
        memory.peak = 0.0
        facts = pa.concat_tables(list(reading(folder, "facts", num_rows)(None)))
        start = time.perf_counter()
        found = select(facts, spec, reading(folder, "signatures", num_rows))
        seconds["select"] = time.perf_counter() - start
        start = time.perf_counter()
        used = ~np.isin(facts.column("row").to_numpy(), found.verdicts.column("row").to_numpy())
        copies = mix(facts, found.splits, used, spec).copies
        seconds["mix"] = time.perf_counter() - start
    rules = found.verdicts.column("rule").value_counts().to_pylist()
    return {
        "rows": num_rows,
        "words_per_row": sum(words),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "rows_per_s": round(num_rows / sum(seconds.values())),
        "peak_anonymous_gib": {"signatures": round(making, 2), "select_and_mix": round(memory.peak, 2)},
        "signature_bytes_per_row": round(sum(p.stat().st_size for p in folder.glob("*.signatures.arrow")) / num_rows),
        "dropped": {rule["values"]: rule["counts"] for rule in rules},
        "used": int((copies > 0).sum()),
        "clusters": found.told["clusters"],
    }


def make_part(kind: str, words: tuple[int, int], first: int) -> pa.Table:
    """Rows of two turns; the last tenth are twins of the first tenth of the same part."""
    rng = np.random.default_rng(first)
    ids = np.minimum(rng.zipf(1.2, (PART, sum(words))), VOCABULARY) - 1
    ids[:, : sum(words) // 2] = rng.integers(0, VOCABULARY, (PART, sum(words) // 2))
    twins = PART // 10
    ids[-twins:] = ids[:twins]
    if kind == "near":
        for _ in range(2):
            ids[np.arange(PART - twins, PART), rng.integers(0, sum(words), twins)] = rng.integers(0, VOCABULARY, twins)
    letters = np.random.default_rng(1).integers(97, 123, (VOCABULARY, LETTERS), dtype=np.uint8)
    letters[:, -1] = 32
    data = letters[ids].reshape(-1)
    bounds = np.tile([0, words[0] * LETTERS], (PART, 1)) + np.arange(PART)[:, None] * sum(words) * LETTERS
    offsets = np.append(bounds.reshape(-1), len(data)).astype(np.int32)
    contents = pa.StringArray.from_buffers(2 * PART, pa.py_buffer(offsets), pa.py_buffer(data))
    roles = pa.array(np.tile(np.array([1, 2], np.int8), PART))
    turns = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * PART + 1, 2, dtype=np.int32)),
        pa.StructArray.from_arrays([roles, contents], ["role", "content"]),
    )
    return pa.table(
        {
            "row": np.arange(first, first + PART),
            "source": np.zeros(PART, np.int16),
            "key": keys(ids),
            "prompt_key": keys(ids[:, : words[0]]),
            "turns": turns,
            "extra": pa.nulls(PART, pa.binary()),
            "meta": pa.nulls(PART, pa.utf8()),
            "score": rng.random(PART),
            "gone": np.zeros(PART, bool),
        }
    )


def keys(ids: np.ndarray) -> pa.Array:
    """16 bytes of each row's words."""
    rng = np.random.default_rng(9)
    factors = rng.integers(0, 2**63, (2, ids.shape[1]), dtype=np.uint64) | np.uint64(1)
    halves = [((ids.astype(np.uint64) + np.uint64(1)) * factor).sum(axis=1, dtype=np.uint64) for factor in factors]
    held = np.ascontiguousarray(np.stack(halves, axis=1))
    return pa.FixedSizeBinaryArray.from_buffers(KEY, len(ids), [None, pa.py_buffer(held)])


def write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def reading(folder: Path, kind: str, num_rows: int) -> Parts:
    def parts(names: list[str] | None) -> Iterator[pa.Table]:
        for first in range(0, num_rows, PART):
            table = pa.ipc.open_file(pa.memory_map(str(folder / f"{first}.{kind}.arrow"))).read_all()
            yield table if names is None else table.select(names)

    return parts


if __name__ == "__main__":
    main()
