"""Pure functions of one task over the cores of this machine, or over a Ray cluster: results as they are ready, in any order.

What a task makes depends on the task alone, so the bytes are the same on any number of workers. Local workers are fresh interpreters that import the function's module alone. No fork: tokenizers and torch keep threads. No
`multiprocessing`: its workers run the user's own script again where that has no main guard.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from tunesmith.errors import FileError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

HEAD = struct.Struct("!Q")
ALONE = 1.0  # seconds; a worker takes some tenths to start
EARLY = ("tunesmith.stages.prepare.rows",)  # what a worker imports while nothing is to be done yet


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@dataclass
class Compute:
    """Where parts are made. workers: processes on this machine. threads: of this process instead, for functions that leave the
    interpreter free. cluster: Ray's address instead, "" where Ray shall find it.

    alone: seconds of work that this process rather does itself, in threads, than start workers for it. Leaving its block ends the
    workers, which are started when there is work for more than one.
    """

    workers: int = 1
    cluster: str | None = None
    threads: int = 0
    alone: float = 0.0
    _pool: list[_Worker] = field(default_factory=list, init=False, repr=False, compare=False)

    def __enter__(self) -> Compute:
        return self

    def __exit__(self, *_: object) -> None:
        while self._pool:
            self._pool.pop().close()

    def warm_up(self) -> None:
        """Starts the workers, so that they are ready when there is work."""
        if self.cluster is None and self.workers > 1:
            self._grow(self.workers)

    def preload(self, module: str) -> None:
        """Has the workers import a module while they have nothing else to do."""
        for worker in self._pool:
            worker.load(module)

    def _grow(self, count: int) -> None:
        while len(self._pool) < count:
            self._pool.append(_Worker())

    def spread(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result) of each task, as they finish. One worker or one task: here, in this process.

        function: at the top of a module, of one argument; arguments and results must pickle. Raises what a task raised, and
        FileError DAT-070 where a worker died.
        """
        if self.cluster is not None:
            # Here, so that only who asks for a cluster needs ray.
            from tunesmith.stages.prepare.cluster import spread_on_ray

            yield from spread_on_ray(function, tasks, self.cluster)
        elif min(self.threads, len(tasks)) > 1:
            yield from _in_threads(function, list(enumerate(tasks)), self.threads)
        elif min(self.workers, len(tasks)) <= 1:
            for number, task in enumerate(tasks):
                yield number, function(task)
        else:
            yield from self._here_or_by_workers(function, list(enumerate(tasks)))

    def _here_or_by_workers(
        self, function: Callable[[Any], Any], tasks: list[tuple[int, Any]]
    ) -> Iterator[tuple[int, Any]]:
        left = 0.0
        if self.alone and not self._pool:
            # The first tasks tell how long the others would take.
            first, tasks = tasks[: self.workers], tasks[self.workers :]
            began = time.monotonic()
            yield from _in_threads(function, first, self.workers)
            left = (time.monotonic() - began) * len(tasks) / len(first)
        if self._pool or left >= self.alone:
            self._grow(min(self.workers, len(tasks)))
            try:
                yield from _spread(function, tasks, self._pool)
            except BaseException:
                self.__exit__()  # a worker may still be busy with what nobody waits for
                raise
        else:
            yield from _in_threads(function, tasks, self.workers)


def compute_of(spec: Recipe) -> Compute:
    """Where the parts are made, as the recipe says."""
    asked = spec.compute
    if asked.type == "ray":
        return Compute(cluster=asked.address or "")
    return Compute(cores() if asked.workers == "auto" else asked.workers, alone=ALONE)


def _in_threads(
    function: Callable[[Any], Any], tasks: Sequence[tuple[int, Any]], threads: int
) -> Iterator[tuple[int, Any]]:
    with ThreadPoolExecutor(threads) as pool:
        flying = {pool.submit(function, task): number for number, task in tasks}
        try:
            for done in as_completed(flying):
                yield flying[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _spread(
    function: Callable[[Any], Any], tasks: Sequence[tuple[int, Any]], pool: Sequence[_Worker]
) -> Iterator[tuple[int, Any]]:
    waiting = iter(tasks)
    with selectors.DefaultSelector() as selector:
        for worker in pool:
            worker.settle()
            if worker.start(function, next(waiting, None)):
                selector.register(worker.answers, selectors.EVENT_READ, worker)
        left = next(waiting, None)
        while selector.get_map() or left is not None:
            # While tasks are left this process works too: its workers may still be starting.
            for key, _ in selector.select(0 if left is not None else None):
                worker = key.data
                number, result = worker.number, worker.result()
                if worker.start(function, left):
                    left = next(waiting, None)
                else:
                    selector.unregister(worker.answers)
                yield number, result
            if left is not None:
                number, argument = left
                left = next(waiting, None)
                yield number, function(argument)


class _Worker:
    """A process that answers one task after the other."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *EARLY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self.answers = self._process.stdin, self._process.stdout
        self.number = -1
        self._is_loading = False

    def load(self, module: str) -> None:
        self.settle()
        self._is_loading = self.start(import_module, (-1, module))

    def settle(self) -> None:
        """Waits for what it loads."""
        if self._is_loading:
            self._is_loading = False
            self.result()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._tasks, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def start(self, function: Callable[[Any], Any], task: tuple[int, Any] | None) -> bool:
        if task is None:
            return False
        self.number, argument = task
        with contextlib.suppress(BrokenPipeError):  # a dead worker is met when its answer is read
            _send(self._tasks, (function.__module__, function.__name__, argument))
        return True

    def result(self) -> Any:
        answer = _receive(self.answers)
        if answer is None:
            code = self._process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            raise FileError(
                "DAT-070",
                f"a worker of the preparation {how}",
                expected="workers that live until their part is done",
                fix="free some memory, or set compute.workers: 1, and run the same command again: finished parts are kept",
            )
        value, error = answer
        if error is not None:
            raise error
        return value


def import_module(name: str) -> None:
    importlib.import_module(name)


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    pipe.write(HEAD.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    data = pipe.read(HEAD.unpack(head)[0])
    return pickle.loads(data) if len(data) == HEAD.unpack(head)[0] else None


def _work() -> None:
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land among the answers
    for name in sys.argv[1:]:
        importlib.import_module(name)
    tasks = sys.stdin.buffer
    while (head := tasks.read(HEAD.size)) and len(head) == HEAD.size:
        module, name, argument = pickle.loads(tasks.read(HEAD.unpack(head)[0]))
        function = getattr(importlib.import_module(module), name)
        try:
            answer = (function(argument), None)
        except (TunesmithError, OSError, MemoryError) as error:
            answer = (None, error)
        _send(answers, answer)


if __name__ == "__main__":
    _work()
