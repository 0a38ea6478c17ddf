"""Work in threads, with the same result on any number of them.

Work is cut into pieces by its size, never by the number of threads, and results come back in order. So a sum over
pieces has a fixed order, and a run on one core equals a run on sixteen. NumPy releases the GIL.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


def cores(system: Path = Path("/")) -> int:
    """How many cores this process may use, by its affinity and the quotas of its control groups (Linux)."""
    count = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # new in Python 3.13
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    own = system / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kinds, path = line.split(":", 2)  # version 2: 0::/PATH, version 1: 4:cpu,cpuacct:/PATH
        if kinds and "cpu" not in kinds.split(","):
            continue
        names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if kinds else ["cpu.max"]
        group = system / "sys/fs/cgroup" / (kinds and "cpu") / path.lstrip("/")
        for folder in (group, *group.parents):  # a container sees its own group as the root
            with suppress(OSError, ValueError):  # no such file, or it says "max"
                quota, period = map(int, " ".join((folder / n).read_text() for n in names).split())
                count = min(count, quota / period) if quota > 0 else count
    return max(1, math.ceil(count))


_workers = cores()
_local = threading.local()  # .in_pool: set in threads of the pool


def set_workers(n: int) -> None:
    """Use n threads and n processes from now on (default: all cores)."""
    global _workers
    _workers = max(1, int(n))


def workers() -> int:
    """How many are in use."""
    return _workers


@lru_cache(maxsize=1)
def _pool(n: int) -> ThreadPoolExecutor:
    def mark() -> None:
        _local.in_pool = True

    return ThreadPoolExecutor(n, thread_name_prefix="wm_numpy", initializer=mark)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork does not copy the threads


def cut(n: int, size: int, whole: int = 1) -> list[slice]:
    """Cut n into an even number of nearly equal pieces of at most `size`, so that two threads get the same.

    n up to `whole` (at most `size`) stays in one piece: so little is faster on one thread.
    """
    count = max(1, -(-n // size))
    if n > whole and count % 2:
        count += 1
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def run(function: Callable, pieces: Iterable) -> list:
    """[function(p) for p in pieces], on all threads, in order; raises the first exception of a piece.

    Within another call the pieces run one by one: a pool that waits for itself never ends.
    """
    pieces = list(pieces)
    if _workers == 1 or len(pieces) == 1 or hasattr(_local, "in_pool"):
        return [function(p) for p in pieces]
    return list(_pool(_workers).map(function, pieces))
