"""All tests, in two halves side by side, because one half alone leaves a core idle: `python tools/run_tests.py`.

The first half is shown as it goes, the second one when both have ended. Ends with the first status that is not 0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
E2E = ROOT / "tests" / "e2e"


def main() -> int:
    others = sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {E2E})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile() as log:
        second = subprocess.Popen([*command, *map(str, others)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run([*command, str(E2E)], cwd=ROOT, check=False)
            second.wait()
        finally:
            second.kill()  # after Ctrl-C; one that has ended is left as it is
            second.wait()
        log.seek(0)
        sys.stdout.write(log.read().decode(errors="replace"))
    return first.returncode or second.returncode


if __name__ == "__main__":
    sys.exit(main())
