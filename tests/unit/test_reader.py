"""The reader: each kind of bad row is named by code and place, and costs no other row."""

from __future__ import annotations

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.errors import DataError, QuestionError
from tunesmith.recipe import Recipe, Source
from tunesmith.stages.prepare.bad_rows import bad_rows_error, first_of_each_code
from tunesmith.stages.prepare.reading.reader import Bad, How, Parsed, files_of, parts_of, read_part, read_rows
from tunesmith.stages.prepare.rows import make_part, part_tasks

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


def test_a_damaged_row_group_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"Text number {n} of this file, which says little." for n in range(300)]})
    pq.write_table(table, path, row_group_size=100, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset + column.total_compressed_size // 2
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"DAT-006 .*a\.parquet cannot be read as Parquet, row group 1 of 3 \(rows 100 to 199\): "
    ):
        list(read_rows(path))
    path.write_bytes(data[:-4] + b"????")
    with pytest.raises(DataError, match=r"DAT-006 .*a\.parquet cannot be read as Parquet: "):
        list(read_rows(path))


def test_parts_end_with_lines_and_give_what_the_whole_file_gives(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "ä" * (number % 90)}).encode() for number in range(300)]
    lines[7], lines[40], lines[100] = b"", b'{"text": nope}', b'{"a": 1, "a": 2}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    whole = list(read_rows(tmp_path / "a.jsonl"))
    parts = parts_of(tmp_path / "a.jsonl", 2000)
    assert len(parts) > 5
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    found, before = [], 0
    for part in parts:
        facts: Counter[str] = Counter()
        rows = read_part(tmp_path / "a.jsonl", *part, facts=facts)
        found += [row._replace(position=row.position + before) for row in rows]
        before += facts["lines"]
    assert found == whole
    assert [(row.position, row.code) for row in whole if isinstance(row, Bad)] == [(41, "DAT-018"), (101, "DAT-025")]
    data = (tmp_path / "a.jsonl").read_bytes()
    assert all(data[row.offset :].startswith(lines[row.position - 1]) for row in whole)


def test_packed_files_give_the_same_rows(tmp_path: Path) -> None:
    data = b"".join(b'{"text": "%d"}\n' % number for number in range(5000))
    expected = read(tmp_path / "a.jsonl", data)
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as out:
        out.write(data)
    packed = {
        "gz": gzip.compress(data[:700]) + gzip.compress(data[700:]),
        "bz2": bz2.compress(data),
        "zst": stream.getvalue().to_pybytes(),
    }
    for name, content in packed.items():
        assert read(tmp_path / f"b.jsonl.{name}", content) == expected, name
    padded = read(tmp_path / "c.jsonl.gz", packed["gz"] + b"\0" * 512)
    assert padded == expected, "padding is no fault"


def test_the_list_of_rows_is_found_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"meta": {"n": 1}, "data": {"rows": [{"text": "a"}], "more": [{"text": "b"}]}}))
    with pytest.raises(QuestionError, match=r"data\.rows \(1 rows\), data\.more"):
        list(read_rows(path))
    assert [row.value for row in read_rows(path, How(at="data.more"))] == [{"text": "b"}]
    with pytest.raises(DataError, match="DAT-036"):
        list(read_rows(path, How(at="data.none")))
    path.write_text('{"data": {"rows": [{"text": "a"}, {"text": nope}, {"text": "c", "text": "d"}, {"text": "e"}]}}')
    rows = list(read_rows(path))
    assert [row.code if isinstance(row, Bad) else row.value["text"] for row in rows] == ["a", "DAT-018", "DAT-025", "e"]
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    facts: Counter[str] = Counter()
    assert len(list(read_rows(path, facts=facts))) == 2
    assert facts["lines_in_json"] == 1


def test_columns_that_are_not_named_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "images": ["1.png"]}\n')
    assert [row.value for row in read_rows(tmp_path / "a.jsonl", How(columns=("text",)))] == [{"text": "a"}]


def test_a_key_twice_and_a_number_too_large_are_found_behind_escaped_quotes(tmp_path: Path) -> None:
    good = b'{"text": "\\u0022 \\" 12345678901234567890123", "id": 18446744073709551615}\n'
    twice = b'{"text": "\\u0022\\u0022\\u0022\\u0022", "n": "x", "n": "y"}\n'
    rows = read(tmp_path / "a.jsonl", good * 3 + twice + b'{"n": -9223372036854775809}\n' + good)
    assert [row.code for row in rows if isinstance(row, Bad)] == ["DAT-025", "DAT-026"]
    assert rows[0].value["id"] == 2**64 - 1  # type: ignore[union-attr]


def test_advice_for_foreign_bytes_is_for_the_row_and_not_for_the_file(tmp_path: Path) -> None:
    _, bad = read(tmp_path / "a.jsonl", '{"text": "naïve"}\n'.encode() + b'{"text": "caf\xe9 au lait"}\n')
    assert isinstance(bad, Bad)
    assert "iconv" not in bad.fix
    assert "café au lait" in bad.what


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"]})
    for name, write in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as out, write(out, table.schema) as writer:
            writer.write_table(table)
        assert [row.value for row in read_rows(tmp_path / name)] == [{"text": "a"}, {"text": "b"}]  # type: ignore[union-attr]


def test_a_part_of_rows_refuses_pairs_and_tells_what_was_recognised(tmp_path: Path) -> None:
    lines = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "completion": "a", "id": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder in ("parts", "more"):
        (tmp_path / folder).mkdir()
    (task,), _ = part_tasks([Source(path=str(tmp_path / "a.jsonl"))], tmp_path / "parts")
    facts = make_part(task)
    assert (facts["rows"], facts["bad"], facts["formats"]) == (2, 1, {"prompt_completion": 1})
    assert facts["evidence"]["prompt_completion"]["others"] == {"id": 1}
    (task,), _ = part_tasks(
        [Source(path=str(tmp_path / "a.jsonl"), columns=("prompt", "chosen", "rejected"), format="chosen")],
        tmp_path / "more",
    )
    assert make_part(task)["formats"] == {"chosen": 1}


def test_rows_with_the_same_problem_are_told_of_once_with_their_places() -> None:
    def bad(position: int, what: str = "empty") -> dict:
        return {
            "file": "a.jsonl",
            "position": position,
            "column": 0,
            "code": "TXT-016",
            "what": what,
            "expected": "e",
            "fix": "f",
        }

    spec = Recipe.model_validate({"data": {"sources": [{"path": "a.jsonl"}]}})
    counts, first = first_of_each_code([bad(3), bad(5), bad(8, "other"), bad(9)])
    error = bad_rows_error(spec, counts, first, 20)
    told = [(problem.where, problem.what) for problem in error.problems[:-1]]  # type: ignore[union-attr]
    assert told == [
        ("a.jsonl:3", "empty (4 rows with this code, such as a.jsonl:5)"),
        ("a.jsonl:8", "other (4 rows with this code)"),
    ]
