"""Puts the stored figures where the pages state them: `<!-- results/FILE.json KEY -->VALUE`, with as many digits as before."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"(<!-- (results/[\w.-]+\.json) ([^<>]+?) -->\**)([\d.,]*\d)(?![\d.,]*e)")


def main() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        fresh = MARK.sub(_with_stored, text)
        if fresh != text:
            page.write_text(fresh)
            print(page.relative_to(ROOT))


def _with_stored(mark: re.Match[str]) -> str:
    value = json.loads((ROOT / "benchmarks" / mark[2]).read_text())
    for part in mark[3].split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    digits = len(mark[4].partition(".")[2])
    return f"{mark[1]}{value:,.{digits}f}"


if __name__ == "__main__":
    main()
