"""Rows that are not on the disk: a hub, an object store, a database, each a stand-in on this machine."""

from __future__ import annotations

import contextlib
import gzip
import io
import sqlite3
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, connect
from object_store import ObjectStore

from tunesmith.errors import DataError
from tunesmith.recipe import parse_recipe
from tunesmith.stages.prepare.reading import fetch, files
from tunesmith.stages.prepare.reading.reader import files_of, read_rows

LINE = b'{"text": "x"}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetch.fetched.cache_clear()


def test_a_store_is_listed_and_its_objects_are_read_like_files(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {
        "b/data/a.jsonl": LINE * 3 + b"{no}\n",
        "b/data/sub/b.jsonl.gz": gzip.compress(LINE),
        "b/data/readme.md": b"no rows",
    }
    with ObjectStore(objects) as store:
        for name, value in {
            "AWS_ENDPOINT_URL": store.url,
            "AWS_NO_SIGN_REQUEST": "1",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        found = files_of("s3://b/data/**")
        assert [path.name for path in found] == ["a.jsonl", "b.jsonl.gz"]
        rows = [row for path in found for row in read_rows(path)]
        assert [row.position for row in rows] == [1, 2, 3, 4, 1]
        assert rows[3].code == "DAT-018"  # type: ignore[union-attr]
        assert [path.name for path in files_of(f"{store.url}/b/data/a.jsonl")] == ["a.jsonl"]
        with pytest.raises(DataError, match="DAT-001"):
            files_of("s3://b/none*.jsonl")


def test_a_data_set_of_the_hub_by_name_revision_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server:
        commit = server.publish(
            "datasets/acme/rows", {"train.jsonl": LINE * 2, "data/test.jsonl": LINE, "README.md": b"#"}
        )
        server.publish("datasets/acme/rows", {"train.jsonl": LINE * 5})
        connect(monkeypatch, server.url, tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (newest,) = files_of("hf://datasets/acme/rows")
        assert len(list(read_rows(newest))) == 5
        pinned = files_of(f"hf://datasets/acme/rows@{commit}")
        assert sorted(path.name for path in pinned) == ["test.jsonl", "train.jsonl"]
        (inside,) = files_of(f"hf://datasets/acme/rows@{commit}/data/*.jsonl")
        assert inside.name == "test.jsonl"
        for url, code in (
            ("hf://datasets/acme/none", "DAT-038"),
            ("hf://acme", "DAT-041"),
            ("hf://datasets/acme/rows/x*.csv", "DAT-001"),
        ):
            with pytest.raises(DataError, match=code):
                files_of(url)


def test_a_query_is_a_file_of_rows_and_its_password_stays_out_of_messages(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        database.execute("CREATE TABLE faq (q TEXT, a TEXT, n INTEGER, raw BLOB)")
        database.execute("INSERT INTO faq VALUES ('why', 'because', 9007199254740993, x'00')")
        database.commit()
    url = f"sqlite:///{tmp_path / 'rows.db'}"
    (path,) = files_of(url, "SELECT q AS prompt, a AS completion, n FROM faq")
    assert [row.value for row in read_rows(path)] == [{"prompt": "why", "completion": "because", "n": 9007199254740993}]  # type: ignore[union-attr]
    for query in ("SELECT nothing FROM faq", "SELECT raw FROM faq", None):
        with pytest.raises(DataError, match="DAT-039"):
            files_of(url, query)
    with pytest.raises(DataError, match="DAT-039") as caught:
        files_of("postgresql+nodriver://me:secret@localhost/x", "SELECT 1")
    assert "secret" not in str(caught.value)
    recipe = parse_recipe("data: {sources: [{path: 'sqlite:///rows.db', query: SELECT 1}, '-']}", folder=tmp_path)
    assert [source.path for source in recipe.data.sources] == [url, "-"]


def test_standard_input_is_read_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    files._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINE * 2)))
    (path,) = files_of("-")
    assert files_of("-") == [path]
    assert len(list(read_rows(path))) == 2
    files._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="nothing is piped"):
        files_of("-")
