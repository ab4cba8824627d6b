"""Good files of every kind, damaged at random, through the reader and the formats: no traceback, hang or unbounded memory.

    python benchmarks/fuzz.py                     100,000 cases, into results/fuzz.json
    python benchmarks/fuzz.py --cases 25000 --start 25000 --add        a slice, added to what is stored
    python benchmarks/fuzz.py --cases 2000 --start 40000 --no-store

A case is its number: what it damages and how follow from that alone, so a failing one is run again by --start N --cases 1.
Cases run in processes of their own with a limit of memory; one that takes longer than LIMIT_S counts as a hang.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

LIMIT_S = 5
MEMORY_BYTES = 3 * 1024**3  # address space above what the libraries take
SLICE = 500
RARE = 20  # of so many cases of a kind that takes a library's engine (Parquet), one is run

CHAT = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n} + {n}?"}, {"role": "assistant", "content": f"{n + n}. ü 漢字 🍕"}]}
    for n in range(4)
]  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2, 3]}'}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
    }
]
MIXED = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "add"}]}, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "6", "tool_call_id": "c1"}, {"role": "assistant", "content": "six", "weight": 1, "reasoning_content": "1+2+3"}], "tools": TOOLS, "score": 0.5},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, {"from": "observation", "value": "[]"}, {"from": "gpt", "value": "done"}], "tools": json.dumps(TOOLS), "system": "s"},
    {"instruction": "Translate", "input": "tree", "output": "Baum", "history": [["a", "b"]]},
    {"prompt": "q", "completion": "a", "id": 12345678901234567},
    {"text": "Only a text, with a \\u0022 and \"quotes\"."},
]  # fmt: skip
JUDGED = [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True},
    {"instruction": "q", "completions": [{"response": "a", "overall_score": 7.5}, {"response": "b", "overall_score": 2}]},
]  # fmt: skip
NASTY = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"'", b"\\", b"\\ud800", b"\\u0000", b"{", b"}",
    b"[", b"]", b",", b":", b"null", b"NaN", b"1e999", b"9" * 40, b"-0", b'{"a":1,"a":2}', b"[" * 80, b"{" * 300, b"//", b"\xe2\x80\xa8", b"\x1f\x8b",
    b"PK\x03\x04", b"true", b'"messages"', b'"role"', b'"chosen"', b'"label"', b";", b"\t", b" " * 50, b"x" * 3000, b'\\"', b"\\u0022",
)  # fmt: skip


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(delimiter: str) -> bytes:
    lines = ["prompt,completion,score", '"What, is ""this""?",A tree,1', "two\u00e4,2,0.5", '"over\ntwo lines",b,3']
    return "\n".join(line.replace(",", delimiter) for line in lines).encode() + b"\n"


def columnar(write: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    rows = pa.Table.from_pylist(CHAT * 3)
    if write == "parquet":
        out = io.BytesIO()
        pyarrow.parquet.write_table(rows, out, row_group_size=5)
        return out.getvalue()
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_file if write == "arrow" else pa.ipc.new_stream)(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def zst(data: bytes) -> bytes:
    import pyarrow as pa

    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


def kinds() -> dict[str, tuple[bytes, Any]]:
    """Name of a file -> its plain content, and how it is packed."""
    everything = CHAT + MIXED + JUDGED
    return {
        "chat.jsonl": (jsonl(CHAT), None),
        "mixed.jsonl": (jsonl(MIXED), None),
        "judged.jsonl": (jsonl(JUDGED), None),
        "array.json": (json.dumps(everything, indent=1).encode(), None),
        "nested.json": (json.dumps({"meta": {"n": 1}, "data": {"rows": CHAT}}).encode(), None),
        "table.csv": (table(","), None),
        "table.tsv": (table("\t"), None),
        "lines.txt": ("One line.\n\nAnother, with ü.\n".encode() * 3, None),
        "packed.jsonl.gz": (jsonl(CHAT), gzip.compress),
        "packed.jsonl.bz2": (jsonl(CHAT), bz2.compress),
        "packed.jsonl.zst": (jsonl(CHAT), zst),
        "array.json.gz": (json.dumps(everything).encode(), gzip.compress),
        "rows.arrow": (columnar("arrow"), None),
        "stream.arrow": (columnar("stream"), None),
        "rows.parquet": (columnar("parquet"), None),
    }


def damage(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice((1, 4, 40, 400)))
        match rng.randrange(7):
            case 0 if data:
                place = rng.randrange(len(data))
                data = data[:place] + bytes((data[place] ^ (1 << rng.randrange(8)),)) + data[place + 1 :]
            case 1:
                data = data[:place] + rng.choice(NASTY) + data[place:]
            case 2:
                data = data[:place] + rng.choice(NASTY) + data[end:]
            case 3:
                data = data[:place] + data[end:]
            case 4:
                data = data[:place]
            case 5:
                other = rng.randrange(len(data) + 1)
                data = data[:other] + data[place:end] + data[other:]
            case _:
                data = data[:place] + rng.randbytes(end - place) + data[end:]
    return data


def case(number: int, files: dict[str, tuple[bytes, Any]], folder: Path) -> tuple[str, Path]:
    """Writes the damaged file of a case; returns its kind and path."""
    rng = random.Random(number)
    name = list(files)[number % len(files)]
    plain, pack = files[name]
    if pack is None:
        data = damage(plain, rng)
    else:
        data = pack(damage(plain, rng)) if rng.random() < 0.5 else damage(pack(plain), rng)
    path = folder / name
    path.write_bytes(data)
    return name, path


def judge(path: Path, told: Counter[str]) -> None:
    """Reads a file to its end. Raises AssertionError for an answer without code or place, and whatever escapes."""
    import orjson

    from tunesmith.errors import TunesmithError
    from tunesmith.stages.prepare.reading.reader import Bad, parts_of, read_part
    from tunesmith.text.example import Example
    from tunesmith.text.formats import FormatProblem, to_columns
    from tunesmith.text.keys import content_key, prompt_key

    try:
        for start, end in parts_of(path, 700):
            for row in read_part(path, start, end):
                if isinstance(row, Bad):
                    expect(all((row.code, row.what, row.expected, row.fix)) and row.position >= 0, row)
                    expect(len(row.what) < 2000, row)
                    told[row.code] += 1
                    continue
                try:
                    form, roles, contents, extra, meta = to_columns(row.value)
                except FormatProblem as problem:
                    expect(all((problem.code, problem.what, problem.expected, problem.fix)), problem)
                    told[problem.code] += 1
                    continue
                told["rows"] += 1
                content_key(roles, contents, extra)
                prompt_key(roles, contents, extra)
                again = orjson.loads(orjson.dumps([roles, contents, extra]))
                expect(Example.from_columns(*again, meta).to_columns() == (roles, contents, extra, meta), form)
        told["rows_at_once"] += read_at_once(path)
    except TunesmithError as error:
        expect(all((error.problems[0].what, error.problems[0].fix)) and path.name in str(error), error)
        told[error.code] += 1


def read_at_once(path: Path) -> int:
    """Rows that are parsed into columns many at once, each compared with the same row read by itself; how many these are."""
    import orjson

    from tunesmith.stages.prepare.alike import Alike, Reader
    from tunesmith.stages.prepare.reading.reader import parts_of, read_part
    from tunesmith.text.formats import to_columns
    from tunesmith.text.keys import content_key, prompt_key

    count = 0
    for start, end in parts_of(path, 700):
        alone = {row.position: row for row in read_part(path, start, end)}
        for found in read_part(path, start, end, take=Reader("auto")):
            if not isinstance(found, Alike):
                continue
            count += len(found)
            contents, turns = found.contents.to_pylist(), found.turns.tolist()
            for place, offset in enumerate(found.offsets.tolist()):
                here = slice(turns[place], turns[place + 1])
                columns = found.format, found.roles[here].tolist(), contents[here], None
                row = alone[found.position + place]
                form, *others, meta = to_columns(row.value)
                expect((row.offset, form, *others) == (offset, *columns), row)
                expect(meta == (orjson.loads(found.metas[place]) if found.metas else None), row)
                expect(found.keys[place].as_py() == content_key(*others), row)
                expect(found.prompt_keys[place].as_py() == prompt_key(*others), row)
                expect(found.characters[place] == sum(map(len, contents[here])), row)
    return count


def expect(holds: bool, told: Any) -> None:
    if not holds:
        raise AssertionError(told)


def run_slice(numbers: range, queue: Any) -> None:
    """In a process of its own. Tells (what, detail) for each failure, then the counts."""
    files = kinds()
    told: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    slowest = 0.0
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(Path(folder), files)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        for number in numbers:
            name = list(files)[number % len(files)]
            if name.endswith(".parquet") and (number // len(files)) % RARE:
                number = -number - 1  # another kind instead, so that the number of cases holds
            queue.put(("at", number))
            name, path = case(number, files, Path(folder)) if number >= 0 else _instead(number, files, Path(folder))
            by_kind[name] += 1
            begin = time.monotonic()
            signal.alarm(LIMIT_S)
            try:
                judge(path, told)
            except BaseException:  # a panic of a Rust library is no Exception
                queue.put(("failed", (number, name, traceback.format_exc()[-3000:])))
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put(("done", (dict(told), dict(by_kind), slowest, peak)))


def _instead(number: int, files: dict[str, tuple[bytes, Any]], folder: Path) -> tuple[str, Path]:
    few = {name: content for name, content in files.items() if not name.endswith(".parquet")}
    return case(-number - 1, few, folder)


def _warm_up(folder: Path, files: dict[str, tuple[bytes, Any]]) -> None:
    """Loads what reading loads, before memory is limited."""
    for name, (plain, pack) in files.items():
        path = folder / name
        path.write_bytes(pack(plain) if pack else plain)
        told: Counter[str] = Counter()
        judge(path, told)
        expect(told.keys() <= {"rows", "rows_at_once"}, (name, told))


def _too_slow(signum: int, frame: Any) -> None:
    raise TimeoutError(f"longer than {LIMIT_S} s")


def run(start: int, cases: int, workers: int) -> dict[str, Any]:
    """Cases start .. start + cases, in slices. Returns the figures."""
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {"cases": 0, "failures": [], "slowest_s": 0.0, "peak_rss_mib": 0.0}
    codes: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    slices = [range(at, min(at + SLICE, start + cases)) for at in range(start, start + cases, SLICE)]
    running: list[tuple[Any, Any, dict[str, Any]]] = []
    while slices or running:
        while slices and len(running) < workers:
            queue = context.Queue()
            process = context.Process(target=run_slice, args=(slices[0], queue))
            process.start()
            running.append(
                (process, queue, {"numbers": slices.pop(0), "at": None, "since": time.monotonic(), "done": False})
            )
        for entry in list(running):
            process, queue, state = entry
            while not queue.empty() or (
                not process.is_alive() and not state["done"] and state.setdefault("grace", 20) > 0
            ):
                try:
                    kind, told = queue.get(timeout=0.1)
                except Exception:  # the queue of a process that died
                    state["grace"] = state.get("grace", 20) - 1
                    continue
                if kind == "at":
                    state["at"], state["since"] = told, time.monotonic()
                elif kind == "failed":
                    figures["failures"].append(told)
                else:
                    state["done"] = True
                    codes.update(told[0])
                    by_kind.update(told[1])
                    figures["slowest_s"] = max(figures["slowest_s"], told[2])
                    figures["peak_rss_mib"] = max(figures["peak_rss_mib"], told[3] / 2**20)
            hung = time.monotonic() - state["since"] > 12 * LIMIT_S
            if state["done"] or hung or not process.is_alive():
                if not state["done"]:
                    how = "hung" if hung else f"died (exit code {process.exitcode})"
                    figures["failures"].append((state["at"], "", how))
                    process.kill()
                process.join()
                figures["cases"] += len(state["numbers"]) if state["done"] else 0
                running.remove(entry)
        time.sleep(0.02)
    figures["codes"] = dict(sorted(codes.items(), key=lambda pair: -pair[1]))
    figures["by_kind"] = dict(by_kind)
    figures["slowest_s"] = round(figures["slowest_s"], 3)
    figures["peak_rss_mib"] = round(figures["peak_rss_mib"])
    return figures


def added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The figures of two slices together."""
    out = dict(now)
    for name in ("cases", "failures", "starts"):
        out[name] = before[name] + now[name]
    for name in ("slowest_s", "peak_rss_mib"):
        out[name] = max(before[name], now[name])
    for name in ("codes", "by_kind"):
        counts = Counter(before[name]) + Counter(now[name])
        out[name] = dict(counts.most_common())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--add", action="store_true", help="to the cases that are stored")
    parser.add_argument("--no-store", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.start, arguments.cases, arguments.workers)
    for failure in figures["failures"][:10]:
        print(*failure, sep="\n", file=sys.stderr)
    if not arguments.no_store:
        from record import RESULTS, store

        told = {"limit_s": LIMIT_S, **figures, "failures": len(figures["failures"]), "starts": [arguments.start]}
        stored = RESULTS / "fuzz.json"
        store("fuzz", added(json.loads(stored.read_text()), told) if arguments.add and stored.exists() else told)
    else:
        print(json.dumps({**figures, "failures": len(figures["failures"])}))
    sys.exit(bool(figures["failures"]))


if __name__ == "__main__":
    main()
