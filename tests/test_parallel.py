"""Threads keep order; processes survive the death of their workers, and end with their parent."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny_agent
from wm_numpy.system import threads
from wm_numpy.training import episodes, parallel
from wm_numpy.training.parallel import WorkerError

HERE = Path(__file__).resolve().parent

# ------------------------------------------------------------- jobs, importable by name in a spawned worker


class Retried(RuntimeError):
    pass


def times(value, x):
    return x * value


def square(x):
    return x * x


def die_once(marker: Path, x):
    """The first call with x == 3 kills its worker."""
    if x == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def die_once_times(value, marker: Path, x):
    return die_once(marker, x) * value


def die_always(marker: Path, x):
    """Every call with x == 0 kills its worker and leaves a byte."""
    if x == 0:
        with open(marker, "a") as file:
            file.write("x")
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def fail(marker: Path, times: int):
    """Raises Retried so many times, a byte left at each."""
    with open(marker, "a") as file:
        file.write("x")
    if marker.stat().st_size <= times:
        raise Retried("the game is gone.")
    return "done"


def boom():
    raise KeyError("boom")


def boom_or_sleep(marker: Path, fails: bool):
    """One fails when the other has begun."""
    if not fails:
        sleep_long(marker)
    wait_until(lambda: any(marker.iterdir()), 30)
    raise KeyError("boom")


def facts():
    return os.getpid(), threads.workers()


def engine(marker: Path):
    """A process that a game starts, as C does: it inherits every open file that can be."""
    sleep = subprocess.Popen(["sleep", "20"], close_fds=False)
    (marker / str(sleep.pid)).touch()


def sleep_long(marker: Path):
    engine(marker)
    (marker / str(os.getpid())).touch()
    time.sleep(60)


def die_once_with_an_engine(marker: Path):
    if not any(marker.iterdir()):
        engine(marker)
        os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("n", [1, 2, 5])
def test_threads_keep_order(n, workers):
    workers(n)

    def slow_at_first(i):
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert threads.run(slow_at_first, range(9)) == [i * i for i in range(9)]
    assert threads.run(square, (i for i in [4])) == [16] and threads.run(square, []) == []


@pytest.mark.parametrize("n", [1, 2])
def test_threads_raise(n, workers):
    workers(n)
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda i: 1 // (2 - i), range(4))


def test_threads_use_threads(workers):
    workers(2)
    start = time.monotonic()
    threads.run(lambda _: time.sleep(0.2), range(2))
    assert time.monotonic() - start < 0.35


def script(code: str, seconds: float = 30) -> str:
    """What a Python of its own prints, killed with its children when it hangs."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    child = subprocess.Popen(
        command,
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        pytest.fail("it hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("where", ["main", "threads"])
def test_threads_work_in_a_forked_child(where):
    """What has used V and is forked then, as the vector environments of others do."""
    printed = script(f"""
        import os, warnings
        from wm_numpy.system import threads
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks and threads
        threads.set_workers(2)
        threads.run(abs, range(4))
        def forked(_):
            child = os.fork()
            if child == 0:
                os.write(1, f"{threads.run(lambda i: i * i, range(4))}\\n".encode())
                os._exit(0)
            return os.waitpid(child, 0)[1]
        if {where!r} == "main":
            print(forked(0))
        else:
            print(max(threads.run(forked, range(2))))
        print(threads.run(abs, range(-4, 0)))
    """)
    child, end = "[0, 1, 4, 9]\n", "0\n[4, 3, 2, 1]\n"
    assert printed == child * (1 if where == "main" else 2) + end


def test_threads_inside_threads(workers):
    printed = script("""
        from wm_numpy.system import threads
        threads.set_workers(2)
        inner = lambda i: sum(threads.run(lambda j: 10 * i + j, range(3)))
        print(threads.run(inner, range(5)))
    """)
    assert printed == "[3, 33, 63, 93, 123]\n"


# A module that NumPy has loaded finds the symbols of the BLAS that it was linked with.
BLAS_THREADS = """
import ctypes, numpy
library = ctypes.CDLL(numpy.linalg._umath_linalg.__file__)
names = [f"{a}openblas_get_num_threads{b}" for a in ("scipy_", "") for b in ("64_", "")]
print(next((getattr(library, name)() for name in names if hasattr(library, name)), "unknown"))
"""


@pytest.mark.parametrize("order", ["import numpy, wm_numpy", "import wm_numpy, numpy"])
def test_blas_has_one_thread_in_either_order(order, monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    alone = script(f"import numpy\n{BLAS_THREADS}").strip()
    if alone in ("unknown", "1"):
        pytest.skip(f"NumPy alone has {alone} threads")
    assert script(f"{order}\n{BLAS_THREADS}") == "1\n"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # who says so is obeyed
    assert script(f"{order}\n{BLAS_THREADS}") == "2\n"


def test_a_blas_that_is_not_known_is_a_warning(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = """
        import ctypes, numpy, warnings
        class Library:
            pass
        ctypes.CDLL = lambda file: Library()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import wm_numpy
        print([(str(w.message), w.filename) for w in caught])
    """
    printed = script(code)
    assert "import wm_numpy before numpy" in printed and printed.count("(") == 1


@pytest.mark.parametrize(
    "own, files, count",
    [
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "150000 100000"}, 2),  # two threads fill one core and a half
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),  # no more than there are
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # the parent's
        (
            "4:memory:/x\n5:cpuset:/x\n3:cpu,cpuacct:/docker/1",  # its name outside of the container
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n1:name=systemd:/", {}, 8),
        (None, {"cpu.max": "50000 100000"}, 8),
    ],
)
def test_cores_of_a_container(own, files, count, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 9, raising=False)
    if own:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(own + "\n")
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert threads.cores(tmp_path) == count
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1)  # as -X cpu_count=1 of Python 3.13
    assert threads.cores(tmp_path) == 1


def test_at_least_one_worker(workers):
    workers(0)
    assert threads.workers() == 1


# ----------------------------------------------------------------------------------------------- processes


class Threads(ThreadPoolExecutor):
    """In place of processes, which take a second to start."""

    def __init__(self, count: int, shared: tuple):
        super().__init__(count)
        self.shared = shared

    def submit(self, function, *job):
        return super().submit(function, *self.shared, *job)

    def kill(self):
        self.shutdown(cancel_futures=True)


def test_results_by_index_with_what_is_shared(workers):
    workers(2)
    jobs = [(i,) for i in range(33)]
    assert dict(parallel.processes(times, jobs, (10,))) == {i: 10 * i for i in range(33)}
    assert list(parallel.processes(square, [])) == []


def test_the_start_of_a_worker_does_not_carry_what_is_shared():
    """Ctrl-C would wait for it: an agent has 25 MB, a pipe takes 64 kB."""
    pool = parallel.Local(1, (bytes(10**6),))
    assert len(pickle.dumps((pool._initargs, pool._shared))) < 1000
    assert len(pool.submit(times, 2).result()) == 2 * 10**6
    pool.shutdown()


def test_workers_have_one_thread_and_are_other_processes(workers):
    workers(2)
    for _, (pid, count) in parallel.processes(facts, [(), ()]):
        assert pid != os.getpid() and count == 1


@pytest.mark.parametrize(
    "n, size, whole, sizes",
    [(7, 3, 1, [1, 2, 2, 2]), (4, 9, 1, [2, 2]), (1, 9, 1, [1]), (4, 9, 4, [4]), (5, 9, 4, [2, 3])],
)
def test_pieces_are_nearly_equal_even_in_number_or_one(n, size, whole, sizes):
    pieces = threads.cut(n, size, whole)
    assert np.array_equal(np.concatenate([np.arange(n)[s] for s in pieces]), np.arange(n))
    assert sorted(s.stop - s.start for s in pieces) == sizes


def test_any_pool(workers):
    assert dict(parallel.processes(times, [(2,), (3,)], (2,), pool=Threads)) == {0: 4, 1: 6}


def test_a_killed_worker_is_replaced(tmp_path, workers):
    workers(2)
    lines, marker = [], tmp_path / "died"
    results = dict(parallel.processes(die_once, [(marker, x) for x in range(6)], log=lines.append))
    assert marker.exists() and results == {x: x * x for x in range(6)}
    assert len(lines) == 1 and "died" in lines[0] and "repeated" in lines[0]


def test_a_killed_worker_is_noticed_though_its_game_lives(tmp_path, workers):
    """And what it started is ended."""
    workers(1)
    start = time.monotonic()
    list(parallel.processes(die_once_with_an_engine, [(tmp_path,)], log=lambda line: None))
    assert time.monotonic() - start < 15
    (left,) = tmp_path.iterdir()
    wait_until(lambda: not running(left.name), 5)


@pytest.mark.parametrize("others", [0, 12])
def test_a_job_that_always_dies_ends_it(others, tmp_path, workers):
    """Also when other jobs do come back in between: a few attempts, not one for every other job."""
    workers(2)
    lines, marker = [], tmp_path / "deaths"
    jobs = [(marker, 0)] + [(marker, x + 1) for x in range(others)]
    with pytest.raises(WorkerError, match="died"):
        list(parallel.processes(die_always, jobs, log=lines.append))
    assert marker.stat().st_size <= parallel.ATTEMPTS + 1
    assert len(lines) == marker.stat().st_size - 1


def test_chosen_exceptions_are_retried(tmp_path, workers):
    workers(1)
    lines = []
    play = partial(parallel.processes, fail, retry=(Retried,), log=lines.append, pool=Threads)
    assert dict(play([(tmp_path / "a", 2)])) == {0: "done"}
    assert len(lines) == 2 and "the game is gone" in lines[0]
    with pytest.raises(WorkerError, match="3 times: the game is gone"):
        list(play([(tmp_path / "b", 9)]))
    assert (tmp_path / "b").stat().st_size == parallel.ATTEMPTS


def test_other_exceptions_are_raised(workers):
    workers(1)
    with pytest.raises(KeyError, match="boom"):
        list(parallel.processes(boom, [()], retry=(Retried,), pool=Threads))


def test_an_error_does_not_wait_for_other_jobs(tmp_path, workers):
    workers(2)
    start = time.monotonic()
    with pytest.raises(KeyError, match="boom"):
        list(parallel.processes(boom_or_sleep, [(tmp_path, False), (tmp_path, True)]))
    assert time.monotonic() - start < 30
    wait_until(lambda: not any(running(path.name) for path in tmp_path.iterdir()), 5)


# ------------------------------------------------------------------------------------------------- signals


def members(session: int) -> list[str]:
    """The living processes of a session, by number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "task, number, times",
    [("carracing", "SIGINT", 1), ("carracing", "SIGINT", 2), ("doom", "SIGTERM", 1)],
)
def test_a_signal_ends_the_workers_too(task, number, times, tmp_path):
    """Sent to all of them, as Ctrl-C in a terminal is; the second one while the first is obeyed."""
    argv = ["train", task, "--preset", "smoke", "--set", "collect.episodes=99", "--workers", "2"]
    train = subprocess.Popen(
        [sys.executable, HERE.parent / "run.py", *argv, "--out", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        while "/99 episodes" not in train.stdout.readline():
            assert train.poll() is None
        os.killpg(train.pid, getattr(signal, number))
        assert train.stderr.readline() + train.stderr.read(12) == "\nstopping ..."
        if times == 2:
            os.killpg(train.pid, signal.SIGINT)
        assert train.wait(10) in ((1,) if times == 1 else (1, -signal.SIGINT))
        wait_until(lambda: not members(train.pid), 5)
        rest = train.stderr.read()
        assert rest == "\nstopped; the same command resumes\n" or times == 2 and not rest
    finally:
        with suppress(ProcessLookupError):
            os.killpg(train.pid, signal.SIGKILL)
        train.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list((tmp_path / "run" / "episodes").iterdir())) < 99


def test_signals_that_are_ignored_stay_so():
    """As under nohup; a handler of somebody else's stays, too."""
    printed = script("""
        import signal
        from wm_numpy.system.process import stop_on_signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, print)
        stop_on_signals(quiet=False)
        print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM) is print)
    """)
    assert printed == "1 True\n"


# ------------------------------------------------------------------------------------------------ a cluster

_arrivals = 0


class Counted(int):
    """Counts in each process how often it arrived there."""

    def __reduce__(self):
        return arrived, (int(self),)


def arrived(value):
    global _arrivals
    _arrivals += 1
    return Counted(value)


def arrivals(value, x):
    return os.getpid(), _arrivals, int(x * value), threads.workers()


@pytest.fixture(scope="module")
def dask_cluster():
    """The address of a Dask scheduler with two worker processes here."""
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: pip install distributed"
    )
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=":0"
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def on_cluster(dask_cluster):
    """Sets Dask's workers to be what `processes` uses, for one test."""
    with cluster(dask_cluster):
        yield


@contextmanager
def cluster(address: str):
    before = parallel._pool
    parallel.use_cluster(address)
    client = parallel._pool.args[0]
    yield
    parallel._pool = before
    client.close()


def test_what_is_shared_travels_once_to_each_worker_of_a_cluster(on_cluster):
    for call, value in enumerate((10, 20), 1):
        jobs = [(i,) for i in range(40)]
        found = dict(parallel.processes(arrivals, jobs, (Counted(value),)))
        products = {i: product for i, (_, _, product, _) in found.items()}
        assert products == {i: value * i for i in range(40)}
        pids = {pid for pid, *_ in found.values()}
        assert len(pids) <= 2 and os.getpid() not in pids
        assert {n for _, n, _, _ in found.values()} == {call}
        assert {t for *_, t in found.values()} == {1}


def test_a_job_of_a_cluster_is_retried_and_a_dead_worker_replaced(on_cluster, tmp_path):
    lines = []
    play = partial(parallel.processes, retry=(Retried,), log=lines.append)
    assert dict(play(fail, [(tmp_path / "a", 2)])) == {0: "done"} and len(lines) == 2
    list(play(fail, [(tmp_path / "b", 0)] * 3))
    assert (tmp_path / "b").stat().st_size == 3  # equal jobs are not taken for one
    marker = tmp_path / "died"
    found = dict(play(die_once, [(marker, x) for x in range(6)]))
    assert found == {x: x * x for x in range(6)} and marker.exists()
    with pytest.raises(KeyError, match="boom"):
        list(play(boom, [()]))


def test_a_generation_on_a_cluster_equals_one_here(on_cluster, workers):
    workers(2)
    agent = tiny_agent("doom", "repeat=8")
    vectors = np.random.default_rng(0).standard_normal((3, len(agent.theta)))
    seeds = np.array([3, 1, 4])  # 9 episodes: a group of 8, and one
    there = episodes.real_rollouts(agent, vectors, seeds)
    parallel._pool = parallel.Local
    here = episodes.real_rollouts(agent, vectors, seeds)
    assert all(np.array_equal(a, b) for a, b in zip(there, here, strict=True))
    assert len(set(here[0].flat)) > 5


def test_the_only_worker_of_a_cluster_dies(tmp_path):
    """And with it what is shared; another one takes its place."""
    distributed = pytest.importorskip("distributed")
    alone = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    jobs = [(tmp_path / "died", x) for x in (1, 3, 5)]
    with distributed.LocalCluster(**alone) as local, cluster(local.scheduler_address):
        found = dict(parallel.processes(die_once_times, jobs, (10,)))
    assert found == {0: 10, 1: 90, 2: 250} and (tmp_path / "died").exists()


def test_the_scheduler_of_a_cluster_dies(tmp_path):
    class Cancelled(Threads):
        def submit(self, *job):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(WorkerError, match="scheduler is gone"):
        list(parallel.processes(square, [(2,)], pool=Cancelled))


@pytest.mark.parametrize(
    "found, said",
    [
        (Exception("ModuleNotFoundError(\"No module named 'wm_numpy'\")"), "cannot import"),
        ("0" * 64, "another version"),
    ],
)
def test_a_worker_of_a_cluster_that_cannot_be_used(found, said):
    class Client:
        def wait_for_workers(self, n, timeout):
            pass

        def run(self, function, on_error):
            return {"tcp://good:1": function(), "tcp://bad:2": found}

    with pytest.raises(WorkerError, match=f"worker tcp://bad:2 .*{said}"):
        parallel.Cluster(Client(), "tcp://there:8786", 2, (1,))


def test_a_cluster_without_workers(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(parallel, "PATIENCE", 0.1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as local:
        address = local.scheduler_address
        told = pytest.raises(WorkerError, match=f"start `dask worker {address}")
        with cluster(address), told:
            list(parallel.processes(square, [(2,)]))


def test_without_dask_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match="pip install distributed"):
        parallel.use_cluster("tcp://127.0.0.1:1")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        f"import sys; sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]\n"
        "from pathlib import Path\n"
        "import test_parallel as t\n"
        "if __name__ == '__main__':\n"
        "    t.threads.set_workers(2)\n"
        "    list(t.parallel.processes(t.sleep_long, [(Path(sys.argv[1]),)] * 2))\n"
    )
    (tmp_path / "pids").mkdir()
    (tmp_path / "main.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path / "pids"])
    wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 4, 30)
    parent.kill()
    parent.wait()
    pids = [p.name for p in (tmp_path / "pids").iterdir()]
    wait_until(lambda: not any(running(pid) for pid in pids), 10)


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
