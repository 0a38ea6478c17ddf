"""What killed processes leave behind, and the next one removes: files and folders named after them, shared memory."""

import os
import platform
import re
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

# In a name, before the number of the process that will remove or rename it; machines may share a disk.
MARK = f"wm_numpy-process-of-{platform.node()}-"
SHARED = "/dev/shm"
ENGINES = "ViZDoom*"  # memory that an engine shares: nameless once it has started


def mark() -> str:
    """What a name must hold that the next process may remove if this one is killed."""
    return f"{MARK}{os.getpid()}"


def scratch(folder: str | None = None) -> tempfile.TemporaryDirectory:
    """A temporary folder."""
    sweep_once(Path(folder or tempfile.gettempdir()))
    return tempfile.TemporaryDirectory(prefix=f"{mark()}-", dir=folder)


def sweep(folder: Path | None = None, own: bool = False) -> None:
    """Remove what dead processes left in a folder, and their memory; own: also what this one would leave."""
    found = []
    for path in (folder or Path(tempfile.gettempdir())).glob(f"*{MARK}*"):
        number = re.search(rf"{re.escape(MARK)}(\d{{1,9}})\b", path.name)
        if number and (_is_dead(int(number[1])) or (own and mark() == number[0])):
            found.append(path)
    names = set(Path(SHARED).glob(ENGINES))
    for path in [*found, *(names and names - _in_use())]:
        with suppress(OSError):  # another sweep was first; another user's
            shutil.rmtree(path) if path.is_dir() else path.unlink()


sweep_once = lru_cache(sweep)  # in the life of this process


def _is_dead(pid: int) -> bool:
    try:
        if os.name != "nt":  # where this is no question
            os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)  # else it is another user's
    return False


def _in_use() -> set[Path]:
    """All files that processes have open or mapped (Linux): opened first, then mapped, then closed."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(process / "fd"):
                with suppress(OSError):
                    found.add(os.readlink(process / "fd" / descriptor))
            lines = (process / "maps").read_text().splitlines()
            found |= {line.split(maxsplit=5)[-1] for line in lines}
    return set(map(Path, found))
