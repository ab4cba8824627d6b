"""The kinds of bad input, each through the real reader and formats (or the stage that answers): code, place, next move.

    python benchmarks/bad_rows.py        into results/bad-rows.json

An answer is a problem of a row (it stops the training unless the recipe sets bad rows apart), a refusal of the file, a
fact that is counted, or acceptance where nothing is wrong. What the reader cannot know (lengths in tokens, twins, secrets)
is answered by later parts of preparation; those kinds run a whole preparation on the built-in model.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz import jsonl, zst

GOOD = b'{"prompt": "q", "completion": "a"}'
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


class Answer(NamedTuple):
    """code: of the problem, or the name of a counted fact, or "accepted". place: file:position[:column]."""

    code: str
    place: str
    what: str
    expected: str = ""
    fix: str = ""


def read(path: Path, **how: Any) -> tuple[list[Answer], list[Any], Counter[str]]:
    """(problems, rows that were taken, facts) of a file."""
    from tunesmith.errors import TunesmithError
    from tunesmith.stages.prepare.reading.reader import Bad, How, files_of, read_rows
    from tunesmith.text.formats import FormatProblem, learnable, to_columns

    problems, rows, facts = [], [], Counter()
    try:
        for file in files_of(str(path)):
            for row in read_rows(file, How(**how), facts):
                place = f"{file.name}:{row.position}"
                if isinstance(row, Bad):
                    column = f":{row.column}" if row.column else ""
                    problems.append(Answer(row.code, place + column, row.what, row.expected, row.fix))
                    continue
                try:
                    rows.append(learnable(to_columns(row.value)))
                except FormatProblem as problem:
                    problems.append(Answer(problem.code, place, problem.what, problem.expected, problem.fix))
    except TunesmithError as error:
        told = error.problems[0]
        problems.append(Answer(told.code, path.name, told.what, told.expected, told.fix))
    return problems, rows, facts


def chat(*turns: dict[str, Any], **columns: Any) -> bytes:
    return jsonl([{"messages": list(turns), **columns}])


def said(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, REPLY = said("user", "q"), said("assistant", "a")
CALL = {"type": "function", "function": {"name": "f", "arguments": "{not json"}}


def between(line: bytes) -> bytes:
    """A bad line between two good ones."""
    return GOOD + b"\n" + line + b"\n" + GOOD + b"\n"


# number in the list of kinds -> (what, file name, bytes, what must answer, rows that must survive)
BY_READER: list[tuple[str, str, str, bytes, str, int]] = [
    ("1", "broken JSON between good lines", "a.jsonl", between(b'{"prompt": nope}'), "DAT-018", 2),
    ("2", "last line cut off", "a.jsonl", GOOD + b'\n{"prompt": "cu', "DAT-016", 1),
    ("3", "JSON Lines that are one array", "a.jsonl", b"[" + GOOD + b",\n" + GOOD + b"]", "array_in_lines", 2),
    ("4", "UTF-8 byte order mark", "a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n", "byte_order_mark", 1),
    ("5", "CRLF, and a \\r inside content", "a.jsonl", GOOD + b'\r\n{"text": "a\\rb"}\r\n', "accepted", 2),
    ("6", "UTF-16", "a.jsonl", GOOD.decode().encode("utf-16"), "DAT-005", 0),
    ("6b", "UTF-16 without a mark", "a.jsonl", GOOD.decode().encode("utf-16-le"), "DAT-005", 0),
    ("7", "invalid UTF-8 bytes", "a.jsonl", between(b'{"text": "a\xff"}'), "DAT-013", 2),
    ("8", "Latin-1 text", "a.jsonl", between(b'{"text": "caf\xe9 au lait"}'), "DAT-013", 2),
    ("9", "encodings that change from line to line", "a.jsonl", between(b'{"text": "na\xefve"}') + '{"text": "naïve"}\n'.encode(), "DAT-013", 3),
    ("10", "raw NUL", "a.jsonl", between(b'{"text": "a\x00b"}'), "DAT-014", 2),
    ("13", "lone surrogate", "a.jsonl", between(b'{"text": "\\ud800"}'), "DAT-019", 2),
    ("14", "overlong form", "a.jsonl", between(b'{"text": "\xc0\xaf"}'), "DAT-013", 2),
    ("14b", "CESU-8", "a.jsonl", between(b'{"text": "\xed\xa0\xbc\xed\xbd\x95"}'), "DAT-013", 2),
    ("12", "raw control character in a text", "a.jsonl", between(b'{"text": "a\x01b"}'), "DAT-035", 2),
    ("12b", "U+2028 inside a text is no line end", "a.jsonl", '{"text": "a\u2028b"}\n'.encode(), "accepted", 1),
    ("16", "a number as content", "a.jsonl", between(chat(said("user", 3), REPLY).strip()), "TXT-008", 2),
    ("17", "null content", "a.jsonl", chat(ASK, said("assistant", None)), "TXT-008", 0),
    ("17b", "null content beside a tool call", "a.jsonl", chat(ASK, said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])), "accepted", 1),
    ("18", "an image among the parts of content", "a.jsonl", chat(said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), REPLY), "TXT-007", 0),
    ("18b", "text parts only", "a.jsonl", chat(said("user", [{"type": "text", "text": "q"}]), REPLY), "accepted", 1),
    ("18c", "a column of images", "a.jsonl", chat(ASK, REPLY, images=["1.png"]), "TXT-041", 0),
    ("19", "messages is a text", "a.jsonl", b'{"messages": "[]"}\n', "TXT-004", 0),
    ("20", "messages is empty", "a.jsonl", b'{"messages": []}\n', "TXT-012", 0),
    ("21", "another schema on one row", "a.jsonl", between(b'{"frage": "q", "antwort": "a"}'), "TXT-001", 2),
    ("23", "a key twice", "a.jsonl", between(b'{"prompt": "q", "completion": "a", "prompt": "z"}'), "DAT-025", 2),
    ("24", "NaN", "a.jsonl", between(b'{"text": "a", "score": NaN}'), "DAT-020", 2),
    ("25", "10^40", "a.jsonl", between(b'{"text": "a", "id": 1' + b"0" * 40 + b"}"), "DAT-026", 2),
    ("25b", "1e999", "a.jsonl", between(b'{"text": "a", "id": 1e999}'), "DAT-026", 2),
    ("26", "nested 5,000 deep", "a.jsonl", between(b"[" * 5000 + b"]" * 5000), "DAT-012", 2),
    ("27", "a line of 20 MB", "a.jsonl", between(b'{"text": "' + b"x" * 20_000_000 + b'"}'), "DAT-011", 2),
    ("29", "blank lines", "a.jsonl", GOOD + b"\n\n  \n" + GOOD + b"\n", "blank_lines", 2),
    ("32", "two objects on one line", "a.jsonl", between(GOOD + GOOD), "DAT-015", 2),
    ("33", "quotes of Python", "a.jsonl", between(b"{'text': 'a'}"), "DAT-017", 2),
    ("34", "a comment", "a.jsonl", between(b"// nothing"), "DAT-034", 2),
    ("35", "the assistant first", "a.jsonl", chat(REPLY, ASK), "TXT-014", 0),
    ("35b", "system in the middle", "a.jsonl", chat(ASK, said("system", "s"), REPLY), "TXT-015", 0),
    ("35c", "nothing is answered", "a.jsonl", chat(ASK), "TXT-013", 0),
    ("36", "an unknown role", "a.jsonl", chat(ASK, said("bot", "a")), "TXT-011", 0),
    ("44", "an empty answer", "a.jsonl", chat(ASK, said("assistant", "")), "TXT-016", 0),
    ("44b", "an answer of blanks", "a.jsonl", chat(ASK, said("assistant", " \n")), "TXT-016", 0),
    ("47", "chosen = rejected", "a.jsonl", jsonl([{"prompt": "q", "chosen": "a", "rejected": "a"}]), "TXT-044", 0),
    ("47b", "rejected is missing", "a.jsonl", jsonl([{"prompt": "q", "chosen": "a"}]), "TXT-043", 0),
    ("47c", "different prompts", "a.jsonl", jsonl([{"chosen": [ASK, REPLY], "rejected": [said("user", "z"), REPLY]}]), "TXT-045", 0),
    ("47d", "a pair where a chat is learned", "a.jsonl", jsonl([{"prompt": "q", "chosen": "a", "rejected": "b"}]), "TXT-048", 0),
    ("48", "arguments of a call are not JSON", "a.jsonl", chat(ASK, said("assistant", "", tool_calls=[CALL])), "TXT-006", 0),
    ("48b", "tools are not a list", "a.jsonl", chat(ASK, REPLY, tools={"a": 1}), "TXT-042", 0),
    ("50", "gzip that ends too early", "a.jsonl.gz", gzip.compress(jsonl([{"text": os.urandom(64).hex()} for _ in range(4000)]))[:-3000], "DAT-010", -1),
    ("50b", "bzip2 that ends too early", "a.jsonl.bz2", bz2.compress(between(GOOD))[:-8], "DAT-010", -1),
    ("50c", "zstd that ends too early", "a.jsonl.zst", zst(jsonl([{"text": os.urandom(64).hex()} for _ in range(9000)]))[:-3000], "DAT-010", -1),
    ("51", "gzip with something behind it", "a.jsonl.gz", gzip.compress(GOOD + b"\n") + b"<html>", "DAT-027", 1),
    ("52", "a gzip that unpacks to a thousand times its size", "a.txt.gz", gzip.compress(b"a" * 2**24) * 20, "DAT-028", -1),
    ("53", "a .jsonl that is gzip", "a.jsonl", gzip.compress(GOOD), "DAT-004", 0),
    ("53b", "a .jsonl that is a login page", "a.jsonl", b"\n<!DOCTYPE html><html></html>", "DAT-004", 0),
    ("53c", "a .jsonl that is zip", "a.jsonl", b"PK\x03\x04abc", "DAT-004", 0),
    ("53d", "a pointer of Git LFS", "a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "DAT-004", 0),
    ("54", "CSV: quotes not balanced", "a.csv", b'prompt,completion\nq,"a\nz,b\n', "DAT-021", 0),
    ("54b", "CSV: semicolons", "a.csv", b"prompt;completion\nq;a\n", "separator_semicolon", 1),
    ("54c", "CSV: a line break in a cell", "a.csv", b'prompt,completion\n"q\nq",a\n', "accepted", 1),
    ("54d", "CSV: ragged", "a.csv", b"prompt,completion\nq\nq,a\n", "DAT-023", 1),
    ("54e", "CSV: a column twice", "a.csv", b"prompt,prompt\nq,a\n", "DAT-029", 0),
    ("54f", "CSV: no header", "a.csv", b"What is it?,A tree\nWhat else?,A house\n", "TXT-001", 0),
    ("54g", "CSV: bytes that are not UTF-8", "a.csv", b"prompt,completion\nq,caf\xe9\nq,a\n", "DAT-022", 1),
    ("55", "CSV cells NA, null, 1e5, 007", "a.csv", b"prompt,completion\nNA,null\n1e5,007\n", "accepted", 2),
    ("15", "NFD, zero-width, right-to-left marks are kept", "a.jsonl", jsonl([{"text": "e\u0301 \u200b \u202e"}]), "accepted", 1),
    ("22", "columns that nothing reads", "a.jsonl", jsonl([{"text": "a", "extra": 1}]), "others", 1),
    ("30", "an empty file", "a.jsonl", b"", "no_rows", 0),
    ("31", "nothing but white space", "a.jsonl", b" \n\n\t\n", "no_rows", 0),
]  # fmt: skip


def by_reader(folder: Path) -> list[dict[str, Any]]:
    from tunesmith.text.formats import Evidence

    told = []
    for number, what, name, data, wanted, survive in BY_READER:
        path = folder / name
        path.write_bytes(data)
        problems, rows, facts = read(path)
        if wanted == "accepted":
            found = Answer("accepted", "", "read as it is") if not problems else problems[0]
        elif wanted in facts:
            found = Answer(wanted, name, f"counted: {facts[wanted]}")
        elif wanted == "others":
            evidence = Evidence()
            evidence.note(rows[0].format, json.loads(data))
            found = Answer("others", name, f"counted: {evidence.to_json()[rows[0].format]['others']}")
        elif wanted == "no_rows":
            found = Answer(
                "no_rows" if not problems and not rows else "?",
                name,
                "the preparation stops with DAT-031 and the file's name",
            )
        else:
            found = next(
                (answer for answer in problems if answer.code == wanted),
                problems[0] if problems else Answer("none", "", ""),
            )
        ok = found.code == wanted and (survive < 0 or len(rows) == survive)
        told.append(
            {
                "kind": number,
                "input": what,
                "answered_by": "reader",
                "ok": ok,
                **found._asdict(),
                "rows_kept": len(rows),
            }
        )
        path.unlink()
    return told


# ------------------------------------------------------------------------------------------- what needs more than bytes


def special(folder: Path) -> list[dict[str, Any]]:
    """Files that are none, that change, that are huge or of another library's format."""
    return [
        _judged(number, what, wanted, make(folder))
        for number, what, wanted, make in (
            ("28", "2 GB in one line, in at most 200 MB", "DAT-011", _huge_line),
            ("56", "Parquet cut short", "DAT-006", _cut_parquet),
            ("56b", "Parquet: a number where text is expected", "TXT-008", _parquet_types),
            ("56c", "Arrow cut short", "DAT-037", _cut_arrow),
            ("57", "the file changes while it is read", "DAT-008", _changing),
            ("58", "a pipe", "DAT-003", _pipe),
            ("58b", "a device", "DAT-003", lambda _: read(Path("/dev/zero"))[0]),
            ("58c", "a loop of links", "DAT-003", _loop),
            ("58d", "no right to read", "DAT-003", _forbidden),
            ("58e", "a name with a line break", "DAT-018", _odd_name),
            ("58f", "an empty folder", "DAT-001", _empty_folder),
            ("21b", "a document with several lists", "DAT-009", _several_lists),
        )
    ]


def _judged(number: str, what: str, wanted: str, problems: list[Answer]) -> dict[str, Any]:
    found = next(
        (answer for answer in problems if answer.code == wanted), problems[0] if problems else Answer("none", "", "")
    )
    return {"kind": number, "input": what, "answered_by": "reader", "ok": found.code == wanted, **found._asdict()}


def _huge_line(folder: Path) -> list[Answer]:
    """A sparse file, read in a process of its own whose peak is looked at."""
    path = folder / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(2 * 10**9)
    done = subprocess.run(
        [sys.executable, __file__, "--huge", str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    path.unlink()
    return [Answer(*json.loads(done.stdout))]


def _read_huge(path: str) -> None:
    import resource

    read(Path(__file__))  # what reading loads is no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers, _, _ = read(Path(path))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    first = answers[0]._replace(what=f"{answers[0].what}; memory grew by {grown:.0f} MiB")
    print(json.dumps(first if grown < 200 else first._replace(code="memory")))


def _cut_parquet(folder: Path) -> list[Answer]:
    import pyarrow as pa
    import pyarrow.parquet

    path = folder / "cut.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["a"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    return read(path)[0]


def _parquet_types(folder: Path) -> list[Answer]:
    import pyarrow as pa
    import pyarrow.parquet

    path = folder / "types.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": ["a", "b"], "completion": [1, 2]}), path)
    return read(path)[0]


def _cut_arrow(folder: Path) -> list[Answer]:
    import pyarrow as pa

    path = folder / "cut.arrow"
    table = pa.table({"text": ["a"] * 100})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes()[:-40])
    return read(path)[0]


def _changing(folder: Path) -> list[Answer]:
    from tunesmith.errors import DataError
    from tunesmith.stages.prepare.reading.reader import read_rows

    path = folder / "changing.jsonl"
    path.write_bytes(between(GOOD))
    rows = read_rows(path)
    next(rows)
    with path.open("ab") as file:
        file.write(GOOD)
    try:
        list(rows)
    except DataError as error:
        told = error.problems[0]
        return [Answer(told.code, path.name, told.what, told.expected, told.fix)]
    return []


def _pipe(folder: Path) -> list[Answer]:
    path = folder / "pipe.jsonl"
    os.mkfifo(path)
    return read(path)[0]


def _loop(folder: Path) -> list[Answer]:
    path = folder / "loop.jsonl"
    path.symlink_to(path)
    return read(path)[0]


def _forbidden(folder: Path) -> list[Answer]:
    """A folder in the place of a file, which nobody can read as one, root included."""
    from tunesmith.errors import DataError
    from tunesmith.stages.prepare.reading.reader import read_rows

    path = folder / "folder.jsonl"
    path.mkdir()
    try:
        list(read_rows(path))
    except DataError as error:
        told = error.problems[0]
        return [Answer(told.code, path.name, told.what, told.expected, told.fix)]
    return []


def _odd_name(folder: Path) -> list[Answer]:
    path = folder / "a\nb.jsonl"
    path.write_bytes(b"nope\n")
    return read(path)[0]


def _empty_folder(folder: Path) -> list[Answer]:
    path = folder / "empty"
    path.mkdir()
    return read(path)[0]


def _several_lists(folder: Path) -> list[Answer]:
    path = folder / "several.json"
    path.write_bytes(json.dumps({"train": [json.loads(GOOD)], "other": [json.loads(GOOD)]}).encode())
    return read(path)[0]


# --------------------------------------------------------------------------------------- what later parts have to answer


def prepared(
    folder: Path, rows: list[dict[str, Any]], held_out: Sequence[dict[str, Any]] = (), **data: Any
) -> tuple[str, Any, list[dict[str, Any]], Any]:
    """(code of the refusal or "", statistics, ledger, Dataset) of a whole preparation with the built-in model."""
    import tunesmith
    from tunesmith.errors import TunesmithError
    from tunesmith.runs.dataset import Dataset

    (folder / "rows.jsonl").write_bytes(jsonl(rows))
    (folder / "test.jsonl").write_bytes(jsonl(list(held_out)))
    sources = [
        {"path": "rows.jsonl", "split": "train"},
        *([{"path": "test.jsonl", "split": "test"}] if held_out else []),
    ]
    filters = {"length": {"min_characters": 1, "max_characters": 10**6}, **data.pop("filters", {})}
    recipe = {"data": {"sources": sources, "filters": filters, **data}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    try:
        outcome = tunesmith.prepare(folder / "recipe.yaml", workspace=folder / "work")
    except TunesmithError as error:
        return error.code, None, [], None
    dataset = Dataset(outcome.run.outputs("prepare")["dataset"].path)
    return "", dataset.statistics, list(dataset.ledger()), dataset


def by_preparation(folder: Path) -> list[dict[str, Any]]:
    rows = [{"prompt": f"What is the number {n}?", "completion": f"It is {n}."} for n in range(20)]
    mark = {
        "role": "user",
        "content": [{"type": "text", "text": "say <|im_"}, {"type": "text", "text": "end|> and <|im_start|>system"}],
    }
    odd = [
        {"prompt": "What is the number 3?", "completion": "It is 3."},  # 21
        {"prompt": "What is the number 4?", "completion": "It is four."},  # 22
        {"prompt": "Ring \x07 and \x00.", "completion": "Ring."},  # 23
        {"prompt": "My key?", "completion": "AKIAQ2WERTY7UIOPASD3"},  # 24
        {"prompt": "Shout.", "completion": "A" * 600},  # 25
        {"messages": [ASK, said("user", "and more"), REPLY]},  # 26
        {"messages": [mark, said("assistant", "<|im_end|> <think> is text")]},  # 27
        {"prompt": " ".join(["long"] * 400), "completion": "Yes."},  # 28
    ]
    code, statistics, ledger, dataset = prepared(
        folder, rows + odd, [rows[0]], max_tokens=256, too_long="truncate", filters={"repetition": {}}
    )
    rules = {entry["position"]: entry["rule"] for entry in ledger if entry["file"] == "rows.jsonl"}
    cleaning = statistics["told"]["cleaning"]["histograms"] if statistics else {}

    def counted(name: str) -> int:
        return sum(cleaning[name]["counts"][1:]) if name in cleaning else 0

    few = prepared(folder, rows[:1])
    places = {"11": 23, "37-41": 27, "35d": 26, "42": 28, "43": 28, "45": 21, "45b": 1, "46": 22, "49": 25, "59": 24}
    found = [
        ("11", "escaped NUL, C0 controls", "cleaning", counted("control_characters") >= 1, "control_characters", "counted; filters.control_characters removes or drops"),
        ("37-41", "control tokens in the text of a user, of an answer, put together from two parts", "encoder", _is_text(dataset, ledger, 27), "text", "encoded as text, no id of a control token"),
        ("35d", "two user turns in a row", "template", rules.get(26) is None, "used", "the template renders them; one that refuses them sets the row apart"),
        ("42", "nothing left to learn behind a long prompt", "assemble", rules.get(28) == "nothing_to_learn", str(rules.get(28)), "in the ledger by row"),
        ("43", "an answer cut by the length", "assemble", bool(statistics) and statistics["over_limit"]["learned_lost"] > 0, "over_limit", "learned tokens lost, p50 and p99, printed"),
        ("45", "a row twice", "duplicates", rules.get(21) == "duplicate", str(rules.get(21)), "in the ledger with the kept twin"),
        ("45b", "a training row that is held out", "leaks", rules.get(1) == "leak", str(rules.get(1)), "in the ledger with the held-out row"),
        ("46", "one prompt, two answers", "duplicates", bool(statistics) and statistics["told"]["conflicts"]["prompts"] >= 1, "conflicts", "counted with places; data.deduplicate.conflicts decides"),
        ("49", "600 times one character", "cleaning", rules.get(25) == "longest_run", str(rules.get(25)), "by filters.repetition, which is off unless asked for"),
        ("59", "a key in an answer", "cleaning", counted("secrets") >= 1, "secrets", "counted; filters.secrets redacts or drops"),
        ("30b", "no row at all", "bad_rows", prepared(folder, [])[0] == "DAT-031", "DAT-031", "names the files"),
        ("60", "one row", "prepare", few[0] == "" and few[1]["used"] == 1, "used", "a Dataset of one row"),
    ]  # fmt: skip
    return [
        {
            "kind": number,
            "input": what,
            "answered_by": stage,
            "ok": bool(ok and not code),
            "code": told,
            "place": f"rows.jsonl:{places[number]}" if number in places else "rows.jsonl",
            "what": how,
        }
        for number, what, stage, ok, told, how in found
    ]


def _is_text(dataset: Any, ledger: list[dict[str, Any]], position: int) -> bool:
    """Whether the only control tokens of a row are those of the template: as many as in a row like it without any in its text."""
    from transformers import AutoTokenizer

    from tunesmith import hub

    if dataset is None:
        return False
    tokenizer = AutoTokenizer.from_pretrained(hub.resolve("builtin:tunesmith-tiny").path)
    special = set(tokenizer.all_special_ids) | {
        id for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    by_row = {entry["position"]: entry for entry in ledger if entry["file"] == "rows.jsonl"}
    counts = []
    for place in (position, 24):  # a prompt and an answer, without control tokens
        row = by_row[place]["row"]
        ids = next(dataset.sequence(n)[0] for n in range(dataset.num_examples) if dataset.row(n) == row)
        counts.append(sum(int(id) in special for id in ids))
    return counts[0] == counts[1]


def main() -> None:
    if "--huge" in sys.argv:
        return _read_huge(sys.argv[-1])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        told = [*by_reader(Path(folder)), *special(Path(folder)), *by_preparation(Path(folder))]
    wrong = [entry for entry in told if not entry["ok"]]
    for entry in wrong:
        print(entry, file=sys.stderr)
    if "--no-store" not in sys.argv:
        from record import store

        for entry in told:  # the temporary folder says nothing
            entry["what"] = entry["what"].replace(f"{folder}/", "")
        store("bad-rows", {"kinds": len(told), "ok": len(told) - len(wrong), "answers": told})
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
