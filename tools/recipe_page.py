"""Writes what is generated from the tree of recipe keys: docs/recipe.md, and the JSON schema that the package ships.

python tools/recipe_page.py           write both
python tools/recipe_page.py --check   fail when one is stale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from tunesmith.recipe.keys import all_keys  # noqa: E402
from tunesmith.recipe.schema import FILE, schema  # noqa: E402

HEAD = """\
# Every key of the recipe

Written by `tools/recipe_page.py`. `tunesmith explain KEY RECIPE` says where a value came from; `tunesmith explain --schema`
prints the JSON schema by which an editor completes keys and marks mistakes (`tunesmith init` names it in the recipe's first line).

A section that has a `type` may be written as that word alone, `adapter: full`; sources may be a path, or a list of paths."""


def page() -> str:
    lines = [HEAD]
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
    written = {
        ROOT / "docs" / "recipe.md": page(),
        FILE: json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    if "--check" in sys.argv:
        stale = [path.name for path, text in written.items() if not path.exists() or path.read_text() != text]
        sys.exit(f"stale: {', '.join(stale)}; run python tools/recipe_page.py" if stale else 0)
    for path, text in written.items():
        path.write_text(text)
