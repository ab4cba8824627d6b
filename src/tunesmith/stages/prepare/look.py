"""A look at data without a recipe: what `tunesmith init` writes a recipe from, and what `check` reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.recipe.load import parse_recipe
from tunesmith.stages.prepare.rows import Row, read_all


@dataclass
class Look:
    """formats: format -> rows. problems: code -> rows; first_problems: the first of each. characters: percentiles."""

    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    first_problems: list[dict[str, Any]] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    characters: dict[str, int] = field(default_factory=dict)
    answer_characters: int = 0
    json_answers: float = 0.0
    sample: dict[str, Any] | None = None

    @property
    def bad(self) -> int:
        return sum(self.problems.values())


def look(path: str) -> Look:
    """Read a file, folder or glob whole and say what is in it."""
    return look_at(parse_recipe(f"data: {{sources: {path!r}}}"))


def look_at(spec: Recipe) -> Look:
    """As `look`, at the sources of a recipe."""
    found = Look()
    lengths, answers, in_json = [], [], 0
    for row in read_all(spec, lambda count: None):
        found.rows += 1
        if row.problem:
            _note_problem(found, row)
            continue
        assert row.example is not None
        found.formats[row.format] += 1
        found.columns.update(row.meta.keys())
        lengths.append(row.example.num_characters)
        answer = row.example.answer or ""
        answers.append(len(answer))
        in_json += answer.strip().startswith(("{", "[")) and answer.strip().endswith(("}", "]"))
        found.sample = found.sample or row.example.to_json()
    lengths.sort()
    if lengths:
        found.characters = {
            name: lengths[min(len(lengths) - 1, int(share * len(lengths)))]
            for name, share in (("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        }
        found.answer_characters = sorted(answers)[min(len(answers) - 1, int(0.99 * len(answers)))]
        found.json_answers = in_json / len(lengths)
    return found


def _note_problem(found: Look, row: Row) -> None:
    assert row.problem is not None
    code = row.problem["code"]
    if code not in found.problems:
        found.first_problems.append(
            {"place": row.place, **{key: row.problem[key] for key in ("code", "what", "expected", "fix")}}
        )
    found.problems[code] += 1
