"""The reader: each kind of bad row is named by code and place, and costs no other row."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tunesmith.errors import DataError
from tunesmith.stages.prepare.reader import Bad, Parsed, files_of, read_rows

GOOD = b'{"text": "a"}'


def read(path: Path, data: bytes) -> list[Parsed | Bad]:
    path.write_bytes(data)
    return list(read_rows(path))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"text": nope}', "DAT-018"),
        (b"{'text': 'a'}", "DAT-017"),
        (b'{"text": "a",}', "DAT-018"),
        (b'{"text": "caf\xe9"}', "DAT-013"),
        (b'{"text": "a\x00b"}', "DAT-014"),
        (b'{"text": "\\ud800"}', "DAT-019"),
        (b'{"text": NaN}', "DAT-020"),
        (b'{"text": "a"} {"text": "b"}', "DAT-015"),
        (b"[" * 5000 + b"]" * 5000, "DAT-012"),
        (b'{"text": "' + b"x" * (9 * 1024**2) + b'"}', "DAT-011"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path: Path, line: bytes, code: str) -> None:
    rows = read(tmp_path / "a.jsonl", GOOD + b"\n" + line + b"\n\n" + GOOD + b"\n")
    assert [type(row) for row in rows] == [Parsed, Bad, Parsed]
    assert (rows[1].code, rows[1].position, rows[2].position) == (code, 2, 4)  # type: ignore[union-attr]
    assert rows[1].offset == len(GOOD) + 1
    assert rows[1].fix
    assert rows[1].expected


def test_a_cut_last_line_is_told_apart(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", GOOD + b'\n{"text": "cut')
    assert rows[1].code == "DAT-016"  # type: ignore[union-attr]


def test_byte_order_mark_and_crlf_are_fine(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n")
    assert [row.value for row in rows] == [{"text": "a"}] * 2  # type: ignore[union-attr]


def test_a_broken_element_of_a_json_array_costs_no_other(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.json", b'[{"text": "a [b"}, {"text": nope}, {"text": "c"}]')
    assert [type(row) for row in rows] == [Parsed, Bad, Parsed]
    assert rows[1].position == 1
    assert len(read(tmp_path / "b.json", b'{"data": [{"text": "a"}, {"text": "b"}]}')) == 2


def test_tables_keep_cells_as_text_and_name_ragged_rows(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b'prompt,completion\n"a\nb",007\nx\nNA,1e5\n\xe9,b\n')
    assert [type(row) for row in rows] == [Parsed, Bad, Parsed, Bad]
    assert rows[0].value == {"prompt": "a\nb", "completion": "007"}  # type: ignore[union-attr]
    assert rows[2].value == {"prompt": "NA", "completion": "1e5"}  # type: ignore[union-attr]
    assert read(tmp_path / "b.csv", b"a;b\n1;2\n")[0].value == {"a": "1", "b": "2"}  # type: ignore[union-attr]


def test_a_cut_gzip_gives_what_was_there_and_says_so(tmp_path: Path) -> None:
    data = gzip.compress(b"\n".join([GOOD] * 5000))
    rows = read(tmp_path / "a.jsonl.gz", data[: len(data) // 2])
    assert isinstance(rows[-1], Bad)
    assert rows[-1].code in ("DAT-010", "DAT-016")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [("a.jsonl", b"<html>login</html>", "DAT-004"), ("a.jsonl", b"PK\x03\x04zip", "DAT-004"),
     ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "DAT-005"), ("a.doc", b"x", "DAT-002")],
)  # fmt: skip
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read(tmp_path / name, data)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DAT-001"):
        files_of(str(tmp_path / "none*.jsonl"))


def test_parquet_is_read_in_order(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.value["text"] for row in read_rows(tmp_path / "a.parquet")] == ["a", "b", "c"]  # type: ignore[union-attr]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="DAT-006"):
        list(read_rows(tmp_path / "b.parquet"))
