"""What the report shows of cleaning: counts by rule, histograms, samples. Plain JSON, made per part and added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SAMPLES = 3
SHARES = [round(0.05 * step, 2) for step in range(21)]
COUNTS = [0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
CHARACTERS = [0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000]
# Edges are fixed, so that histograms of parts can be added. What lies beyond the last edge counts in the last bin.
EDGES: dict[str, list[float]] = {
    "characters": CHARACTERS,
    "control_characters": COUNTS,
    "language_probability": SHARES,
    "repeated_ngrams": SHARES,
    "repeated_lines": SHARES,
    "longest_run": COUNTS,
    "secrets": COUNTS,
    "personal": COUNTS,
    "quality": SHARES,
    "perplexity": [1, 1.5, 2, 3, 5, 8, 12, 20, 30, 50, 100, 200, 500, 1000, 10_000, 100_000],
    "difficulty": [0, *[round(0.1 * step, 1) for step in range(1, 13)], 1.5, 2, 5],
}


def histogram(name: str, values: np.ndarray) -> dict[str, Any]:
    """{edges, counts, missing}; counts[n] lie in [edges[n], edges[n + 1])."""
    edges = EDGES[name]
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    bins = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    return {"edges": edges, "counts": counts.tolist(), "missing": len(values) - len(known)}


def facts_of(
    measured: pa.Table,
    verdicts: pa.Table,
    flags: pa.Table,
    filters: dict[str, dict[str, Any]],
    odd: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Of one part. filters: name -> {seen, dropped, first: [[row, value], ...]}. odd: kind of character -> places of rows.

    Returns {rows, filters, rules: {rule: {dropped, flagged, redacted, samples}}, languages, histograms, odd: {kind: {rows, samples}}}.
    """
    rules: dict[str, dict[str, Any]] = {}

    def note(kind: str, table: pa.Table) -> None:
        names, rows = table.column("rule").to_pylist(), table.column("row").to_pylist()
        for name, row in sorted(set(zip(names, rows, strict=True)), key=lambda pair: pair[1]):
            entry = rules.setdefault(name, {"dropped": 0, "flagged": 0, "redacted": 0, "samples": []})
            entry[kind] += 1
            entry["samples"] = sorted({*entry["samples"], row})[:SAMPLES]

    note("dropped", verdicts)
    done = flags.column("action").to_numpy(zero_copy_only=False) if flags.num_rows else np.zeros(0, object)
    for kind, action in (("flagged", "flag"), ("redacted", "redact")):
        note(kind, flags.filter(pa.array(done == action, pa.bool_())))
    languages = {}
    if "language" in measured.column_names:
        told = measured.column("language").fill_null("undecided").value_counts().to_pylist()
        languages = {entry["values"]: entry["counts"] for entry in told}
    histograms = {
        name: histogram(name, measured.column(name).to_numpy(zero_copy_only=False))
        for name in measured.column_names
        if name in EDGES
    }
    return {
        "rows": measured.num_rows,
        "filters": filters,
        "rules": rules,
        "languages": languages,
        "histograms": histograms,
        "odd": {
            kind: {"rows": len(places), "samples": measured["row"].take(pa.array(places[:SAMPLES])).to_pylist()}
            for kind, places in odd.items()
        },
    }


def merge_facts(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The facts of several parts together, which may come in any order."""
    out: dict[str, Any] = {"rows": 0, "filters": {}, "rules": {}, "languages": {}, "histograms": {}, "odd": {}}
    for part in parts:
        out["rows"] += part["rows"]
        for name, told in part["filters"].items():
            kept = out["filters"].setdefault(name, {"seen": 0, "dropped": 0, "first": []})
            kept["seen"] += told["seen"]
            kept["dropped"] += told["dropped"]
            kept["first"] = sorted([*kept["first"], *told["first"]], key=lambda pair: pair[0])[:FIRST]
        for name, told in part["rules"].items():
            kept = out["rules"].setdefault(name, {"dropped": 0, "flagged": 0, "redacted": 0, "samples": []})
            for kind in ("dropped", "flagged", "redacted"):
                kept[kind] += told[kind]
            kept["samples"] = sorted({*kept["samples"], *told["samples"]})[:SAMPLES]
        for kind, told in part["odd"].items():
            kept = out["odd"].setdefault(kind, {"rows": 0, "samples": []})
            kept["rows"] += told["rows"]
            kept["samples"] = sorted([*kept["samples"], *told["samples"]])[:SAMPLES]
        for name, count in part["languages"].items():
            out["languages"][name] = out["languages"].get(name, 0) + count
        for name, told in part["histograms"].items():
            kept = out["histograms"].setdefault(name, {**told, "counts": [0] * len(told["counts"]), "missing": 0})
            kept["counts"] = [a + b for a, b in zip(kept["counts"], told["counts"], strict=True)]
            kept["missing"] += told["missing"]
    return out


def redactions(flags: pa.Table) -> dict[int, str]:
    """Row -> what was replaced in it, such as "card, email x 2", for the ledger's lines of rows that are used all the same.

    flags: judge.FLAGS.
    """
    found: dict[int, list[str]] = {}
    for flag in flags.filter(pc.equal(flags["action"], "redact")).to_pylist():
        times = f" x {flag['count']}" if flag["count"] > 1 else ""
        found.setdefault(flag["row"], []).append(flag["rule"] + times)
    return {row: ", ".join(sorted(rules)) for row, rules in sorted(found.items())}


FIRST = 5
"""Rows shown where a filter's default asks."""
