"""Bad rows: counted by kind, the first ones shown; they stop the run unless the recipe sets them apart and they are few."""

from __future__ import annotations

import itertools
import shlex
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from tunesmith.errors import DataError, Problem
from tunesmith.recipe import Recipe
from tunesmith.stages.prepare.reading.files import COMPRESSED
from tunesmith.stages.prepare.reading.found import NOT_UTF8, READS_AS_LATIN

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.stages.prepare.encoding.tokens import Tokens
    from tunesmith.stages.prepare.rows import Rows

SHOWN_PER_CODE = 3
REFUSED = "TXT-056"  # by the chat template


def bad_rows_of(rows: Rows, more: Iterable[dict[str, Any]] = ()) -> tuple[Counter[str], list[dict[str, Any]]]:
    """As `first_of_each_code`, of all bad rows and `more`; a file that is in another encoding throughout is told of once."""
    more = list(more)
    counts, first = first_of_each_code(itertools.chain(rows.problems(), more))
    if not any(NOT_UTF8 in told["what"] for told in first):
        return counts, first
    foreign = _foreign_files(rows)
    others = (told for told in rows.problems() if _file_of(rows, told) not in foreign or NOT_UTF8 not in told["what"])
    return counts, [*foreign.values(), *first_of_each_code(itertools.chain(others, more))[1]]


def _foreign_files(rows: Rows) -> dict[int, dict[str, Any]]:
    """File -> what is said of it: those of which no row is UTF-8 but those in plain ASCII, which any encoding reads alike."""
    counts: Counter[int] = Counter()
    first: dict[int, dict[str, Any]] = {}
    mixed = set()
    for told in rows.problems():
        if NOT_UTF8 in told["what"]:
            file = _file_of(rows, told)
            counts[file] += 1
            first.setdefault(file, told)
            if READS_AS_LATIN not in told["what"]:
                mixed.add(file)
    return {
        file: _in_another_encoding(told, counts[file], Path(rows.files[file]))
        for file, told in first.items()
        if file not in mixed and _is_ascii(rows, file)
    }


def _in_another_encoding(told: dict[str, Any], count: int, path: Path) -> dict[str, Any]:
    new = path.with_name(f"{path.name.partition('.')[0]}.utf8{''.join(path.suffixes)}")
    command = f"iconv -f latin1 -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    if path.suffix.lower() in COMPRESSED:
        command = f"unpack it, then {command.replace(path.suffix, '')}"
    return {
        **told,
        "what": f"no row of the file that holds more than ASCII is UTF-8 ({count:,} rows); the first: {told['what']}",
        "fix": f"if that reads well, convert the whole file: {command}; else put its encoding in the place of latin1",
        "is_whole_file": True,
    }


def _file_of(rows: Rows, told: dict[str, Any]) -> int:
    return rows.parts[bisect_right(rows.parts, told["row"], key=lambda part: part["base"]) - 1]["file"]


def _is_ascii(rows: Rows, file: int) -> bool:
    """Whether the good rows of a file hold nothing but ASCII."""
    for number, facts in enumerate(rows.parts):
        if facts["file"] == file:
            table = rows.part(number, ("turns", "extra", "meta"))
            contents = pc.struct_field(table["turns"].combine_chunks().flatten(), [1])
            texts = (contents, table["extra"].cast("string"), table["meta"])
            if not all(pc.all(pc.string_is_ascii(column)).as_py() is not False for column in texts):
                return False
    return True


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
        "fix": "a model.template that knows such turns (the template of a model that was trained on tools, say), or data.filters.where to leave the rows out",
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
    if told.get("is_whole_file"):
        return Problem(told["code"], _place(told), told["what"], told["expected"], told["fix"])
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
