"""Writes docs/recipe.md: every key of the recipe, from the tree itself. `--check` fails when the page is stale."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from tunesmith.recipe.keys import all_keys  # noqa: E402


def page() -> str:
    lines = [
        "# Every key of the recipe",
        "",
        "Written by `tools/recipe_page.py`. `tunesmith explain KEY RECIPE` says where a value came from.",
    ]
    section = None
    for key in all_keys().values():
        if key.path.partition(".")[0] != section:
            section = key.path.partition(".")[0]
            lines += ["", f"## {section}", "", "| key | default | what it is |", "|---|---|---|"]
        default = json.dumps(key.default, default=lambda value: value.model_dump())
        expected = key.expected.replace("|", "or")
        lines.append(f"| `{key.path}` | `{default}` | {key.doc} ({expected}{', ' + key.unit if key.unit else ''}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = ROOT / "docs" / "recipe.md"
    if "--check" in sys.argv:
        sys.exit(0 if path.exists() and path.read_text() == page() else "stale: run python tools/recipe_page.py")
    path.write_text(page())
