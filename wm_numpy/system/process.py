"""A process: its streams, its end by a signal, what it started, and what killed ones leave for the next to remove."""

import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

STOPS = signal.SIGINT, signal.SIGTERM
MARK = f"wm_numpy-process-of-{platform.node()}-"  # with the host's name: hosts may share a disk
SHARED = "/dev/shm"


def open_streams() -> None:
    """Replace closed standard streams, or the next files opened would become them; make every text printable."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def stop_on_signals(quiet: bool) -> None:
    """Turn Ctrl-C and SIGTERM into a KeyboardInterrupt, announced unless `quiet`; a second one ends the process.

    Signals that are already handled, or ignored as under nohup, stay so.
    """

    def stop(number, frame):
        for each in STOPS:
            signal.signal(each, end)
        if not quiet:
            print("\nstopping ...", end="", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    def end(number, frame):
        for each in STOPS:
            signal.signal(each, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
            kill_group(child.pid)
        time.sleep(0.1)
        sweep(own=True)
        os.kill(os.getpid(), number)

    sys.warnoptions.append("ignore:resource_tracker")  # it complains about killed processes
    for number in STOPS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, stop)


def lead_group() -> None:
    """Make a group of this process and all that it will start, such as the engine of a game.

    Those do not inherit its open files: its death is noticed when no other process holds its end of a pipe.
    """
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), int(name) < 3)


def kill_group(leader: int) -> None:
    """Kill what is left of the group that a process led."""
    with suppress(OSError, AttributeError):  # nothing; Windows
        os.killpg(leader, signal.SIGKILL)


# ------------------------------------------------------------------------------------------- leftovers


def mark() -> str:
    """Part of a name: the file or folder is removed by the next process if this one is killed."""
    return f"{MARK}{os.getpid()}"


def temporary_folder(parent: str | Path | None = None) -> tempfile.TemporaryDirectory:
    """A hidden TemporaryDirectory that is removed even if this process is killed: by the next one."""
    sweep_once(Path(parent or tempfile.gettempdir()))
    return tempfile.TemporaryDirectory(prefix=f".{mark()}-", dir=parent)


def sweep(folder: Path | None = None, own: bool = False) -> None:
    """Remove what killed processes, and with `own` this one, left in a folder (default: the temporary one).

    ViZDoom's shared memory goes with it: its name stays when an engine is killed while it starts.
    """
    found = []
    for path in (folder or Path(tempfile.gettempdir())).glob(f"*{MARK}*"):
        number = re.search(rf"{re.escape(MARK)}(\d{{1,9}})\b", path.name)
        if number and (_is_dead(int(number[1])) or (own and mark() == number[0])):
            found.append(path)
    memory = set(Path(SHARED).glob("ViZDoom*"))
    for path in [*found, *(memory and memory - _in_use())]:
        with suppress(OSError):  # another process was faster, or it is another user's
            shutil.rmtree(path) if path.is_dir() else path.unlink()


sweep_once = lru_cache(sweep)  # once per folder


def _is_dead(pid: int) -> bool:
    try:
        if os.name != "nt":  # there it would end the process
            os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)  # otherwise it is another user's
    return False


def _in_use() -> set[Path]:
    """Every file that a process has open or mapped (Linux)."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(
                process / "fd"
            ):  # before the maps: a file is opened, mapped, closed
                with suppress(OSError):
                    found.add(os.readlink(process / "fd" / descriptor))
            lines = (process / "maps").read_text().splitlines()
            found |= {line.split(maxsplit=5)[-1] for line in lines}
    return set(map(Path, found))
