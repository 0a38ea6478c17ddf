"""All cores, and the same result on any number of them.

Work is cut into pieces by the configuration, never by the number of workers; pieces come back in order, or with
their index. So a sum over pieces has one fixed order, and a run on one core equals a run on sixteen.

`threads` is for NumPy (it releases the GIL): pieces of a batch, groups of dreams. `processes` is for environments.
"""

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial

ATTEMPTS = 3  # how often one job, or a pool that brings no result at all, may die
# Spawned processes: a fork would copy locks in use.
SPAWN = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
_executor: Callable[..., Executor] = SPAWN  # where `processes` runs unless told otherwise
_workers = os.cpu_count() or 1
if hasattr(os, "sched_getaffinity"):
    _workers = len(os.sched_getaffinity(0))  # the cores that this process may use
_local = threading.local()  # .in_pool: this is a thread of the pool


class WorkerError(RuntimeError):
    """Processes died again and again."""


def set_workers(n: int) -> None:
    """Use n threads, and n processes, from now on."""
    global _workers
    _workers = max(1, int(n))


def workers() -> int:
    """How many are in use."""
    return _workers


def use_cluster(address: str) -> None:
    """From now on `processes` runs on the cluster of the Dask scheduler at this address."""
    global _executor
    _executor = cluster(address)


@lru_cache(maxsize=1)
def _pool(n: int) -> ThreadPoolExecutor:
    def mark() -> None:
        _local.in_pool = True

    return ThreadPoolExecutor(n, thread_name_prefix="wm_numpy", initializer=mark)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork does not copy its threads


def cut(n: int, size: int, whole: int = 1) -> list[slice]:
    """Cut n into an even number of nearly equal pieces of at most `size`: as many for each of two threads.

    Up to `whole`, at most `size`, stay in one piece: so few are faster on one thread than on two.
    """
    count = max(1, -(-n // size))
    if n > whole and count % 2:
        count += 1
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def threads(function: Callable, pieces: Iterable) -> list:
    """[function(p) for p in pieces], on all threads, in order. The first exception of a piece is raised.

    Inside another call the pieces are done one by one: a pool that waits for itself waits for ever.
    """
    pieces = list(pieces)
    if _workers == 1 or len(pieces) == 1 or hasattr(_local, "in_pool"):
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

    Every new process first calls setup(*arguments); these and the function must be importable by name. When a worker
    dies, or a job raises one of `retry`, the log gets a line and the job is done again; the ATTEMPTS-th time it is a
    WorkerError. Workers live for one call: Box2D leaks 5 kB at every reset.
    """
    waiting = dict(enumerate(jobs))
    failures = Counter()  # of each job, and of workers since the last result
    while waiting:
        pool = (executor or _executor)(
            max_workers=min(_workers, len(waiting)), initializer=_start, initargs=(setup, arguments)
        )
        try:
            futures = {pool.submit(function, *job): i for i, job in waiting.items()}
            for future in as_completed(futures):
                try:
                    result = future.result()
                except (BrokenProcessPool, *retry) as error:
                    if isinstance(error, BrokenProcessPool):
                        who, what = "workers", "A worker process died."
                    else:
                        who, what = futures[future], str(error)
                    failures[who] += 1
                    if failures[who] == ATTEMPTS:
                        raise WorkerError(f"work failed {ATTEMPTS} times: {what}") from error
                    log(f"{what} Its work is repeated (attempt {failures[who] + 1} of {ATTEMPTS}).")
                    if who == "workers":
                        break
                else:
                    failures["workers"] = 0
                    del waiting[futures[future]]
                    yield futures[future], result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(setup: Callable | None, arguments: tuple) -> None:
    """In a new worker: one thread, and an end when the parent ends, even by kill -9."""
    set_workers(1)
    _end_with_parent()
    if setup is not None:
        setup(*arguments)


@lru_cache
def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# ------------------------------------------------------------------------------------------------ a cluster of machines


def cluster(address: str) -> Callable[..., Executor]:
    """What `processes` takes as executor, for the Dask scheduler at this address, such as "tcp://host:8786".

    On every machine `dask worker tcp://host:8786 --nthreads 1 --nworkers auto` must be able to import this package,
    of the same version, and what the environments need. Where workers die, Dask repeats their work elsewhere.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"a cluster needs `pip install distributed` ({error})") from error
    return partial(_Cluster, Client(address))


class _Cluster:
    """What `processes` needs of an Executor; the initializer and its arguments travel once to each worker."""

    def __init__(self, client, max_workers: int, initializer: Callable, initargs: tuple):
        self.pool = client.get_executor(pure=False)  # pure: a repeated job would not run again
        self.setup = client.scatter(partial(initializer, *initargs), broadcast=True, hash=False)

    def submit(self, function: Callable, *job):
        return self.pool.submit(_on_worker, self.setup.key, self.setup, function, *job)

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        self.pool.shutdown(wait=not cancel_futures)


_ready = None  # the setup that this worker has done
_one_at_a_time = threading.Lock()  # as in a process of our own: what setup leaves behind is global


def _on_worker(key: str, setup: Callable, function: Callable, *job):
    global _ready
    with _one_at_a_time:
        if _ready != key:
            setup()
            _ready = key
        return function(*job)
