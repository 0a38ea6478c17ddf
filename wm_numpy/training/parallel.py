"""Real episodes on all cores, or on a cluster of machines: worker processes, and what happens when they die."""

import concurrent.futures as cf
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import sha256
from itertools import starmap
from pathlib import Path

from ..system import process, threads

PATIENCE = 60  # seconds to wait for the first worker of a cluster
ATTEMPTS = 3  # how often one job, or a pool that brings no result at all, may die


class WorkerError(RuntimeError):
    """Processes died again and again."""


class SpawnedPool(cf.ProcessPoolExecutor):
    """Spawned processes: a fork would copy locks in use.

    The setup travels in a file. Through the pipe to a new process it would keep this one, deaf to Ctrl-C, until that
    one has imported everything.
    """

    def __init__(self, max_workers: int, initializer: Callable, initargs: tuple):
        self._scratch = process.temporary_folder()
        setup = Path(self._scratch.name, "setup")
        setup.write_bytes(pickle.dumps(partial(initializer, *initargs)))
        context = multiprocessing.get_context("spawn")
        super().__init__(max_workers, context, initializer=_unpickle, initargs=(setup,))

    def kill(self) -> None:
        """End all workers at once."""
        for worker in list((self._processes or {}).values()):
            worker.kill()
        if sys.version_info < (3, 11, 5):  # later ones close it themselves
            self._call_queue._reader.close()  # else a full queue would be waited for in vain
        self.shutdown(cancel_futures=True)
        time.sleep(0.1)  # engines die just after their workers
        process.sweep()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        self._scratch.cleanup()


def _unpickle(path: Path) -> None:
    pickle.loads(path.read_bytes())()


SPAWN = SpawnedPool
_executor: Callable[..., cf.Executor] = SPAWN  # where `processes` runs unless told otherwise


def use_cluster(address: str) -> None:
    """From now on `processes` runs on the cluster of the Dask scheduler at this address."""
    global _executor
    _executor = cluster(address)


def processes(
    function: Callable,
    jobs: Sequence[tuple],
    setup: Callable | None = None,
    arguments: tuple = (),
    retry: tuple[type[Exception], ...] = (),
    log: Callable[[str], None] = print,
    executor: Callable[..., cf.Executor] | None = None,
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
            max_workers=min(threads.workers(), len(waiting)),
            initializer=_start,
            initargs=(setup, arguments),
        )
        kill = getattr(pool, "kill", partial(pool.shutdown, cancel_futures=True))
        try:
            # On a thread: no Ctrl-C comes in between, and what it starts is as deaf to it.
            with cf.ThreadPoolExecutor(1, initializer=_block_interrupts) as starter:
                begin = starmap(partial(pool.submit, function), waiting.values())
                futures = dict(zip(starter.submit(list, begin).result(), waiting, strict=True))
            for future in cf.as_completed(futures):
                try:
                    result = future.result()
                except cf.CancelledError:
                    raise WorkerError("the cluster's scheduler is gone, and work with it") from None
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
                        kill()
                        break
                else:
                    failures["workers"] = 0
                    del waiting[futures[future]]
                    yield futures[future], result
        except BaseException:  # Ctrl-C, too
            kill()
            raise
        pool.shutdown()


def _block_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start(setup: Callable | None, arguments: tuple) -> None:
    """In a new worker: one thread, and an end when the parent ends, even by kill -9."""
    threads.set_workers(1)
    _end_with_parent()
    if setup is not None:
        setup(*arguments)


@lru_cache
def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(ValueError):  # Dask sets workers up on a thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it cannot be blocked
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# ------------------------------------------------------------------------------------------------ a cluster of machines


def cluster(address: str) -> Callable[..., cf.Executor]:
    """What `processes` takes as executor, for the Dask scheduler at this address, such as "tcp://host:8786".

    On every machine `dask worker tcp://host:8786 --nthreads 1 --nworkers auto` must be able to import this package,
    of the same version, and what the environments need. Where workers die, Dask repeats their work elsewhere.
    WorkerError: there is no worker, or one that cannot be used.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"a cluster needs `pip install distributed` ({error})") from error
    warnings.filterwarnings("ignore", "Sending large graph")  # an agent, once
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors are sentences here
    return partial(_Cluster, Client(address), address)


class _Cluster:
    """What `processes` needs of an Executor; the initializer and its arguments travel once to each worker."""

    def __init__(self, client, address: str, max_workers: int, initializer: Callable, initargs):
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise WorkerError(f"no worker: start `dask worker {address} --nthreads 1`") from None
        for worker, found in client.run(_version, on_error="return").items():
            if "No module named" in str(found):
                raise WorkerError(f"worker {worker} cannot import this package: {found}")
            if isinstance(found, str) and found != _version():
                raise WorkerError(f"worker {worker} has another version of this package")
        self.pool = client.get_executor(pure=False)  # pure: a repeated job would not run again
        # The result of a task: if all who hold it die, it is made again.
        self.setup = client.submit(partial, initializer, *initargs, pure=False)

    def submit(self, function: Callable, *job):
        return self.pool.submit(_on_worker, self.setup.key, self.setup, function, *job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.pool.shutdown(wait=wait and not cancel_futures)


def _version() -> str:
    """What the files of this package hold, in short."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256("".join(file.read_text("utf-8") for file in files).encode()).hexdigest()


_ready = None  # the setup that this worker has done
_one_at_a_time = threading.Lock()  # as in a process of our own: what setup leaves behind is global


def _on_worker(key: str, setup: Callable, function: Callable, *job):
    global _ready
    with _one_at_a_time:
        if _ready != key:
            setup()
            _ready = key
        return function(*job)
