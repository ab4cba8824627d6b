"""Nothing that is loaded can run code: every case of hostile_corpus.py, each in a process of its own, watched by an audit hook.

    python benchmarks/reliability/hostile.py            all cases, one line each
    python benchmarks/reliability/hostile.py WORD       those with the word in their name

A parent loads the libraries first and forks a process for each case, which arms the hook and then loads what a stranger made.
A case holds when the answer is the expected code (or loading goes well), no process, socket, code of a stranger or file
outside was seen, the secret of another folder stands nowhere in the workspace, and time and memory stayed within bounds.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability.frame import Budget

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from reliability.hostile_corpus import CANARY, MARKER, SECRET, SECRET_TEXT, Case, all_cases  # noqa: E402

PROMISE = "Nothing you load can run code, read or write elsewhere, or fill the machine"
CPU_SECONDS, MEMORY_BYTES = 10.0, 2 * 2**30  # more than the answer to any bomb needs, less than a bomb takes
WALL_SECONDS = 90
LIBRARIES = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), ROOT / "src"
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
CALLS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.utime",
)
UNPICKLED = ("tunesmith", "numpy", "collections", "torch", "builtins", "pathlib", "_codecs", "copyreg")
# What our own commands start: their commit, and a look at processor and GPUs.
OWN_PROCESSES = (
    ("git", "-C"),
    ("lscpu",),
    ("uname", "-p"),
    ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,compute_cap"),
)


def check(budget: Budget) -> dict[str, Any]:
    for found in judged(case.name for case in budget.cases(all_cases())):
        budget.judge(found["case"], found["problem"])
        budget.notes["slowest_cpu_seconds"] = max(budget.notes.get("slowest_cpu_seconds", 0.0), found["seconds"])
        budget.notes["largest_growth_mib"] = max(budget.notes.get("largest_growth_mib", 0), found["mib"])
    return budget.result(PROMISE)


def judged(names: Iterable[str], broken: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """{"case", "problem" (None where it held), "answer", "seconds" of processor time, "mib" of memory} of each case.

    broken: by name of a case, Python that takes a defence away in its process, to see that it is missed.
    """
    command = [sys.executable, str(HERE), "--serve"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "RUST_BACKTRACE": "0",
    }
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, open(Path(folder, "stderr"), "w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, text=True, env=environment, cwd=folder, **pipes) as child:
            try:
                for name in names:
                    print(json.dumps([name, (broken or {}).get(name, "")]), file=child.stdin, flush=True)
                    line = child.stdout.readline() if child.stdout else ""
                    if not line:
                        errors.seek(0)
                        raise RuntimeError(f"the parent of the cases died: {errors.read()[-2000:]}")
                    yield json.loads(line)
            finally:
                child.kill()


# ----------------------------------------------------------------------------------------------- the parent of the cases


def serve() -> None:
    """Loads the libraries, then answers each name of standard input by one line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    preload()
    cases = {case.name: case for case in all_cases()}
    for line in iter(sys.stdin.readline, ""):
        name, broken = json.loads(line)
        out.write(json.dumps(in_a_process(cases[name], broken)) + "\n")
        out.flush()


def preload() -> None:
    """All that a command loads of its own accord, so that what is seen afterwards was caused by the case."""
    import peft
    import pyarrow.compute
    import pyarrow.dataset
    import pyarrow.ipc
    import pyarrow.parquet
    import sqlalchemy.dialects.sqlite
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto
    import transformers.models.gpt_neo.modeling_gpt_neo
    import transformers.models.llama.modeling_llama
    import urllib3.util.connection

    import tunesmith.api
    import tunesmith.modeling.adapters
    import tunesmith.modeling.load
    import tunesmith.stages.prepare.reading.arrow_files
    import tunesmith.stages.prepare.reading.frames
    import tunesmith.stages.prepare.run
    import tunesmith.stages.train.run
    import tunesmith.text.tokenizers

    del peft, pyarrow, sqlalchemy, torch, transformers, tunesmith, urllib3


def in_a_process(case: Case, broken: str = "") -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hostile-") as top:
        folder, outside = Path(top, "case"), Path(top, "outside")
        folder.mkdir()
        outside.mkdir()
        (folder / SECRET).resolve().write_text(SECRET_TEXT)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            exec(broken, {})
            told = inside(case, folder)
            os.write(writer, json.dumps(told).encode()[:60_000])
            os._exit(0)
        os.close(writer)
        told = answer_of(reader, child)
        if (folder / CANARY).resolve().exists():
            told["seen"].append("the canary was written")
        if any(SECRET_TEXT.encode() in data for data in contents(folder / "workspace")):
            told["seen"].append("the secret stands in the workspace")
        return {
            "case": case.name,
            "problem": problem_of(case, told),
            **{k: told[k] for k in ("answer", "seconds", "mib")},
        }


def answer_of(reader: int, child: int) -> dict[str, Any]:
    """What the process told, or how it died."""
    data, deadline = b"", time.monotonic() + WALL_SECONDS
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(reader, 65536)
        if not part:
            break
        data += part
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if data:
        return json.loads(data)
    why = "it did not come to an end" if time.monotonic() >= deadline else f"it died with status {status}"
    return {"answer": why, "seconds": 0.0, "mib": 0, "seen": []}


def contents(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24:
            yield path.read_bytes()


def problem_of(case: Case, told: dict[str, Any]) -> str | None:
    if told["seen"]:
        return "; ".join(told["seen"][:5])
    answer = told["answer"]
    fits = any(answer == wanted or (wanted and answer.startswith(wanted + " ")) for wanted in case.answers)
    if not fits and not (answer == "" and "harmless" in case.answers):
        return f"answered {answer!r}, expected one of {case.answers}"
    if told["seconds"] > CPU_SECONDS:
        return f"took {told['seconds']:.1f} s of processor time"
    return f"took {told['mib']:,} MiB" if told["mib"] * 2**20 > MEMORY_BYTES else None


# ------------------------------------------------------------------------------------------------- the process of a case


def inside(case: Case, folder: Path) -> dict[str, Any]:
    """Makes the files, arms the hook, loads them."""
    workspace = folder / "workspace"
    workspace.mkdir()
    os.environ.update(XDG_CACHE_HOME=str(workspace / "cache"), HF_HOME=str(workspace / "hub"), TMPDIR=str(workspace))
    tempfile.tempdir = str(workspace)
    made = case.make(folder)
    os.chdir(workspace)
    seen: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF)
    limit = virtual_bytes() + 3 * MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(Watch(seen, folder, workspace))
    answer = answered(case, made, workspace)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "answer": answer,
        "seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "mib": (after.ru_maxrss - before.ru_maxrss) // 1024,
        "seen": seen,
    }


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def answered(case: Case, made: Any, workspace: Path) -> str:
    """ "" where it went well; the code and its words; else how it failed, which is never right."""
    from tunesmith.errors import TunesmithError
    from tunesmith.text.templates import TemplateError

    try:
        case.act(made, workspace)
    except TunesmithError as error:
        return f"{error.code} {error.headline[:300]}"
    except TemplateError as error:
        return f"refused {str(error)[:300]}"
    except BaseException as error:
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
    return ""


class Watch:
    """The audit hook: notes what nothing that is merely loaded may do."""

    def __init__(self, seen: list[str], folder: Path, workspace: Path) -> None:
        self.seen, self.folder, self.workspace, self.is_busy = seen, str(folder), str(workspace), False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_busy:
            return
        self.is_busy = True
        try:
            said = self.look(event, arguments)
            if said and len(self.seen) < 20:
                self.seen.append(f"{event}: {said[:200]}")
        finally:
            self.is_busy = False

    def look(self, event: str, arguments: tuple[Any, ...]) -> str:
        """What is wrong with this event; "" for nothing."""
        if event == "exec":
            return self.code(arguments[0])
        if event == "import":
            top = str(arguments[0]).partition(".")[0]
            return str(arguments[0]) if "hostile" in top else ""
        if event == "open":
            return self.opened(*arguments)
        if event in STARTS:
            return "" if self.is_own(arguments) else repr(arguments[:2])
        if event in CALLS:
            return repr(arguments[1:] or arguments)
        if event in CHANGES:
            return "; ".join(
                str(path) for path in arguments if isinstance(path, (str, bytes)) and self.is_outside(path)
            )
        if event == "pickle.find_class":
            return (
                ""
                if str(arguments[0]).split(".")[0] in UNPICKLED and arguments[1] not in ("eval", "exec")
                else repr(arguments)
            )
        if event in ("sqlite3.load_extension", "sqlite3.enable_load_extension"):
            return repr(arguments[1:])
        if event == "ctypes.dlopen":
            return str(arguments[0]) if str(arguments[0]).startswith(self.folder) else ""
        return ""

    def code(self, code: Any) -> str:
        """Code that runs comes from the libraries, from Jinja's compiler, or is made by a library of its own words."""
        if not isinstance(code, types.CodeType):
            return ""
        name = code.co_filename
        if (
            name == "<template>"
            or name.startswith("<frozen")
            or any(name.startswith(str(place)) for place in LIBRARIES)
        ):
            return ""
        if Path(name) == HERE or name.startswith(str(ROOT / "benchmarks")) or name.startswith(str(ROOT / "tests")):
            return ""
        if name.startswith("<") and not holds_marker(code):
            return ""
        return f"code of {name}"

    def opened(self, path: Any, mode: Any, flags: Any) -> str:
        if isinstance(path, int) or path is None:
            return ""
        path = os.path.realpath(os.fsdecode(path))
        if path == os.path.realpath(os.path.join(self.folder, SECRET)):
            return f"read {path}"
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        return f"wrote {path}" if writes and self.is_outside(path) else ""

    def is_outside(self, path: str | bytes) -> bool:
        told = os.path.realpath(os.fsdecode(path))
        return not told.startswith(
            (self.workspace, "/dev/null", "/dev/shm", "/dev/tty", f"/proc/{os.getpid()}/clear_refs")
        )

    @staticmethod
    def is_own(arguments: tuple[Any, ...]) -> bool:
        command = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], (list, tuple)) else ()
        return any(tuple(command[: len(own)]) == own for own in OWN_PROCESSES)


def holds_marker(code: types.CodeType) -> bool:
    texts = [*code.co_names, *(value for value in code.co_consts if isinstance(value, str))]
    inner = (value for value in code.co_consts if isinstance(value, types.CodeType))
    return any(MARKER in text for text in texts) or any(map(holds_marker, inner))


def mutations() -> dict[str, str]:
    """Case -> Python that takes its defence away; the case must then fail. One for each way of seeing."""
    run_it = "lambda files, **_: exec(compile((files.path / 'modeling_hostile.py').read_text(), str(files.path / 'x'), 'exec'))"
    return {
        # seen as code of a stranger that runs
        "model/unknown type": f"import tunesmith.modeling.load as it; it.load_model = {run_it}",
        # seen as a process that starts
        "model/pickle beside safetensors": "import pickle, tunesmith.modeling.load as it; "
        "it.load_model = lambda files, **_: pickle.loads((files.path / 'pytorch_model.bin').read_bytes())",
        # seen as a file outside that is read
        "link/template to a secret": "import tunesmith.hub.files as it; it.refuse_odd_files = lambda path: None",
        # seen as a file outside that is written
        "query/VACUUM INTO 'CANARY'": "import re, sqlite3, tunesmith.stages.prepare.reading.fetch as it; "
        "it.ASKS = re.compile(''); it._reads_only = lambda *_: sqlite3.SQLITE_OK",
        # seen as a connection
        "hub/traversal ..": "import socket, tunesmith.stages.prepare.reading.fetch as it; "
        "it._from_hub = lambda url: socket.create_connection(('127.0.0.1', 9), 0.1)",
        # seen as an answer without a code
        "generation/end tokens": "import tunesmith.text.tokenizers as it; it._stop_ids = lambda *_: {}['x']",
        # seen by time
        "bomb/loops": "import tunesmith.text.sandbox as it; it.STEPS, it.SECONDS, it.OUTPUT = 10**12, 14.0, 10**12",
        # seen by memory
        "rows/Parquet of wide texts": "import tunesmith.stages.prepare.reading.frames as it; "
        "it._refuse_bomb = lambda path: bytearray(b'x' * (3 * 2**30)) and None",
    }


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--serve"]:
        serve()
        return 0
    names = [case.name for case in all_cases() if all(word in case.name for word in words)]
    failed = 0
    for found in judged(names):
        failed += found["problem"] is not None
        mark = "held  " if found["problem"] is None else "FAILED"
        told = found["problem"] or found["answer"] or "loads, and does no harm"
        print(f"{mark} {found['case']}  [{found['seconds']:.2f} s, {found['mib']} MiB]  {told[:300]}", flush=True)
    print(f"{len(names) - failed} of {len(names)} held")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
