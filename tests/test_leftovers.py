"""What killed processes left goes; what living ones hold stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from wm_numpy.core import leftovers

# A process that holds a temporary folder and a file of the shared memory, and waits.
HOLD = """
import mmap, sys, time
from wm_numpy.core import leftovers
leftovers.SHARED = sys.argv[1]
with leftovers.scratch(sys.argv[1]), open(sys.argv[2], "w+b") as file:
    file.truncate(4096)
    if sys.argv[3] == "mapped":
        memory = mmap.mmap(file.fileno(), 4096)
        file.close()
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Starts such a process."""
    monkeypatch.setattr(leftovers, "SHARED", str(tmp_path))
    begun = []

    def start(name: str, how: str = "mapped") -> subprocess.Popen:
        argv = [sys.executable, "-c", HOLD, tmp_path, tmp_path / name, how]
        begun.append(subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE))
        begun[-1].stdout.readline()
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["mapped", "open"])
def test_dead_ones_only(how, holder, tmp_path):
    dead, living = holder("ViZDoomMQCtr1"), holder("ViZDoomMQCtr2", how)
    (tmp_path / "ViZ").touch()
    for name in ("wm_numpy-2024-thesis", "wm_numpy-scratch-of-1", "wm_numpy-scratch-mine"):
        (tmp_path / name).mkdir()  # somebody's own
    before = {path.name for path in tmp_path.iterdir()}
    dead.kill()
    dead.wait()
    leftovers.sweep(str(tmp_path))
    gone = before - {path.name for path in tmp_path.iterdir()}
    assert {name.rpartition("-")[0] or name for name in gone} == {
        f"wm_numpy-scratch-{dead.pid}",
        "ViZDoomMQCtr1",
    }
    assert any(f"-{living.pid}-" in name for name in before - gone)


@pytest.mark.skipif(sys.platform != "linux", reason="engines share memory in /dev/shm")
def test_an_engine_that_was_killed_while_it_started(tmp_path):
    """Its memory and its folder go when the next one starts."""
    pytest.importorskip("vizdoom")
    start = "from wm_numpy.worlds.envs import make_env; make_env('doom')"
    how = {"cwd": ROOT, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    shared = Path("/dev/shm")

    def mine(pid: int) -> set[str]:
        """What a process has mapped of it."""
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[-1] for line in lines if "/dev/shm/ViZDoom" in line}

    killed = subprocess.Popen([sys.executable, "-c", start], **how)
    while not (left := mine(killed.pid)):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert any(tmp_path.iterdir()) and left <= set(map(str, shared.iterdir()))
    subprocess.run([sys.executable, "-c", start], check=True, **how)
    assert not any(tmp_path.iterdir()) and not left & set(map(str, shared.iterdir()))
