"""The Rows artifact: everything that was read, normalised and keyed in columns, before any decision.

    rows.json                 sources, files, parts with their counts
    parts/00000/rows.arrow    a part (schema in `layout`): some bytes of one file, cut by size and not by the number of workers
    rejects.jsonl             the bad rows alone, to mend

A part is a pure function of its task, so parts are made in any order by any number of processes.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa

from tunesmith.errors import TunesmithError
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.alike import Alike, Reader
from tunesmith.stages.prepare.layout import KEY, PART, TURN
from tunesmith.stages.prepare.reading.reader import Bad, How, Parsed, files_of, parts_of, read_part
from tunesmith.stages.prepare.spread import Compute
from tunesmith.text.example import Example
from tunesmith.text.formats import Evidence, FormatProblem, learnable, to_columns
from tunesmith.text.keys import content_key, prompt_key

if TYPE_CHECKING:
    from tunesmith.recipe import Source  # a worker reads without the recipe

SCHEMA = 1
BATCH_ROWS = 8192
PART_BYTES = 8 * 1024**2  # some seconds of work at the slowest


@dataclass(frozen=True)
class PartTask:
    """What a part is made of. source, file: their numbers. start, end: bytes of the file. folder: where parts go."""

    number: int
    source: int
    file: int
    path: str
    start: int
    end: int
    format: str
    fields: dict[str, str]
    how: How
    folder: str


# --------------------------------------------------------------------------------------------------- making a part


def make_part(task: PartTask) -> dict[str, Any]:
    """Reads one piece of a file into a part of its own; returns its counts.

    Rows and, of lines, positions count from the part's own beginning: what lies before is known when all parts are there.
    """

    def write(path: Path) -> dict[str, Any]:
        rows = 0
        formats: Counter[str | None] = Counter()
        evidence, notes = Evidence(), Counter[str]()
        with _without_cycles(), pa.OSFile(str(path / "rows.arrow"), "wb") as out, pa.ipc.new_file(out, PART) as writer:
            for batch in _batches(task, evidence, notes):
                formats += batch.formats
                writer.write_batch(batch.to_arrow(rows, task))
                rows += len(batch)
        bad = formats.pop(None, 0)
        return {
            "rows": rows,
            "bad": bad,
            "lines": notes["lines"] if task.end >= 0 else 0,  # only a file of lines has several parts
            "formats": dict(formats),
            "evidence": evidence.to_json(),
            "notes": dict(notes),
            "source": task.source,
            "file": task.file,
        }

    return parts.make(task.folder, task.number, write)


@contextlib.contextmanager
def _without_cycles() -> Iterator[None]:
    """Parsed rows are trees: looking for cycles among them finds none, and takes a third of the time of reading."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Batch:
    """Columns in the making: plain lists, because most of a row's cost is its Python objects."""

    def __init__(self) -> None:
        self.formats: Counter[str | None] = Counter()
        self.positions: list[int] = []
        self.offsets: list[int] = []
        self.named: list[str | None] = []
        self.problems: list[str | None] = []
        self.keys: list[bytes | None] = []
        self.prompt_keys: list[bytes | None] = []
        self.characters: list[int] = []
        self.turns: list[int] = []
        self.roles: list[int] = []
        self.contents: list[str] = []
        self.extras: list[bytes | None] = []
        self.metas: list[str | None] = []

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, found: Parsed | Bad, asked: str, fields: dict[str, str], evidence: Evidence) -> None:
        self.positions.append(found.position)
        self.offsets.append(found.offset)
        if type(found) is Bad:
            self._add_bad(_problem(found, found.column, found.offset, found.raw))
            return
        try:
            form, roles, contents, extra, meta = learnable(to_columns(found.value, asked, fields))
        except FormatProblem as problem:
            raw = json.dumps(found.value, ensure_ascii=True, default=str)[:2048]
            self._add_bad(_problem(problem, 0, found.offset, raw))
            return
        evidence.note(form, found.value, fields)
        self.formats[form] += 1
        self.named.append(form)
        self.problems.append(None)
        self.keys.append(content_key(roles, contents, extra))
        self.prompt_keys.append(prompt_key(roles, contents, extra))
        self.characters.append(sum(map(len, contents)))
        self.turns.append(len(roles))
        self.roles += roles
        self.contents += contents
        self.extras.append(_dumps(extra) if extra else None)
        self.metas.append(_dumps(meta).decode() if meta else None)

    def _add_bad(self, problem: str) -> None:
        self.formats[None] += 1
        self.named.append(None)
        self.problems.append(problem)
        self.keys.append(None)
        self.prompt_keys.append(None)
        self.characters.append(0)
        self.turns.append(0)
        self.extras.append(None)
        self.metas.append(None)

    def to_arrow(self, first: int, task: PartTask) -> pa.RecordBatch:
        turns = np.concatenate([[0], np.cumsum(self.turns, dtype=np.int32)]).astype(np.int32)
        return _record(
            task,
            first,
            pa.array(self.positions, pa.int64()),
            pa.array(self.offsets, pa.int64()),
            pa.array(self.named, pa.utf8()),
            pa.array(self.problems, pa.utf8()),
            pa.array(self.keys, KEY),
            pa.array(self.prompt_keys, KEY),
            pa.array(self.characters, pa.int32()),
            _lists(turns, pa.array(np.array(self.roles, np.int8)), pa.array(self.contents, pa.utf8())),
            pa.array(self.extras, pa.binary()),
            pa.array(self.metas, pa.utf8()),
        )


class _Alike:
    """Columns that were read at once."""

    def __init__(self, rows: Alike) -> None:
        self.rows = rows
        self.formats: Counter[str | None] = Counter({rows.format: len(rows)})

    def __len__(self) -> int:
        return len(self.rows)

    def to_arrow(self, first: int, task: PartTask) -> pa.RecordBatch:
        rows, count = self.rows, len(self.rows)
        return _record(
            task,
            first,
            pa.array(np.arange(rows.position, rows.position + count)),
            pa.array(rows.offsets),
            pa.repeat(pa.scalar(rows.format, pa.utf8()), count),
            pa.nulls(count, pa.utf8()),
            rows.keys,
            rows.prompt_keys,
            pa.array(rows.characters),
            _lists(rows.turns, pa.array(rows.roles), rows.contents),
            pa.nulls(count, pa.binary()),
            pa.nulls(count, pa.utf8()) if rows.metas is None else pa.array(rows.metas, pa.utf8()),
        )


def _lists(turns: np.ndarray, roles: pa.Array, contents: pa.Array) -> pa.Array:
    pairs = pa.StructArray.from_arrays([roles, contents], fields=list(TURN))
    return pa.ListArray.from_arrays(pa.array(turns), pairs)


def _record(task: PartTask, first: int, positions: pa.Array, *columns: pa.Array) -> pa.RecordBatch:
    """Rows of a part, the first of which has number `first`. columns: what follows in PART."""
    count = len(positions)
    places = [
        pa.array(np.arange(first, first + count)),
        pa.array(np.full(count, task.source, np.int16)),
        pa.array(np.full(count, task.file, np.int32)),
        positions,
    ]
    return pa.RecordBatch.from_arrays([*places, *columns], schema=PART)


def try_part(task: PartTask) -> tuple[dict[str, Any], TunesmithError | None]:
    """As `make_part`; a file that cannot be read gives an empty part and the reason."""
    try:
        return make_part(task), None
    except TunesmithError as error:

        def write(path: Path) -> dict[str, Any]:
            parts.write_table(path / "rows.arrow", PART.empty_table())
            return {
                "rows": 0,
                "bad": 0,
                "lines": 0,
                "formats": {},
                "evidence": {},
                "notes": {},
                "source": task.source,
                "file": task.file,
            }

        return parts.make(task.folder, task.number, write), error


def _batches(task: PartTask, evidence: Evidence, notes: Counter[str]) -> Iterator[_Batch | _Alike]:
    batch = _Batch()
    at_once = None if task.fields else Reader(task.format)
    for found in read_part(Path(task.path), task.start, task.end, task.how, notes, at_once):
        if isinstance(found, Alike):
            if len(batch):
                yield batch
                batch = _Batch()
            evidence.note(found.format, dict.fromkeys(found.columns), count=len(found))
            yield _Alike(found)
            continue
        batch.add(found, task.format, task.fields, evidence)
        if len(batch) >= BATCH_ROWS:
            yield batch
            batch = _Batch()
    if len(batch):
        yield batch


def _problem(told: Bad | FormatProblem, column: int, offset: int, raw: str) -> str:
    problem = {
        "code": told.code,
        "what": told.what,
        "expected": told.expected,
        "fix": told.fix,
        "column": column,
        "offset": offset,
        "raw": raw,
    }
    return _dumps(problem).decode()


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half characters, numbers beyond 64 bits: the library of the language writes them escaped
        return json.dumps(value, default=str).encode()


# -------------------------------------------------------------------------------------------------- making them all


def part_tasks(
    sources: Sequence[Source], folder: Path, first_part: int = 0, first_file: int = 0, first_source: int = 0
) -> tuple[list[PartTask], list[str]]:
    """The parts of all files of all sources, in order, and the paths of the files. Raises DataError DAT-001..005."""
    tasks: list[PartTask] = []
    files: list[str] = []
    for number, source in enumerate(sources, first_source):
        for path in files_of(source.path, source.query):
            for start, end in parts_of(path, PART_BYTES):
                part, file = first_part + len(tasks), first_file + len(files)
                how = source.format, dict(source.fields), How(source.at, source.columns)
                tasks.append(PartTask(part, number, file, str(path), start, end, *how, str(folder)))
            files.append(str(path))
    return tasks, files


def write_rows(
    sources: Sequence[Source], aside: Path, folder: Path, compute: Compute, on_rows: Callable[[int], None]
) -> dict[str, Any]:
    """Fills `folder` with the Rows of all sources. Returns counts: rows, bad, formats, parts_kept.

    aside: where parts are made (`parts.folder_for`); those that an earlier start finished are kept. on_rows: called with the
    rows read so far after each part.
    """
    tasks, files = part_tasks(sources, aside)
    known = {task.number: facts for task in tasks if (facts := parts.finished(aside, task.number)) is not None}
    kept, done = len(known), sum(facts["rows"] for facts in known.values())
    left = [task for task in tasks if task.number not in known]
    for place, facts in compute.spread(make_part, left):
        known[left[place].number] = facts
        done += facts["rows"]
        on_rows(done)
    compute.preload("tunesmith.stages.prepare.judged")  # what comes next, while the parts are put together here
    return collect(sources, files, [known[number] for number in range(len(tasks))], aside, folder) | {
        "parts_kept": kept
    }


def collect(
    sources: Sequence[Source], files: Sequence[str], made: Sequence[dict[str, Any]], aside: Path, folder: Path
) -> dict[str, Any]:
    """Puts finished parts together. made: the facts of all parts, in order. Returns counts: rows, bad, formats."""
    counts = [parts.describe(facts) for facts in made]
    described = {
        "schema": SCHEMA,
        "sources": [{"name": source.name, "split": source.split} for source in sources],
        "files": list(files),
        "parts": _with_bases(counts),
    }
    hashes = parts.move(aside, folder, made)
    (folder / "rows.json").write_bytes(orjson.dumps(described, option=orjson.OPT_INDENT_2))
    _write_rejects(folder)
    formats: Counter[str] = Counter()
    for part in counts:
        formats.update(part["formats"])
    total, bad = (sum(part[name] for part in counts) for name in ("rows", "bad"))
    return {"rows": total, "bad": bad, "formats": dict(formats), "hashes": hashes}


def _with_bases(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """base: rows before the part. lines_before: lines of the same file before it."""
    out, base = [], 0
    lines: Counter[int] = Counter()
    for part in parts:
        out.append({**part, "base": base, "lines_before": lines[part["file"]]})
        base += part["rows"]
        lines[part["file"]] += part["lines"]
    return out


def _write_rejects(folder: Path) -> None:
    rows = Rows(folder)
    with (folder / "rejects.jsonl").open("wb") as out:
        for problem in rows.problems():
            out.write(orjson.dumps(problem) + b"\n")


# ------------------------------------------------------------------------------------------------------ reading them


class Rows:
    """Reads a Rows artifact by memory map. Rows are numbered over all parts, in order.

    rewritten: folder of parts that read otherwise after redaction (`judged`).
    """

    def __init__(self, folder: Path, rewritten: Path | None = None) -> None:
        self.folder = Path(folder)
        self.rewritten = rewritten
        described = json.loads((self.folder / "rows.json").read_bytes())
        self.sources: list[dict[str, Any]] = described["sources"]
        self.files: list[str] = described["files"]
        self.parts: list[dict[str, Any]] = described["parts"]

    @property
    def num_rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    def part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A part's rows, good and bad; `row` and `position` as they are over all parts."""
        changed = parts.stem_of(self.rewritten / "parts", number) / "rows.arrow" if self.rewritten else None
        if changed is not None and changed.is_file():
            table = parts.open_table(changed)
            return table if columns is None else table.select(list(columns))
        table = parts.open_table(parts.stem_of(self.folder / "parts", number) / "rows.arrow")
        if columns is not None:
            table = table.select(list(columns))
        facts = self.parts[number]
        for name, base in (("row", facts["base"]), ("position", facts["lines_before"])):
            if base and name in table.column_names:
                at = table.column_names.index(name)
                moved = pa.array(table[name].to_numpy() + base)
                table = table.set_column(at, name, moved)
        return table

    def columns(self, *names: str) -> pa.Table:
        """Some columns of all rows."""
        if not self.parts:
            return PART.empty_table().select(list(names))
        return pa.concat_tables([self.part(number, names) for number in range(len(self.parts))])

    def problems(self) -> Iterator[dict[str, Any]]:
        """The bad rows: {row, source, file, position, code, what, expected, fix, column, offset, raw}."""
        for number, facts in enumerate(self.parts):
            if not facts["bad"]:
                continue
            table = self.part(number, ("row", "position", "problem"))
            for line in table.filter(table["problem"].is_valid()).to_pylist():
                told = json.loads(line["problem"])
                place = {"row": line["row"], "source": self.source_name(facts), "file": self.file_name(facts)}
                yield {**place, "position": line["position"], **told}

    def source_name(self, facts: dict[str, Any]) -> str:
        """Of a part: the name its source has in the ledger and in scores."""
        return self.sources[facts["source"]]["name"] or self.file_name(facts).split(".")[0]

    def file_name(self, facts: dict[str, Any]) -> str:
        return Path(self.files[facts["file"]]).name

    def examples(self, chosen: np.ndarray) -> Iterator[tuple[int, Example]]:
        """(row, example) of some good rows. chosen: their numbers, ascending, int64."""
        for number, facts in enumerate(self.parts):
            first, end = np.searchsorted(chosen, (facts["base"], facts["base"] + facts["rows"]))
            if first < end:
                table = self.part(number, ("turns", "extra", "meta"))
                yield from zip(
                    chosen[first:end].tolist(), _examples(table, chosen[first:end] - facts["base"]), strict=True
                )

    @cached_property
    def splits(self) -> list[str]:
        """What each source says of its rows: auto, train, validation, test."""
        return [source["split"] for source in self.sources]


def _examples(table: pa.Table, places: np.ndarray) -> Iterator[Example]:
    """places: ascending. Batch by batch: to take from all at once would lay them together before."""
    base = 0
    for batch in table.to_batches():
        first, end = np.searchsorted(places, (base, base + batch.num_rows))
        if first < end:
            yield from map(_example, batch.take(pa.array(places[first:end] - base)).to_pylist())
        base += batch.num_rows


def _example(line: dict[str, Any]) -> Example:
    extra = json.loads(line["extra"]) if line["extra"] else None
    meta = json.loads(line["meta"]) if line["meta"] else None
    roles = [turn["role"] for turn in line["turns"]]
    return Example.from_columns(roles, [turn["content"] for turn in line["turns"]], extra, meta)
