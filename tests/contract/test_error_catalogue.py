"""Every error code is raised at one place and explained on one page; every explained code is raised."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"""["']((?:RCP|DAT|TXT|MDL|TRN|EVL|EXP|SRV|PLN|RUN|CLI)-\d{3})["']""")


def codes_in_source() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (ROOT / "src").rglob("*.py"):
        found.update(set(CODE.findall(path.read_text())))
    return found


def codes_in_docs() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (ROOT / "docs" / "errors").glob("*.md"):
        found.update(re.findall(r"^## ([A-Z]{3}-\d{3})\b", path.read_text(), re.MULTILINE))
    return found


def test_every_code_in_the_source_has_a_page() -> None:
    missing = sorted(set(codes_in_source()) - set(codes_in_docs()))
    assert not missing, f"codes without a heading in docs/errors/: {missing}"


def test_every_explained_code_exists() -> None:
    stale = sorted(set(codes_in_docs()) - set(codes_in_source()))
    assert not stale, f"headings in docs/errors/ for codes nobody raises: {stale}"


def test_a_code_belongs_to_one_file_and_has_one_heading() -> None:
    assert codes_in_source(), "no code found at all: the pattern is wrong"
    shared = sorted(code for code, count in codes_in_source().items() if count > 1)
    doubled = sorted(code for code, count in codes_in_docs().items() if count > 1)
    assert not shared, f"codes used in more than one file: {shared}"
    assert not doubled, f"codes with more than one heading: {doubled}"
