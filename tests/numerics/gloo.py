"""Two processes of one gloo group that do what tests tell them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 180  # the first call imports torch, transformers and DeepSpeed, perhaps on a busy machine


def _serve(rank: int, store: str, pipe: Connection) -> None:
    """A worker: joins the group, then calls what it is told until the pipe closes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    while True:
        try:
            place, arguments = pipe.recv()
        except EOFError:
            return
        module, name = place.split(":")
        try:
            pipe.send((getattr(import_module(module), name)(**arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))


class GlooPair:
    """Two processes of one gloo group. `call("module:function", **arguments)` returns what each of them returned."""

    def __init__(self, store: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, place: str, **arguments: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((place, arguments))
        results = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(TIMEOUT_S), f"rank {rank} did not answer within {TIMEOUT_S} s"
            value, problem = pipe.recv()
            assert problem is None, f"rank {rank}:\n{problem}"
            results.append(value)
        return results

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
