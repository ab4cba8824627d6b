"""Every error code belongs to one file, and the pages that explain them are written from the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"""["']((?:RCP|DAT|TXT|MDL|TRN|EVL|EXP|SRV|PLN|RUN|TUN|CLI|TRK)-\d{3})["']""")


def codes_in_source() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (ROOT / "src").rglob("*.py"):
        found.update(set(CODE.findall(path.read_text())))
    return found


def test_the_pages_are_as_the_code_would_write_them() -> None:
    done = subprocess.run(
        [sys.executable, "tools/error_pages.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_code_belongs_to_one_file() -> None:
    assert len(codes_in_source()) > 50, "hardly any code found: the pattern is wrong"
    shared = sorted(code for code, count in codes_in_source().items() if count > 1)
    assert not shared, f"codes used in more than one file: {shared}"


def test_every_code_has_a_heading() -> None:
    headings = {
        code
        for page in (ROOT / "docs" / "errors").glob("*.md")
        for code in re.findall(r"^## ([A-Z]{3}-\d{3})", page.read_text(), re.M)
    }
    assert set(codes_in_source()) <= headings
