"""All cores, and the same result on any number of them.

Work is cut into pieces by the configuration, never by the number of workers; pieces come back in order. So a sum
over pieces has one fixed order, and a run on one core equals a run on sixteen.

`threads` is for NumPy (it releases the GIL): pieces of a batch, groups of dreams. `Processes` is for environments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_workers = cpu_count()


def set_threads(n: int) -> None:
    """Use n threads from now on."""
    global _workers
    _workers = max(1, int(n))


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="wm_numpy")


def threads(function: Callable, pieces: Iterable) -> list:
    """[function(p) for p in pieces], on all threads, in order. The first exception of a piece is raised."""
    pieces = list(pieces)
    if _workers == 1 or len(pieces) == 1:
        return [function(p) for p in pieces]
    return list(_pool(_workers).map(function, pieces))
