"""What became of a row: one entry of the ledger, found by its place in a source file or by its id.

The ledger is one Parquet file, `ledger.parquet` in a Dataset's folder, so that any tool can query it. Reading it needs pyarrow,
which only preparation and this look need: it is imported here when asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, UsageError
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "ledger.parquet"
SHOWN = 8


def find(where: Run | Artifact | Path, row: str | int) -> dict[str, Any]:
    """The ledger's entry of one row; where it gave way to a twin, the twin's entry under "twin".

    where: a Run whose prepare has finished, its Dataset, or the Dataset's folder.
    row:   "train.jsonl:48213" (file and line, or index from 0 in a JSON array, Parquet or Arrow; a source's name does as well), or a row id.
    Raises UsageError RUN-011 when `row` can not be read so or names rows of several files, DataError RUN-012 when
    there is no such row. Only the columns that are asked for are read, and the row groups that hold the row.
    """
    path = _path(where)
    source, number = _parse(str(row))
    found = _by_id(path, number) if source is None else _by_place(path, source, number)
    if not found:
        raise DataError(
            "RUN-012",
            f"no row {row} in {path}",
            expected="FILE:LINE or a row id of this ledger; " + _overview(path),
            fix=_nearest(path, source, number)
            or "count lines from 1, as your editor does; rows of a JSON array, Parquet or Arrow from 0; blank lines are no rows",
        )
    if len(found) > 1:
        one_of = ", ".join(f"{entry['row']} (of {entry['source']})" for entry in found[:SHOWN])
        raise UsageError(
            "RUN-011", f"{row} names {len(found)} rows", expected="one row", fix=f"its id, one of: {one_of}"
        )
    (entry,) = found
    if isinstance(entry.get("kept_twin"), int):
        entry["twin"] = next(iter(_by_id(path, entry["kept_twin"])), None)
    return entry


def find_in_runs(runs: Sequence[Run], row: str | int) -> dict[str, Any]:
    """As `find`, in the latest of several runs whose ledger holds the file; its id stands under "run".

    runs: the latest last. A row id, which every run numbers anew, is that of the latest one with prepared data.
    Raises as `find`, of the run that has the file, else of the latest with prepared data; RUN-013 where none has any.
    """
    source, _ = _parse(str(row))
    prepared = [run for run in reversed(runs) if run.outputs("prepare") is not None]
    for run in prepared:
        if source is None or _holds(_path(run), source):
            return {**find(run, row), "run": run.id}
    return find(prepared[0] if prepared else runs[-1], row)


def _holds(path: Path, source: str) -> bool:
    """Whether a ledger has rows of a file, or of a source of that name."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return False
    return pq.read_table(path, columns=["row"], filters=_named(source)).num_rows > 0


def _named(source: str) -> list[list[tuple[str, str, str]]]:
    return [[("file", "==", Path(source).name)], [("source", "==", source)]]


def places(where: Run | Artifact | Path, rows: Iterable[int]) -> dict[int, str]:
    """Row id -> FILE:LINE, of the rows that the ledger holds; nothing where there is no ledger or no pyarrow to read it."""
    path, wanted = _path(where), sorted(set(rows))
    try:
        found = _table(path, columns=["row", "file", "position"], filters=[("row", "in", wanted)]) if wanted else None
    except (ModuleNotFoundError, FileNotFoundError):
        return {}
    return {entry["row"]: place_of(entry) for entry in found.to_pylist()} if found is not None else {}


def place_of(entry: Mapping[str, Any]) -> str:
    """FILE:LINE of an entry."""
    return f"{entry['file']}:{entry['position']}"


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """All entries in order; a row group is held at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _path(where: Run | Artifact | Path) -> Path:
    if isinstance(where, Run):
        outputs = where.outputs("prepare")
        if outputs is None:
            raise DataError(
                "RUN-013",
                f"run {where.id} has no prepared data yet",
                expected="a run whose prepare has finished",
                fix="tunesmith prepare RECIPE, then ask again",
            )
        where = outputs["dataset"]
    return (where.path if isinstance(where, Artifact) else Path(where)) / NAME


def _parse(row: str) -> tuple[str | None, int]:
    source, colon, number = row.rpartition(":")
    if not number.isdecimal():
        raise UsageError(
            "RUN-014",
            f"{row!r} is no row",
            expected="FILE:LINE, such as train.jsonl:48213, or a row id",
            fix="tunesmith explain train.jsonl:1",
        )
    return (source if colon else None), int(number)


def _table(path: Path, **options: Any) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path, **options)


def _by_id(path: Path, number: int) -> list[dict[str, Any]]:
    return _table(path, filters=[("row", "==", number)]).to_pylist()


def _by_place(path: Path, source: str, number: int) -> list[dict[str, Any]]:
    """Named by the file, with or without its folder, or by the source's name in the recipe."""
    at = _table(path, filters=[("position", "==", number)]).to_pylist()
    return [entry for entry in at if entry["file"] == Path(source).name or entry["source"] == source]


def _overview(path: Path) -> str:
    # Row groups of different files have different dictionaries, which grouping does not take.
    table = _table(path, columns=["file", "position"]).unify_dictionaries()
    columns = table.group_by("file", use_threads=False)
    counts = columns.aggregate([([], "count_all"), ("position", "min"), ("position", "max")]).to_pylist()
    listed = [
        f"{entry['count_all']:,} rows of {entry['file']} ({entry['position_min']} to {entry['position_max']})"
        for entry in counts[:SHOWN]
    ]
    return "it holds " + ", ".join(listed)


def _nearest(path: Path, source: str | None, number: int) -> str:
    """What to ask for instead where a file has rows on both sides of a line; else nothing."""
    if source is None:
        return ""
    import pyarrow.compute as pc

    own = _table(path, columns=["file", "source", "position"], filters=_named(source))
    sides = []
    for is_on_side, farthest in ((pc.less, pc.max), (pc.greater, pc.min)):
        side = own.filter(is_on_side(own["position"], number))
        if not side.num_rows:
            return ""
        place = pc.index(side["position"], farthest(side["position"])).as_py()
        sides += map(place_of, side.slice(place, 1).to_pylist())
    return f"blank lines are no rows, and none begins here; beside it lie {' and '.join(sides)}"
