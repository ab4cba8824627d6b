"""Parts made on a Ray cluster: the only door to ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunesmith.errors import FileError, TunesmithError, UsageError


def spread_on_ray(function: Callable[[Any], Any], tasks: Sequence[Any], address: str) -> Iterator[tuple[int, Any]]:
    """As `spread.spread`, by the workers of the cluster at `address`; "": that RAY_ADDRESS names, else one on this machine.

    Every node must see the data and the workspace under the same paths. A task whose worker dies is tried again by Ray. Raises
    UsageError DAT-071 without ray, FileError DAT-072 where a task's worker died for good.
    """
    ray = _ray(address)
    remote = ray.remote(max_retries=3)(function)
    # A few tasks per processor wait at the workers; the others wait here, so that a stop leaves nothing behind.
    room = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(enumerate(tasks))
    flying: dict[Any, int] = {}
    try:
        while True:
            while len(flying) < room and (task := next(waiting, None)) is not None:
                flying[remote.remote(task[1])] = task[0]
            if not flying:
                return
            (done, *_), _ = ray.wait(list(flying), num_returns=1)
            yield flying.pop(done), _result(ray, done)
    finally:
        for left in flying:
            ray.cancel(left)


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TunesmithError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise FileError(
            "DAT-072",
            f"a Ray worker did not finish its part: {str(error).splitlines()[0][:200]}",
            expected="workers that live until their part is done",
            fix="look at `ray status`, then run the same command again: finished parts are kept",
        ) from error


def _ray(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(
            "DAT-071",
            "compute: ray needs Ray, which is not installed",
            where="compute",
            expected="ray beside tunesmith",
            fix="pip install 'tunesmith[cluster]', or compute: local",
        ) from error
    if not ray.is_initialized():
        ray.init(address=address or None, log_to_driver=False, include_dashboard=False, configure_logging=False)
    return ray
