"""What killed processes leave behind, and the next one removes: temporary folders, .part files, shared memory."""

import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PREFIX = "wm_numpy-scratch-"  # of temporary folders; the number of the process follows
SHARED = "/dev/shm"
ENGINES = (
    "ViZDoom*"  # names of the memory that an engine shares, which are gone when it has started
)


def is_dead(pid: str) -> bool:
    """Whether no process has this number; False where it cannot be told."""
    if os.name == "nt" or not pid.isdigit():  # on Windows os.kill(pid, 0) is no question
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        pass
    return False


def scratch(folder: str | None = None) -> tempfile.TemporaryDirectory:
    """A temporary folder, which a later process removes if this one is killed."""
    folder = folder or tempfile.gettempdir()
    _sweep_once(folder)
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)


def sweep(folder: str | None = None, own: bool = False) -> None:
    """Remove the temporary folders and the shared memory of dead processes; own: also the folders of this one."""
    for path in Path(folder or tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if is_dead(pid) or (own and pid == str(os.getpid())):
            shutil.rmtree(path, ignore_errors=True)
    names = set(map(str, Path(SHARED).glob(ENGINES)))
    for path in names and names - _in_use():
        with suppress(OSError):  # another sweep was first; another user's
            os.unlink(path)


_sweep_once = lru_cache(sweep)


def _in_use() -> set[str]:
    """All files that processes have open or mapped (Linux): opened first, then mapped, then closed."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(process / "fd"):
                with suppress(OSError):
                    found.add(os.readlink(process / "fd" / descriptor))
            lines = (process / "maps").read_text().splitlines()
            found |= {line.split(maxsplit=5)[-1] for line in lines}
    return found
