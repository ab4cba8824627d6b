"""A look at data without a recipe: what is in each file, where it belongs, how long it is. `tunesmith init` writes from it."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import hub
from tunesmith.errors import ModelError
from tunesmith.stages.prepare.columns import propose_fields, propose_format
from tunesmith.stages.prepare.reading.files import skipped_files, told_of_skipped
from tunesmith.stages.prepare.reading.reader import Bad, files_of, read_rows
from tunesmith.text.example import Example
from tunesmith.text.formats import FormatProblem, learnable, to_columns
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

PEEKED = 200  # rows by which columns are judged
DRAWN, LONGEST = 300, 30  # examples that are encoded
SPLIT_WORDS = {
    "train": {"train", "training", "trn"},
    "validation": {"validation", "validate", "valid", "val", "dev", "eval"},
    "test": {"test", "testing", "holdout", "heldout"},
}
NO_ROWS = {"readme", "license", "licence", "notice", "changelog", "requirements"}
QUALITY = "quality_score"


@dataclass
class FileLook:
    """fields: proposed for foreign columns. judged: pair, ranked or kto, where answers were judged; then format says how they
    are learned from all the same, and filter which are left out. split: by the file's name, "auto" where that says nothing.

    problems: code -> rows. first_problem: the first of them, with its place. columns: those that are no part of the chat.
    """

    path: Path
    fields: dict[str, str]
    split: str = "auto"
    judged: str = ""
    format: str = "auto"
    filter: str = ""
    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    first_problem: dict[str, str] | None = None
    columns: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> int:
        return self.formats.total()


@dataclass
class Measured:
    """Tokens, by the base's own tokenizer on a sample that holds the longest rows. template: what the recipe has to name."""

    p99: int
    longest: int
    answer_p99: int
    template: str
    context: int | None


@dataclass
class Look:
    """files: with rows that can be used. left_out: (file, why). skipped: what folders hold besides, in a sentence. characters: percentiles over the rows of all files.

    answers: 99 of 100 have at most so many characters. measured: None where the base's tokenizer could not be had.
    scores: of the column quality_score, ascending.
    """

    files: list[FileLook] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    skipped: str = ""
    characters: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    json_answers: float = 0.0
    scores: list[float] = field(default_factory=list)
    measured: Measured | None = None
    drawn: list[tuple[int, int, Example]] = field(default_factory=list)  # a heap by content, the largest key on top
    longest: list[tuple[int, int, Example]] = field(default_factory=list)  # a heap by length, the shortest on top

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def formats(self) -> Counter[str]:
        return sum((file.formats for file in self.files), Counter())

    @property
    def problems(self) -> Counter[str]:
        return sum((file.problems for file in self.files), Counter())

    @property
    def filters(self) -> list[str]:
        """Expressions that leave out what is not to be learned."""
        return list(dict.fromkeys(file.filter for file in self.files if file.filter))

    @property
    def first_problems(self) -> list[dict[str, str]]:
        return [file.first_problem for file in self.files if file.first_problem]

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "formats": dict(self.formats),
            "bad": dict(self.problems),
            "files": [
                {
                    "path": str(file.path),
                    "split": file.split,
                    "format": file.format,
                    "fields": file.fields,
                    "rows": file.rows,
                }
                for file in self.files
            ],
            "left_out": {str(path): why for path, why in self.left_out},
            "characters": self.characters,
            "tokens": {"p99": self.measured.p99, "max": self.measured.longest} if self.measured else None,
        }


def look(paths: Sequence[str], base: str) -> Look:
    """Read files, folders or globs whole. base: the model whose tokenizer counts. Raises DataError DAT-001 and on."""
    found = Look()
    files = [path for path in dict.fromkeys(itertools.chain.from_iterable(map(files_of, paths)))]
    skipped = skipped_files(paths)
    found.skipped = told_of_skipped(skipped) if skipped else ""
    lengths: list[int] = []
    answers: list[int] = []
    in_json = 0
    for path in files:
        if len(files) > 1 and set(_words(path.name)) & NO_ROWS:
            found.left_out.append((path, "by its name it holds no rows"))
            continue
        seen = _look_at(path, found, lengths, answers)
        in_json += seen[1]
        if seen[0].good:
            found.files.append(seen[0])
        else:
            problem = seen[0].first_problem
            found.left_out.append((path, problem["what"] if problem else _without_rows(path)))
    _sort_into_splits(found.files)
    found.characters = _percentiles(lengths)
    found.answers = _percentiles(answers).get("p99", 0)
    found.json_answers = in_json / len(lengths) if lengths else 0.0
    found.scores.sort()
    found.measured = _measure(found, base)
    return found


def _look_at(path: Path, found: Look, lengths: list[int], answers: list[int]) -> tuple[FileLook, int]:
    """The file, and how many of its answers are JSON."""
    parsed = iter(read_rows(path))
    first = list(itertools.islice(parsed, PEEKED))
    values = [row.value for row in first if not isinstance(row, Bad)]
    seen = FileLook(path, propose_fields(values) or {})
    seen.judged, seen.format, seen.filter = propose_format(values, seen.fields)
    in_json = 0
    for row in itertools.chain(first, parsed):
        seen.rows += 1
        if isinstance(row, Bad):
            _note_problem(seen, row.position, row.code, row.what, row.fix)
            continue
        try:
            form, *columns = learnable(to_columns(row.value, seen.format, seen.fields))
        except FormatProblem as problem:
            _note_problem(seen, row.position, problem.code, problem.what, problem.fix)
            continue
        example = Example.from_columns(*columns)
        seen.formats[form] += 1
        seen.columns.update(example.meta.keys())
        lengths.append(example.num_characters)
        answer = (example.answer or "").strip()
        answers.append(len(answer))
        in_json += answer.startswith(("{", "[")) and answer.endswith(("}", "]"))
        found.scores += _score(example.meta.get(QUALITY))
        key = int(example.content_hash(), 16)
        _push(found.drawn, (-key, len(lengths), example), DRAWN)
        _push(found.longest, (example.num_characters, len(lengths), example), LONGEST)
    return seen, in_json


def _without_rows(path: Path) -> str:
    size = path.stat().st_size
    return "it is empty" if not size else f"it holds no rows, only {size:,} bytes of blanks or a header"


def _note_problem(seen: FileLook, position: int, code: str, what: str, fix: str) -> None:
    seen.problems[code] += 1
    if seen.first_problem is None:
        seen.first_problem = {"place": f"{seen.path.name}:{position}", "code": code, "what": what, "fix": fix}


def _push(heap: list, entry: tuple, size: int) -> None:
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _score(value: Any) -> list[float]:
    try:
        return [] if value is None or isinstance(value, bool) else [float(value)]
    except (TypeError, ValueError):
        return []


def _percentiles(numbers: Iterable[int]) -> dict[str, int]:
    ordered = sorted(numbers)
    if not ordered:
        return {}
    shares = (("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in shares}


# --------------------------------------------------------------------------------------------------------------- splits


def _sort_into_splits(files: list[FileLook]) -> None:
    """By names such as train.jsonl and test.csv, where there are rows to train on and others beside them."""
    named = {file.path: _split_of(file.path) for file in files}
    if {"train"} < set(named.values()) - {"auto"}:
        for file in files:
            file.split = named[file.path]


def _split_of(path: Path) -> str:
    """What the file's name says, else its folder's; auto where they say nothing or more than one thing."""
    for name in (path.name, path.parent.name):
        words = set(_words(name))
        found = [split for split, known in SPLIT_WORDS.items() if words & known]
        if found:
            return found[0] if len(found) == 1 else "auto"
    return "auto"


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())


# --------------------------------------------------------------------------------------------------------------- tokens


def _measure(found: Look, base: str) -> Measured | None:
    """Lengths in tokens; None where the model's small files cannot be had now, by no fault of the data."""
    try:
        files = hub.resolve(base, weights=False)
        tokenizer = _tokenizer(files)
    except ModelError:
        return None
    lengths: dict[int, int] = {}
    answers: list[int] = []
    for number, example in {entry[1]: entry[2] for entry in (*found.drawn, *found.longest)}.items():
        try:
            ((ids, _),) = tokenizer.encode_segments([tokenizer.encode_example(example, "all")])
        except TemplateError:
            continue  # `tunesmith check` says which rows a template refuses
        lengths[number] = len(ids)
        if example.answer is not None:
            ((answer, _),) = tokenizer.encode_segments([[Segment(example.answer, True, True)]])
            answers.append(len(answer))
    if not lengths:
        return None
    drawn = [lengths[entry[1]] for entry in found.drawn if entry[1] in lengths]
    context = files.config.get("max_position_embeddings")
    return Measured(
        _percentiles(drawn or lengths.values())["p99"],
        max(lengths.values()),
        _percentiles(answers).get("p99", 0),
        tokenizer.template.name,
        context if isinstance(context, int) else None,
    )


def _tokenizer(files: hub.ModelFiles) -> Tokenizer:
    """With the model's own template, or the classical instruction form where it brings none."""
    try:
        return load_tokenizer(files, "auto")
    except ModelError:  # for want of a template; what else is wrong with it is wrong again below
        return load_tokenizer(files, "instruction")
