"""What is not on this machine's disk, brought here as files: data sets of the hub, objects of a store, the result of a query.

From then on they are files like others, so their rows have a place, their bytes are hashed, and a killed run goes on. Each
process fetches anew; copies that came out equal are kept once, below the cache folder, named by their content.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.stages.prepare.reading.files import SUFFIXES, nothing_at, suffix_of

HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
FETCHED_ROWS = 10_000
# A recipe may come from others: what it sends to a database asks for rows and does nothing else.
ASKS = re.compile(r"[\s(]*(select|with|values|table)\b", re.IGNORECASE)


@lru_cache(maxsize=64)
def fetched(url: str, query: str | None = None) -> tuple[Path, ...]:
    """The files behind a URL. Raises DataError DAT-001, DAT-041, DAT-039."""
    scheme = url.split("://", 1)[0].lower()
    if scheme == "hf":
        return _from_hub(url)
    if scheme in STORES:
        return _from_store(url)
    return (_from_database(url, query),)


def _from_hub(url: str) -> tuple[Path, ...]:
    found = HUB.fullmatch(url)
    if not found:
        raise DataError(
            "DAT-041",
            f"{url} names no data set",
            where="data.sources",
            expected="hf://datasets/owner/name, with @revision and a path or glob behind it where wanted",
            fix="copy the name from the data set's page",
        )
    name, revision, inside = found.groups()
    steps = [*name.split("/"), *(inside or "").split("/")]
    if {"..", "."} & set(steps) or (inside or "").startswith(("/", "~")):
        raise DataError(
            "DAT-044",
            f"{url} leads out of the data set",
            where="data.sources",
            expected="owner/name, and a path or glob inside of it",
            fix="name files of this machine by their own path",
        )
    folder = hub.fetch_rows(name, revision, [inside] if inside else [f"*{suffix}*" for suffix in SUFFIXES])
    paths = glob.glob(str(folder / inside), recursive=True) if inside else map(str, folder.rglob("*"))
    files = sorted(Path(path) for path in paths if Path(path).is_file() and suffix_of(path) in SUFFIXES)
    if not files:
        raise nothing_at(url)
    return tuple(files)


def _from_store(url: str) -> tuple[Path, ...]:
    from tunesmith.stages.prepare.reading.frames import STORE_ERRORS, copy_object, objects_at

    try:
        names = [name for name, _ in objects_at(url) if suffix_of(name) in SUFFIXES]
        if not names:
            raise nothing_at(url)
        return tuple(_kept(PurePosixPath(name).name, lambda out, name=name: copy_object(name, out)) for name in names)
    except STORE_ERRORS as error:
        if "at least 1 MicroPartition" in str(error):  # so Daft says that nothing matched
            raise nothing_at(url) from error
        why = str(error).strip().splitlines()
        raise DataError(
            "DAT-041",
            f"{url} cannot be fetched: {why[-1][:200] if why else type(error).__name__}",
            where="data.sources",
            expected="an object, a folder or a glob that may be read",
            fix="check the path, the credentials, and AWS_ENDPOINT_URL for a store other than Amazon's",
        ) from error


# ------------------------------------------------------------------------------------------------------------ databases


def _from_database(url: str, query: str | None) -> Path:
    """The result as JSON Lines, a row a line, in the order that the query gives. Without its password in any message."""
    if not query:
        raise _no_rows("there is no query", "data.sources: [{path: ..., query: SELECT ...}]")
    if not ASKS.match(query):
        raise _no_rows(f"{query[:60]!r} does more than ask", "begin with SELECT, WITH, VALUES or TABLE")
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise _no_rows(
            f"there is no file {url.removeprefix('sqlite:///')}", "check the path; sqlite:////... is an absolute one"
        )
    try:
        import sqlalchemy
    except ImportError as error:
        raise _no_rows(
            f"SQLAlchemy cannot be imported: {error}", "pip install sqlalchemy, and the driver of the database"
        ) from error
    try:
        return _kept("query.jsonl", lambda out: _write_result(sqlalchemy, url, query, out))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        why = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise _no_rows(why[:300].replace(url, "the database"), "check the query, the URL and the driver") from error


def _write_result(sqlalchemy: Any, url: str, query: str, out: BinaryIO) -> None:
    import orjson

    engine = sqlalchemy.create_engine(url)
    if engine.dialect.name == "sqlite":
        sqlalchemy.event.listen(engine, "connect", lambda connection, record: connection.set_authorizer(_reads_only))
    try:
        # Never committed: what a query changes on its way is undone.
        with engine.connect().execution_options(stream_results=True, yield_per=FETCHED_ROWS) as connection:
            for row in connection.execute(sqlalchemy.text(query)).mappings():
                out.write(orjson.dumps(dict(row), default=_plain, option=orjson.OPT_APPEND_NEWLINE))
    except TypeError as error:
        raise _no_rows(str(error), "cast the column to text in the query") from error
    finally:
        engine.dispose()


def _reads_only(action: int, one: str | None, other: str | None, *place: str | None) -> int:
    """SQLite asks before each thing that a statement does: reading and computing are all that rows need."""
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
    is_call = action == sqlite3.SQLITE_FUNCTION and other not in (
        "load_extension",
        "fts3_tokenizer",
        "writefile",
        "edit",
    )
    return sqlite3.SQLITE_OK if action in allowed or is_call else sqlite3.SQLITE_DENY


def _plain(value: Any) -> Any:
    """Decimals, dates, intervals as text; bytes are no text."""
    if isinstance(value, (bytes, memoryview)):
        raise TypeError("a column holds bytes")
    return str(value)


def _no_rows(why: str, fix: str) -> DataError:
    return DataError(
        "DAT-039",
        f"the database gives no rows: {why}",
        where="data.sources.query",
        expected="a query whose result are the rows",
        fix=fix,
    )


# ---------------------------------------------------------------------------------------------------------------- cache


def _kept(name: str, write: Callable[[BinaryIO], None]) -> Path:
    """What `write` writes, as a file called `name` in a folder named by its content."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith" / "sources"
    cache.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=cache, prefix="part-")
    try:
        with os.fdopen(handle, "w+b") as out:
            write(out)
            out.seek(0)
            digest = hashlib.file_digest(out, "sha256").hexdigest()
        path = cache / digest[:20] / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            os.replace(aside, path)
        return path
    finally:
        Path(aside).unlink(missing_ok=True)
