"""What becomes of the rows of real data sets: `python benchmarks/ledger.py` -> results/ledger.json.

Every data file under TUNESMITH_TEST_DATA/data goes through prepare with cleaning, near-duplicates and leak checks on; bad rows
are set apart. Of each: rows read, used, dropped by rule, quarantined by code, and that read = used + dropped + quarantined
with every source position in the ledger once. A file of which nothing can be used says why.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from record import store

import tunesmith
from tunesmith.errors import TunesmithError
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.prepare.columns import propose_fields
from tunesmith.stages.prepare.reading.reader import Bad, read_rows

FOLDERS = ("chat", "exact", "instruct", "intent", "preference", "pretrain", "seq2seq")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".gz")


def main() -> None:
    logging.disable(logging.WARNING)
    shared = Path(os.environ["TUNESMITH_TEST_DATA"]) / "data"
    paths = [path for folder in FOLDERS for path in sorted((shared / folder).rglob("*")) if path.suffix in SUFFIXES]
    sets = {}
    for path in paths:
        name = path.relative_to(shared).as_posix()
        with tempfile.TemporaryDirectory() as folder:
            sets[name] = account(path, Path(folder))
        print(name, json.dumps(sets[name])[:200], flush=True)
    prepared = [found for found in sets.values() if "read" in found]
    store(
        "ledger",
        {
            "sets": sets,
            "files": len(sets),
            "prepared": len(prepared),
            "rows": sum(found["read"] for found in prepared),
            "identity_holds": all(found["identity_holds"] for found in prepared),
        },
    )


def account(path: Path, folder: Path) -> dict[str, Any]:
    source: dict[str, Any] = {"path": str(path), "split": "auto"}
    try:
        first = [row.value for row in islice(read_rows(path), 200) if not isinstance(row, Bad)]
    except TunesmithError as error:
        return {"refused": error.code, "why": error.headline.replace(str(path.parent), "")[:200]}
    fields = propose_fields(first)
    if fields:
        source["fields"] = fields
    recipe = {
        "model": {"template": "instruction"},
        "data": {
            "sources": [source],
            "on_bad_row": "quarantine",
            "max_bad_share": 1.0,
            "max_tokens": 4096,
            "deduplicate": "near",
            "filters": {
                "length": {"min_characters": 10, "max_characters": 40_000},
                "residue": {"action": "drop"},
                "refusals": {"action": "drop"},
                "repetition": {},
                "secrets": {"api_keys": "drop"},
                "pii": {"email": "redact", "card": "redact"},
                "accept_drop_share": 1.0,
            },
            "quality": "heuristics",
        },
    }
    if any(isinstance(row, dict) and {"chosen", "rejected"} <= set(row) for row in first):
        source["format"] = "chosen"
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    try:
        outcome = tunesmith.prepare(folder / "recipe.yaml", workspace=folder / "work", overrides=["track.to=[]"])
    except TunesmithError as error:
        return {"refused": error.code, "why": error.headline.replace(str(path.parent), "")[:200]}
    dataset = Dataset(outcome.run.outputs("prepare")["dataset"].path)
    entries = list(dataset.ledger())
    statistics = dataset.statistics
    by_status = Counter(entry["status"] for entry in entries)
    places = {(entry["file"], entry["position"]) for entry in entries}
    return {
        "read": statistics["read"],
        "used": by_status["used"],
        "dropped": dict(Counter(entry["rule"] for entry in entries if entry["status"] == "dropped")),
        "quarantined": dict(Counter(entry["rule"] for entry in entries if entry["status"] == "quarantined")),
        "formats": statistics["formats"],
        "joined_differs": statistics["flags"]["joined_differs"],
        "control_in_text": statistics["flags"]["control_in_text"],
        "identity_holds": statistics["read"] == by_status.total() == len(places)
        and by_status["used"] == statistics["used"]
        and by_status["dropped"] == statistics["dropped"]
        and by_status["quarantined"] == statistics["quarantined"]
        and sum(entry["copies"] for entry in entries) == dataset.num_examples,
    }


if __name__ == "__main__":
    main()
