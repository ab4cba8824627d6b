"""Writes the table of docs/deepspeed.md from the one in the code. `--check` fails when the page is stale."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from tunesmith.stages.train.engines.deepspeed_config import ROWS, Row  # noqa: E402

PAGE = ROOT / "docs" / "deepspeed.md"
BEGIN, END = "<!-- written by tools/deepspeed_page.py -->", "<!-- end -->"


def line(row: Row) -> str:
    notes = [row.why]
    if row.key_of_recipe:
        notes.append(f"`{row.key_of_recipe}`")
    if row.act == "refused" and row.harmless:
        notes.append("nothing is asked by " + ", ".join(f"`{json.dumps(value)}`" for value in row.harmless))
    return f"| `{row.key}` | {row.act} | {'; '.join(notes)} |"


def page() -> str:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    table = ["| key | | |", "|---|---|---|", *map(line, ROWS)]
    return f"{before}{BEGIN}\n\n" + "\n".join(table) + f"\n\n{END}{after}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text() == page() else "stale: run python tools/deepspeed_page.py")
    PAGE.write_text(page())
