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
from functools import lru_cache, partial
from hashlib import sha256
from itertools import starmap
from pathlib import Path

from ..system import process, threads

PATIENCE = 60  # seconds to wait for the first worker of a cluster
ATTEMPTS = 3  # how often one job, or a pool that brings no result at all, may die


class WorkerError(RuntimeError):
    """Processes died again and again."""


def processes(
    function: Callable,
    jobs: Sequence[tuple],
    shared: tuple = (),
    retry: tuple[type[Exception], ...] = (),
    log: Callable[[str], None] = print,
    pool: Callable | None = None,
) -> Iterator[tuple[int, object]]:
    """(index, function(*shared, *job)) for all jobs, as they finish, in worker processes.

    `shared` travels once to each worker; the function must be importable by name. When a worker dies, or a job raises
    one of `retry`, the log gets a line and the job is repeated; the ATTEMPTS-th time it is a WorkerError. pool: Local,
    say; by default Local or what `use_cluster` chose. Workers live for one call: Box2D leaks 5 kB at every reset.
    """
    waiting = dict(enumerate(jobs))
    failures = Counter()  # of each job, and of workers since the last result
    while waiting:
        workers = (pool or _pool)(min(threads.workers(), len(waiting)), shared)
        try:
            futures = _submitted(workers, function, waiting)
            for future in cf.as_completed(futures):
                try:
                    result = future.result()
                except cf.CancelledError:
                    raise WorkerError("the cluster's scheduler is gone, and work with it") from None
                except (BrokenProcessPool, *retry) as error:
                    broken = isinstance(error, BrokenProcessPool)
                    failed = "workers" if broken else futures[future]
                    told = "A worker process died." if broken else str(error)
                    failures[failed] += 1
                    if failures[failed] == ATTEMPTS:
                        raise WorkerError(f"work failed {ATTEMPTS} times: {told}") from error
                    attempt = f"attempt {failures[failed] + 1} of {ATTEMPTS}"
                    log(f"{told} Its work is repeated ({attempt}).")
                    if broken:
                        workers.kill()
                        break
                else:
                    failures["workers"] = 0
                    del waiting[futures[future]]
                    yield futures[future], result
        except BaseException:  # Ctrl-C, too
            workers.kill()
            raise
        workers.shutdown()


def _submitted(workers, function: Callable, jobs: dict[int, tuple]) -> dict[cf.Future, int]:
    """Each job's future -> its index."""
    # On a thread: Ctrl-C cannot come in between, and the processes it starts inherit that it is blocked.
    with cf.ThreadPoolExecutor(1, initializer=_block_interrupts) as starter:
        begin = starmap(partial(workers.submit, function), jobs.values())
        return dict(zip(starter.submit(list, begin).result(), jobs, strict=True))


def _block_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


class Local(cf.ProcessPoolExecutor):
    """Processes of this machine. They are spawned: a fork would copy locks in use."""

    def __init__(self, count: int, shared: tuple):
        # In a file: while a pipe to a new process fills, that process imports, and Ctrl-C has to wait.
        self._scratch = process.temporary_folder()
        self._shared = Path(self._scratch.name, "shared")
        self._shared.write_bytes(pickle.dumps(shared))
        self._numbers = set()  # of all workers, the dead ones too
        super().__init__(count, multiprocessing.get_context("spawn"), _begin)

    def submit(self, function: Callable, *job) -> cf.Future:
        future = super().submit(_call, self._shared, function, *job)
        self._numbers |= set(self._processes or ())
        return future

    def kill(self) -> None:
        """End all workers at once, and what they have started."""
        for worker in list((self._processes or {}).values()):
            worker.kill()
        for number in self._numbers:
            process.kill_group(number)
        if sys.version_info < (3, 11, 5):  # later ones close it themselves
            self._call_queue._reader.close()  # else shutdown waits until there is room in a full queue
        self.shutdown(cancel_futures=True)
        time.sleep(0.1)  # engines die just after their workers
        process.sweep()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        self._scratch.cleanup()


_pool: Callable = Local  # where `processes` runs by default: (number of workers, shared) -> a pool


def _begin() -> None:
    """In a new process: Ctrl-C is its parent's business, and it ends when that ends, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it cannot be blocked
    process.lead_group()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        process.kill_group(os.getpid())
        os._exit(1)  # Windows

    threading.Thread(target=follow, daemon=True).start()


_one_at_a_time = threading.Lock()  # a Dask worker has threads, but one set of environments


def _call(shared: Path | bytes, function: Callable, *job):
    with _one_at_a_time:
        threads.set_workers(1)
        return function(*_opened(shared), *job)


@lru_cache(maxsize=1)
def _opened(shared: Path | bytes) -> tuple:
    return pickle.loads(shared.read_bytes() if isinstance(shared, Path) else shared)


# ------------------------------------------------------------------------------------------------ a cluster of machines


def use_cluster(address: str) -> None:
    """From now on `processes` runs on the workers of the Dask scheduler at this address, "tcp://host:8786".

    On every machine `dask worker tcp://host:8786 --nthreads 1 --nworkers auto` must be able to import this package,
    of the same version, and what the environments need. Where workers die, Dask repeats their work elsewhere.
    """
    global _pool
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"a cluster needs `pip install distributed` ({error})") from error
    warnings.filterwarnings("ignore", "Sending large graph")  # an agent, once
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # our errors are sentences
    _pool = partial(Cluster, Client(address), address)


class Cluster:
    """The workers of a Dask scheduler; WorkerError: there are none, or one cannot be used."""

    def __init__(self, client, address: str, count: int, shared: tuple):
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise WorkerError(f"no worker: start `dask worker {address} --nthreads 1`") from None
        for worker, found in client.run(_version, on_error="return").items():
            if "No module named" in str(found):
                raise WorkerError(f"worker {worker} cannot import this package: {found}")
            if isinstance(found, str) and found != _version():
                raise WorkerError(f"worker {worker} has another version of this package")
        self._pool = client.get_executor(pure=False)  # pure: a repeated job would not run again
        # The result of a task: if all workers that hold it die, Dask makes it again.
        self._shared = client.submit(bytes, pickle.dumps(shared), pure=False)

    def submit(self, function: Callable, *job) -> cf.Future:
        return self._pool.submit(_call, self._shared, function, *job)

    def kill(self) -> None:
        """Cancel what is not done."""
        self._pool.shutdown(wait=False)

    def shutdown(self) -> None:
        self._pool.shutdown()


def _version() -> str:
    """A hash of all files of this package."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256("".join(file.read_text("utf-8") for file in files).encode()).hexdigest()
