"""All cores, and the same result on any number of them.

Work is cut into pieces by the configuration, never by the number of workers; pieces come back in order, or with
their index. So a sum over pieces has one fixed order, and a run on one core equals a run on sixteen.

`threads` is for NumPy (it releases the GIL): pieces of a batch, groups of dreams. `processes` is for environments.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache

from . import BLAS_THREADS_LEFT

ATTEMPTS = 3  # how often one job, or a pool that brings no result at all, may die


class WorkerError(RuntimeError):
    """Processes died again and again."""


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_workers = cpu_count()


def set_workers(n: int) -> None:
    """Use n threads, and n processes, from now on."""
    global _workers
    _workers = max(1, int(n))


def workers() -> int:
    """How many are in use."""
    return _workers


@lru_cache(maxsize=1)
def _pool(n: int) -> ThreadPoolExecutor:
    if BLAS_THREADS_LEFT:
        warnings.warn("import wm_numpy before numpy, or set OPENBLAS_NUM_THREADS=1: many times faster", stacklevel=3)
    return ThreadPoolExecutor(n, thread_name_prefix="wm_numpy")


def threads(function: Callable, pieces: Iterable) -> list:
    """[function(p) for p in pieces], on all threads, in order. The first exception of a piece is raised."""
    pieces = list(pieces)
    if _workers == 1 or len(pieces) == 1:
        return [function(p) for p in pieces]
    return list(_pool(_workers).map(function, pieces))


def processes(
    function: Callable,
    jobs: Sequence[tuple],
    setup: Callable | None = None,
    arguments: tuple = (),
    retry: tuple[type[Exception], ...] = (),
    log: Callable[[str], None] = print,
    executor: Callable[..., Executor] | None = None,
) -> Iterator[tuple[int, object]]:
    """(index, function(*job)) for all jobs, as they finish, each in one of the worker processes.

    A worker that dies, or a job that raises one of `retry`, costs a line in the log: the job is done again.
    Workers live for one call: Box2D loses memory at every reset, 5 kB measured, 50 MB in 10,000 episodes.

    Args:
        function: importable by name, as are setup and its arguments.
        jobs: the arguments of each call.
        setup: run once in every new process.
        arguments: of setup.
        retry: exceptions after which a job is repeated, at most ATTEMPTS times in all.
        log: takes the lines.
        executor: makes the pool from (max_workers, initializer, initargs); a ProcessPoolExecutor when None.

    Raises:
        WorkerError: a job, or every worker, died ATTEMPTS times.
    """
    make = executor or _process_pool
    waiting, failures, deaths = dict(enumerate(jobs)), {}, 0
    while waiting:
        pool = make(max_workers=min(_workers, len(waiting)), initializer=_start, initargs=(setup, arguments))
        try:
            futures = {pool.submit(function, *job): i for i, job in waiting.items()}
            for future in as_completed(futures):
                i = futures[future]
                try:
                    result = future.result()
                except BrokenProcessPool:
                    deaths += 1
                    if deaths >= ATTEMPTS:
                        raise WorkerError(f"worker processes died {deaths} times without a result") from None
                    log(f"a worker process died: its jobs are repeated (attempt {deaths + 1} of {ATTEMPTS})")
                    break
                except retry as error:
                    failures[i] = failures.get(i, 0) + 1
                    if failures[i] >= ATTEMPTS:
                        raise WorkerError(f"a job failed {ATTEMPTS} times: {error}") from error
                    log(f"{error} Its job is repeated (attempt {failures[i] + 1} of {ATTEMPTS}).")
                else:
                    deaths = 0
                    del waiting[i]
                    yield i, result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _process_pool(**kwargs) -> ProcessPoolExecutor:
    # spawned, not forked: a fork copies locks that threads hold
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), **kwargs)


def _start(setup: Callable | None, arguments: tuple) -> None:
    """In a new worker: one thread, and an end when the parent ends, were it by kill -9."""
    set_workers(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    if setup is not None:
        setup(*arguments)
