"""What killed processes left goes, what living ones hold stays; a file that cannot be written is named."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from wm_numpy.system import files, process
from wm_numpy.system.process import MARK

# A process that holds a temporary folder and a file of the shared memory, and waits.
HOLD = """
import mmap, os, sys, time
from wm_numpy.system import process
process.SHARED = sys.argv[1]
with process.temporary_folder(sys.argv[1]), open(sys.argv[2], "w+b") as file:
    file.truncate(4096)
    if sys.argv[3] == "mapped":
        memory = mmap.mmap(file.fileno(), 4096)
        file.close()
        for fd in os.listdir("/proc/self/fd"):  # that of mmap
            if os.path.realpath(f"/proc/self/fd/{fd}") == file.name:
                os.close(int(fd))
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Starts such a process."""
    monkeypatch.setattr(process, "SHARED", str(tmp_path))
    begun = []

    def start(name: str, held: str = "mapped") -> subprocess.Popen:
        argv = [sys.executable, "-c", HOLD, tmp_path, tmp_path / name, held]
        begun.append(subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE))
        begun[-1].stdout.readline()
        return begun[-1]

    yield start
    for child in begun:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("held", ["mapped", "open"])
def test_dead_ones_only(held, holder, tmp_path):
    dead, living = holder("ViZDoomMQCtr1"), holder("ViZDoomMQCtr2", held)
    (tmp_path / "ViZ").touch()
    another = MARK.replace(platform.node(), "moon")
    for name in (
        "wm_numpy-2024-thesis",
        f"{MARK}mine",
        f"{MARK}{os.getpid()}",
        f"{another}4194305",
    ):
        (tmp_path / name).mkdir()  # somebody's own, of a living process, of another machine
    before = {path.name for path in tmp_path.iterdir()}
    dead.kill()
    dead.wait()
    process.sweep(tmp_path)
    gone = before - {path.name for path in tmp_path.iterdir()}
    assert {name.rpartition("-")[0] or name for name in gone} == {
        f".{MARK}{dead.pid}",
        "ViZDoomMQCtr1",
    }
    assert any(f"-{living.pid}-" in name for name in before - gone)


@pytest.mark.skipif(sys.platform != "linux", reason="engines share memory in /dev/shm")
def test_an_engine_that_was_killed_while_it_started(tmp_path):
    """Its memory and its folder go when the next one starts."""
    pytest.importorskip("vizdoom")
    start = "from wm_numpy.envs.environment import Environment; Environment('doom')"
    place = {"cwd": ROOT, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    shared = Path("/dev/shm")

    def mapped(pid: int) -> set[str]:
        """The shared memory that a process has mapped."""
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[-1] for line in lines if "/dev/shm/ViZDoom" in line}

    killed = subprocess.Popen([sys.executable, "-c", start], **place)
    while not (left := mapped(killed.pid)):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert any(tmp_path.iterdir()) and left <= set(map(str, shared.iterdir()))
    subprocess.run([sys.executable, "-c", start], check=True, **place)
    assert not any(tmp_path.iterdir()) and not left & set(map(str, shared.iterdir()))


# --------------------------------------------------------------------------------------------- unfinished files

# A process that is killed while it writes the file of its first argument.
WRITE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from wm_numpy.system import files
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
files.write(Path(sys.argv[1]), np.zeros(3))
"""


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def test_the_next_writer_removes_unfinished_files(tmp_path):
    """All of the folder, whatever they were to become; not those of a living process, nor somebody else's."""
    subprocess.run([sys.executable, "-c", WRITE, tmp_path / "a.npy"], cwd=ROOT)
    assert len(parts(tmp_path)) == 1 and not (tmp_path / "a.npy").exists()
    living = tmp_path / f".c.npy.{MARK}{os.getppid()}.part"
    foreign = tmp_path / ".download.20240131.part"
    for path in (living, foreign):
        path.touch()
    files.write(tmp_path / "b.json", {})
    assert set(tmp_path.iterdir()) == {tmp_path / "b.json", living, foreign}


def test_processes_of_another_user_are_not_dead(tmp_path, monkeypatch):
    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    (tmp_path / f".c.npy.{MARK}1.part").touch()
    process.sweep(tmp_path)
    assert len(parts(tmp_path)) == 1


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from wm_numpy.system import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
content = {"npy": np.zeros(1000), "npz": {"x": np.zeros(1000)}, "json": [0] * 1000}
try:
    files.write(Path(sys.argv[1]), content[sys.argv[1].rpartition(".")[2]])
except files.DataError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits a file's size")
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.json"])
def test_a_file_that_cannot_be_written_is_named(name, tmp_path):
    argv = [sys.executable, "-c", FULL, tmp_path / name]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path / name} cannot be written ("), done.stderr
    assert not list(tmp_path.iterdir())


def test_records_that_are_damaged(tmp_path):
    good = np.zeros(3, [("reward", "f4")])
    files.write(tmp_path / "a.npy", good)
    assert np.array_equal(files.read_records(tmp_path / "a.npy", "reward"), good)
    for content in (np.zeros(3), np.zeros(3, [("x", "f4")])):
        files.write(tmp_path / "b.npy", content)
        with pytest.raises(files.DataError, match="b.npy is damaged"):
            files.read_records(tmp_path / "b.npy", "reward")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-2])
    with pytest.raises(files.DataError, match="a.npy is damaged"):
        files.read_records(tmp_path / "a.npy", "reward")
