"""Writes docs/errors/: one page per family of error codes, read from the places that raise them.

    python tools/error_pages.py           write the pages
    python tools/error_pages.py --check   fail when a page is stale

Each code stands beside what it says, what was expected and the next move, in the words the user sees; {...} stands for
a value of the moment.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^(RCP|DAT|TXT|MDL|TRN|EVL|EXP|SRV|PLN|RUN|TUN|CLI|TRK)-\d{3}$")
FAMILIES = {
    "RCP": "Recipe", "DAT": "Data", "TXT": "Text, formats, templates", "MDL": "Models", "TRN": "Training", "EVL": "Evaluation",
    "EXP": "Export", "SRV": "Serving", "PLN": "Planning", "RUN": "Runs, files, processes",
    "TUN": "Search", "CLI": "Command line", "TRK": "Trackers",
}  # fmt: skip


HAND_WRITTEN = ("RUN", "SRV")  # these pages say more than the code does; only their headings are checked


def text_of(node: ast.expr | None) -> str:
    """The text of an expression, with {name} where a value stands; empty where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{...}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return text_of(node.body) or text_of(node.orelse)
    return "{...}" if node is not None else ""


def calls(path: Path) -> list[tuple[str, str, str, str]]:
    """(code, what, expected, fix) of each call that carries a code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        place = next(
            (i for i, a in enumerate(node.args) if isinstance(a, ast.Constant) and CODE.match(str(a.value))), None
        )
        if place is None:
            continue
        rest = node.args[place + 1 :]
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if getattr(node.func, "id", "") == "Problem":
            rest = rest[1:]
        what = text_of(rest[0] if rest else named.get("what"))
        expected = text_of(rest[1] if len(rest) > 1 else named.get("expected"))
        fix = text_of(rest[2] if len(rest) > 2 else named.get("fix"))
        found.append((node.args[place].value, what, expected, fix))
    return found


def pages() -> dict[str, str]:
    """Family -> the page's text."""
    entries: dict[str, tuple[str, str, str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for code, *words in calls(path):
            entries.setdefault(code, tuple(words))
        for code in re.findall(r"[\"']((?:{})-\d{{3}})[\"']".format("|".join(FAMILIES)), path.read_text()):
            entries.setdefault(code, ("", "", ""))
    out = {}
    for family, title in FAMILIES.items():
        if family in HAND_WRITTEN:
            continue
        lines = [f"# {title} ({family})", "", "Written by `tools/error_pages.py` from the places that raise them.", ""]
        for code in sorted(entries):
            if code.startswith(family):
                what, expected, fix = entries[code]
                lines.append(f"## {code}")
                lines += ["", what or "See the message."]
                lines += ["", f"- expected: {expected}"] if expected else []
                lines += [f"- next move: {fix}"] if fix else []
                lines.append("")
        out[family] = "\n".join(lines)
    return out


def main() -> None:
    stale = []
    for family, text in pages().items():
        path = ROOT / "docs" / "errors" / f"{family}.md"
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run python tools/error_pages.py")


if __name__ == "__main__":
    main()
