"""Memory of preparation on many rows -> results/prepare-memory.json.

`exact`: 10 M rows of about 100 bytes, filters, exact duplicates and exact leaks on, two held-out parts. `near`: 1 M chats of
about 540 bytes with near-duplicates and near leaks too. `peak_rss_gib` is memory outside of files (anonymous and shared
memory), summed over all processes at one moment and sampled ten times a second; mapped files are stated apart.

    python benchmarks/prepare_memory.py [--rows 10000000] [--near 1000000] [--tokenizer FOLDER] [--dry]

A run of one kind keeps the stored figures of the other: --near 0 or --rows 0 leaves that kind out. It takes about seven
times the input's size on the disk of TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from chats import write_chats, write_short_rows
from prepare import default_tokenizer, make_model, prepared
from record import RESULTS, store

FILTERS = {"length": {}, "control_characters": "drop", "residue": {}, "refusals": {}, "accept_drop_share": 1.0}
DATA: dict[str, dict[str, Any]] = {
    "exact": {"filters": FILTERS, "deduplicate": {"type": "exact"}, "leaks": {"type": "drop", "near": None}},
    "near": {"filters": FILTERS, "deduplicate": {"type": "near"}, "leaks": {"type": "drop", "near": 0.8}},
}
WRITERS = {"exact": write_short_rows, "near": write_chats}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows with exact duplicates; 0: none")
    parser.add_argument("--near", type=int, default=1_000_000, help="rows with near-duplicates; 0: none")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--dry", action="store_true", help="print, store nothing")
    asked = parser.parse_args()
    path = RESULTS / "prepare-memory.json"
    known = json.loads(path.read_text())["kinds"] if path.exists() and not asked.dry else {}
    tokenizer = asked.tokenizer or default_tokenizer()
    for kind, rows in (("exact", asked.rows), ("near", asked.near)):
        if rows:
            known[kind] = measure(kind, rows, tokenizer)
            print(kind, json.dumps(known[kind], indent=1), flush=True)
    if not asked.dry:
        headline = {key: known["exact"][key] for key in ("rows", "rows_per_s", "peak_rss_gib") if "exact" in known}
        store("prepare-memory", {**headline, "kinds": known, "settings": {"tokenizer": tokenizer.name, "data": DATA}})


def measure(kind: str, num_rows: int, tokenizer: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        size = WRITERS[kind](rows, num_rows)
        model = make_model(Path(scratch) / "model", tokenizer)
        found = prepared(Path(scratch) / kind, rows, model, DATA[kind])
    return {
        "rows": num_rows,
        "bytes": size,
        "wall_s": round(found["wall_s"], 1),
        "rows_per_s": round(num_rows / found["wall_s"], 1),
        "peak_rss_gib": round(found["peak_anonymous_gib"], 3),
        "peak_rss_with_files_gib": round(found["peak_rss_gib"], 3),
        "processes": found["processes"],
        "examples": found["examples"],
        "tokens": found["tokens"],
    }


if __name__ == "__main__":
    main()
