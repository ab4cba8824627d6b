"""How many planted near-duplicates are found at which similarity, and how fast signatures are made.

    python benchmarks/near_duplicates.py [--pairs 300]

Each base text gets one twin with so many words changed, at random places, that their Jaccard similarity (runs of five words)
comes near a wished one; the true similarity is then counted by the definition. Recall at a similarity: of the pairs there, how
many are found. Precision: of the pairs found, how many truly reach the threshold. Texts are of words drawn by rank as in
speech, so that unrelated texts share some runs. Daft's MinHash of the same texts is timed beside ours.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from record import store

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from columns import chat, jaccard, part, reading, sign

from tunesmith.recipe import parse_recipe
from tunesmith.stages.prepare.sets.duplicates import exact_twins
from tunesmith.stages.prepare.sets.groups import alike
from tunesmith.stages.prepare.sets.signatures import PERMUTATIONS, Views, signatures

LENGTHS = {"short": 25, "medium": 120, "long": 1500}  # words of a text
WISHED = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
THRESHOLDS = (0.6, 0.8, 0.9)
VOCABULARY = 30_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=300, help="of each similarity and length")
    pairs = parser.parse_args().pairs
    results = [measure(name, words, pairs) for name, words in LENGTHS.items()]
    store("near-duplicates", {"quality": results, "speed": speed()})


def measure(name: str, words: int, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(11)
    told = [twins(rng, words, wished) for wished in WISHED for _ in range(count)]
    rows = [chat(text, "yes") for pair in told for text in pair]
    true = np.array([jaccard(*pair, 5) for pair in told])
    tables = [part(rows[at : at + 2000], at) for at in range(0, len(rows), 2000)]
    out: dict[str, Any] = {"texts": name, "words": words, "rows": len(rows), "thresholds": {}}
    for threshold in THRESHOLDS:
        spec = parse_recipe(f"data: {{sources: [rows.jsonl], leaks: {{near: {threshold}}}}}\n")
        (view,) = Views.of(spec).near
        found = alike(reading(sign(tables, spec)), view, np.ones(len(rows), bool))
        planted = (found.right == found.left + 1) & (found.left % 2 == 0)
        hit = np.zeros(len(told), bool)
        hit[found.left[planted] // 2] = True
        others = int((~planted).sum())
        reaches = true >= threshold
        out["thresholds"][str(threshold)] = {
            "pairs_at_or_above": int(reaches.sum()),
            "recall": round(float(hit[reaches].mean()), 4),
            "precision": round(float((hit & reaches).sum() / max(hit.sum() + others, 1)), 4),
            "found_below": int((hit & ~reaches).sum()),
            "lowest_true_similarity_found": round(float(true[hit].min()), 3),
            "unplanted_pairs": others,
            "by_similarity": {
                f"{low / 20:.2f}": {"pairs": int(here.sum()), "found": round(float(hit[here].mean()), 3)}
                for low in range(8, 20)
                if (here := np.floor(true * 20 + 1e-9) == low).any()
            },
        }
    return out


def twins(rng: np.random.Generator, words: int, wished: float) -> tuple[str, str]:
    """Two texts of so many words, about as alike as wished."""
    text = speech(rng, words)
    runs = words - 4
    # c runs of n differ: (n - c) / (n + c) = wished; a changed word costs up to five.
    changes = max(1, round(runs * (1 - wished) / (1 + wished) / 5))
    other = list(text)
    for place in rng.choice(words, changes, replace=False):
        other[place] = f"changed{rng.integers(10**9)}"
    return " ".join(text), " ".join(other)


def speech(rng: np.random.Generator, words: int) -> list[str]:
    ranks = np.minimum(rng.zipf(1.3, words), VOCABULARY)
    return [f"w{rank}" for rank in ranks]


def speed(rows: int = 20_000) -> dict[str, Any]:
    """Rows a second on one core; words a row as in a short chat."""
    rng = np.random.default_rng(2)
    chats = [chat(" ".join(speech(rng, 40)), " ".join(speech(rng, 60))) for _ in range(rows)]
    table = part(chats)
    out: dict[str, Any] = {"rows": rows, "permutations": PERMUTATIONS}
    for name, data in {
        "exact": "leaks: keep",
        "exact_and_leaks": "leaks: drop",
        "near_and_leaks": "leaks: drop, deduplicate: near",
    }.items():
        spec = parse_recipe(f"data: {{sources: [rows.jsonl], {data}}}\n")
        out[f"{name}_rows_per_s"] = round(rows / best(lambda spec=spec: signatures(table, spec)))
    texts = daft.from_arrow(pa.table({"text": [f"{c['turns'][0][1]} {c['turns'][1][1]}" for c in chats]})).collect()
    asked = daft.col("text").minhash(num_hashes=PERMUTATIONS, ngram_size=5, hash_function="xxhash")
    out["daft_minhash_rows_per_s"] = round(rows / best(lambda: texts.select(asked).collect()))
    return {**out, **exact_speed(rows=1_000_000)}


def exact_speed(rows: int) -> dict[str, Any]:
    """Exact twins among so many keys, a tenth of them twice: sorted columns, and the same by Daft's groups and joins."""
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, 2**63, rows).astype(np.uint64) for _ in range(2))
    first[-rows // 10 :], second[-rows // 10 :] = first[: rows // 10], second[: rows // 10]
    scores, splits, every = rng.random(rows), np.zeros(rows, np.int8), np.ones(rows, bool)
    ours = best(lambda: exact_twins(every, (first, second), splits, scores), 2)
    frame = daft.from_pydict({"row": np.arange(rows), "group": first, "score": scores}).collect()

    def by_daft() -> int:
        top = frame.groupby("group").agg(daft.col("score").max().alias("best"))
        kept = frame.join(top, on="group").where(daft.col("score") == daft.col("best"))
        kept = kept.groupby("group").agg(daft.col("row").min().alias("kept"))
        gone = frame.join(kept, on="group").where(daft.col("row") != daft.col("kept"))
        return len(gone.select("row", "kept").to_arrow())

    assert by_daft() == rows // 10 == len(exact_twins(every, (first, second), splits, scores).gone)
    return {
        "exact_twins_of": rows,
        "exact_twins_rows_per_s": round(rows / ours),
        "daft_exact_twins_rows_per_s": round(rows / best(by_daft, 2)),
    }


def best(work: Any, times: int = 3) -> float:
    return min(_timed(work) for _ in range(times))


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
