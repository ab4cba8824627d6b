"""The Verdicts artifact: what is known of each row by itself: which rule takes it, what was measured, by what it is compared.

verdicts.json                    parts with their counts and facts
boilerplate.npz                  per view the grams that so many rows have that they say nothing about one
parts/00000/verdicts.arrow       schema layout.VERDICTS: rows that go
parts/00000/measured.arrow       one line per row: characters, score and what else the recipe measures
parts/00000/flags.arrow          what was found in rows, whether or not they go
parts/00000/signatures.arrow     of each good row what set-wide rules compare
parts/00000/rows.arrow           the part of Rows as it reads after redaction; only where something was redacted
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.recipe import Recipe
from tunesmith.runs.store import fingerprint
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.cleaning.columns import kinds_of, merge_kinds
from tunesmith.stages.prepare.cleaning.facts import merge_facts
from tunesmith.stages.prepare.cleaning.judge import check_cleaning, judge
from tunesmith.stages.prepare.rows import Rows
from tunesmith.stages.prepare.sets.signatures import boilerplate, signatures
from tunesmith.stages.prepare.spread import Compute
from tunesmith.text.keys import content_key, prompt_key

SCHEMA = 1
KEYS = ("data.filters", "data.quality.type")  # besides what decides signatures


@dataclass(frozen=True)
class JudgeTask:
    """What the verdicts of a part are made of. rows, folder: the Rows artifact, and where parts go. recipe: as JSON.

    kinds: what the rows' other columns hold over all parts; boilerplate: view -> grams that say nothing about a row.
    """

    number: int
    rows: str
    folder: str
    recipe: str
    kinds: dict[str, Any] | None = None
    boilerplate: dict[str, np.ndarray] | None = None


def judge_part(task: JudgeTask) -> dict[str, Any]:
    """Judges the rows of one part of Rows into a part of Verdicts; returns its facts."""
    spec, rows = _recipe(task.recipe), Rows(Path(task.rows))
    table = rows.part(task.number)

    def write(path: Path) -> dict[str, Any]:
        judged = judge(table, spec, _keys, splits=rows.splits, sources=_source_names(rows), kinds=task.kinds)
        tables = {"verdicts": judged.verdicts, "measured": judged.measured, "flags": judged.flags}
        tables["signatures"] = signatures(judged.part, spec, task.boilerplate)
        if judged.part is not table:
            tables["rows"] = judged.stored
        for name, made in tables.items():
            parts.write_table(path / f"{name}.arrow", made)
        return {"rows": table.num_rows, "rewritten": judged.part is not table, "facts": judged.facts}

    return parts.make(task.folder, task.number, write)


def _keys(roles: list[int], contents: list[str], extra: dict[str, Any] | None) -> tuple[bytes, bytes]:
    return content_key(roles, contents, extra), prompt_key(roles, contents, extra)


@lru_cache(maxsize=2)
def _recipe(text: str) -> Recipe:
    return Recipe.model_validate_json(text)


def _source_names(rows: Rows) -> list[str]:
    """Of each source; "" of one without a part."""
    names = [""] * len(rows.sources)
    for facts in rows.parts:
        names[facts["source"]] = names[facts["source"]] or rows.source_name(facts)
    return names


def write_verdicts(
    spec: Recipe, rows: Rows, aside: Path, folder: Path, compute: Compute, on_rows: Callable[[int], None]
) -> dict[str, Any]:
    """Fills `folder` with the verdicts on all rows. Returns counts: parts_kept, rewritten (parts).

    aside, on_rows: as of rows.write_rows. Raises RecipeError, DataError and ModelError where a filter cannot be applied.
    """
    numbers = range(len(rows.parts))
    kinds = None
    if spec.data.filters.where:
        kinds = merge_kinds(kinds_of(rows.part(number, ("meta",))) for number in numbers)
    check_cleaning(spec, kinds or {})
    common = boilerplate((rows.part(number) for number in numbers), spec, rows.num_rows, compute.workers)
    task = JudgeTask(0, str(rows.folder), str(aside), spec.model_dump_json(), kinds, common)
    known = {number: facts for number in numbers if (facts := parts.finished(aside, number)) is not None}
    kept, done = len(known), sum(facts["rows"] for facts in known.values())
    left = [replace(task, number=number) for number in numbers if number not in known]
    for place, facts in compute.spread(judge_part, left):
        known[left[place].number] = facts
        done += facts["rows"]
        on_rows(done)
    counts = [parts.describe(known[number]) for number in numbers]
    # What redaction made of the rows, so that tokens are those of these texts.
    rewritten = {number: known[number]["hashes"]["rows.arrow"] for number in numbers if known[number]["rewritten"]}
    hashes = parts.move(aside, folder, [known[number] for number in numbers])
    described = {"schema": SCHEMA, "parts": counts, "rewritten": fingerprint(rewritten) if rewritten else None}
    np.savez(folder / "boilerplate.npz", **common)
    (folder / "verdicts.json").write_text(json.dumps(described))
    return {"parts_kept": kept, "rewritten": len(rewritten), "hashes": hashes}


class Judged:
    """Reads a Verdicts artifact by memory map."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        described = json.loads((self.folder / "verdicts.json").read_bytes())
        self.parts: list[dict[str, Any]] = described["parts"]
        self.rewritten: str | None = described["rewritten"]

    def part(self, number: int, name: str) -> pa.Table:
        """name: verdicts, measured, flags or signatures."""
        return parts.open_table(parts.stem_of(self.folder / "parts", number) / f"{name}.arrow")

    def all(self, name: str) -> pa.Table:
        return pa.concat_tables([self.part(number, name) for number in range(len(self.parts))])

    @cached_property
    def boilerplate(self) -> dict[str, np.ndarray]:
        """View -> grams that say nothing about a row."""
        with np.load(self.folder / "boilerplate.npz", allow_pickle=False) as found:
            return dict(found)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts of all parts, added up."""
        return merge_facts([part["facts"] for part in self.parts])
