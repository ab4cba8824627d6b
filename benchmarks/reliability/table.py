"""The table of promises in the README and docs, written from the stored figures between its two marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability import PROMISES

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "reliability.md")
BEGIN, END = "<!-- reliability: written by make reliability -->", "<!-- reliability: end -->"


def table(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per promise; figures carry the mark by which tests compare them with the stored ones."""
    beside = sorted({name for result in stored.values() for name in result.get("beside", {})})
    head = ["promise", "held", "tried", *beside]
    lines = [_row(head), _row(["---"] * len(head))]
    for name in PROMISES:
        if name not in stored:
            continue
        result = stored[name]
        figures = [
            f"<!-- results/reliability.json promises/{name}/{key} -->{result[key]:,}" for key in ("held", "tried")
        ]
        others = [result.get("beside", {}).get(peer) for peer in beside]
        told = [f"{other['held']:,} of {other['tried']:,}" if other else "" for other in others]
        lines.append(_row([result["promise"], *figures, *told]))
    return "\n".join(lines)


def write_tables(stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Into each page that has the marks."""
    for page in PAGES:
        text = page.read_text() if page.exists() else ""
        if BEGIN in text:
            before, _, rest = text.partition(BEGIN)
            after = rest.partition(END)[2]
            page.write_text(f"{before}{BEGIN}\n{table(stored)}\n{END}{after}")
            print(f"wrote the table of {page.relative_to(ROOT)}")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
