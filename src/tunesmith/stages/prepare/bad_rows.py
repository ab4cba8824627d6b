"""Bad rows: counted by kind, the first ones shown; they stop the run unless the recipe sets them apart and they are few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, Problem
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.stages.prepare.encoding.tokens import Tokens
    from tunesmith.stages.prepare.rows import Rows

SHOWN_PER_CODE = 3
REFUSED = "TXT-056"  # by the chat template


def first_of_each_code(problems: Iterable[dict[str, Any]]) -> tuple[Counter[str], list[dict[str, Any]]]:
    """How many bad rows of each code there are, and the first ones of each: what is shown."""
    counts: Counter[str] = Counter()
    shown = []
    for told in problems:
        if counts[told["code"]] < SHOWN_PER_CODE:
            shown.append(told)
        counts[told["code"]] += 1
    return counts, shown


def refused_rows(rows: Rows, tokens: Tokens, left: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows that no rule took and the chat template refuses, as `Rows.problems` tells bad ones. left: bool [N]."""
    for number, facts in enumerate(rows.parts):
        if not tokens.parts[number]["refused"]:
            continue
        positions = rows.part(number, ("position",))["position"]
        for place, words in tokens.part(number).refused.items():
            if left[facts["base"] + place]:
                yield {
                    "code": REFUSED,
                    "file": rows.file_name(facts),
                    "position": positions[place].as_py(),
                    "column": 0,
                    **refusal_of(words),
                }


def refusal_of(words: str) -> dict[str, str]:
    """What is said of a row that the chat template refuses."""
    return {
        "what": words,
        "expected": "a chat that model.template can write",
        "fix": "model.template: one that knows these turns (such as tools), or data.filters.where to leave such rows out",
    }


def bad_rows_error(spec: Recipe, counts: Counter[str], first: list[dict[str, Any]], total: int) -> DataError | None:
    """DAT-032 for bad rows, unless the recipe sets them apart and they are few; DAT-031 where there is no row at all.

    counts: bad rows by code. first: some of each code, as `Rows.problems` tells them. total: all rows, good and bad.
    """
    if not total:
        names = ", ".join(source.path for source in spec.data.sources)
        return DataError(
            "DAT-031", f"no row in {names}", where="data.sources", expected="at least one row", fix="check the files"
        )
    bad = counts.total()
    if not bad or (spec.data.on_bad_row == "quarantine" and bad < total and bad / total <= spec.data.max_bad_share):
        return None
    groups = ", ".join(f"{code} x {count:,}" for code, count in counts.most_common())
    what = f"{bad:,} of {total:,} rows cannot be used ({groups}); nothing was trained"
    shown = [_as_problem(rows, counts) for rows in _alike(sorted(first, key=lambda row: -counts[row["code"]]))]
    return DataError("DAT-032", what, problems=[*shown, _verdict(spec, what, bad / total)])


def _alike(shown: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of which the same is said, together."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for told in shown:
        groups.setdefault((told["code"], told["what"], told["expected"], told["fix"]), []).append(told)
    return list(groups.values())


def _as_problem(rows: list[dict[str, Any]], counts: Counter[str]) -> Problem:
    """The first of some rows with the same problem; the others by their place."""
    told = rows[0]
    count = counts[told["code"]]
    others = f", such as {', '.join(map(_place, rows[1:]))}" if len(rows) > 1 else ""
    alike = f" ({count:,} rows with this code{others})" if count > 1 else ""
    return Problem(told["code"], _place(told), told["what"] + alike, told["expected"], told["fix"])


def _place(told: dict[str, Any]) -> str:
    column = f":{told['column']}" if told["column"] else ""
    return f"{told['file']}:{told['position']}{column}"


def _verdict(spec: Recipe, what: str, share: float) -> Problem:
    """Why these bad rows stop the run, and the key that lets it go on."""
    if spec.data.on_bad_row == "quarantine":
        fix = f"mend them, or data.max_bad_share: {min(1.0, share * 1.1):.3f}" if share < 1 else "mend the file"
        what = f"{share:.2%} of the rows are bad, more than data.max_bad_share {spec.data.max_bad_share:.2%} ({what})"
        return Problem("DAT-032", "data.max_bad_share", what, "rows that can be read", fix)
    fix = "mend these rows, or data.on_bad_row: quarantine sets them apart and goes on"
    if share > spec.data.max_bad_share:
        fix += f" (with data.max_bad_share: {min(1.0, share * 1.1):.3f})"
    return Problem("DAT-032", "data.on_bad_row", what, "rows that can be read", fix)
