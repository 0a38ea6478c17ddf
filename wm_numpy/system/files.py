"""Files that are whole or not there: arrays and JSON, written beside the old one and renamed; a lock on a folder."""

import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .process import mark, sweep_once

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

MEND = "delete it, or move it away, and repeat the command"


class DataError(ValueError):
    """A file that is not what it should be; the message names it and says how to fix it."""


def write(path: Path, content: np.ndarray | dict | list | bytes) -> None:
    """Write an array as .npy, named arrays as .npz, bytes as they are, anything else as JSON.

    If the process is killed, either the old file or the new one is there. DataError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        beside = path.with_name(f".{path.name}.{mark()}.part")
        try:
            with open(beside, "wb") as file:
                if isinstance(content, np.ndarray):
                    np.save(file, content, allow_pickle=False)
                elif path.suffix == ".npz":
                    np.savez(file, **content)
                elif isinstance(content, bytes):
                    file.write(content)
                else:
                    file.write((json.dumps(content, indent=1) + "\n").encode())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError while `path` is written becomes a DataError that names it."""
    try:
        yield
    except OSError as error:
        why = error.strerror or f"{error}: is the disk full?"  # NumPy gives only a count
        raise DataError(f"{path} cannot be written ({why})") from error


def is_empty(folder: Path) -> bool:
    """Whether the folder is missing, or holds only dot files such as .DS_Store."""
    return not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder until this process ends, however it ends; DataError says which process holds it."""
    with open(folder / ".lock", "a+") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                file.seek(1 << 20)  # the text before it stays readable
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            fault = f"{owner} is at work in {folder}: wait or choose another --out"
            raise DataError(fault) from None
        except OSError as error:  # some network disks
            danger = f"no lock on {folder} ({error}): let no other process work there"
            warnings.warn(danger, stacklevel=3)
        since = time.strftime("%d %b %H:%M")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {since},")
        file.flush()
        yield


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """An error while `path` is read becomes a DataError that names it; a FileNotFoundError stays one."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # np.load also raises those of zipfile, zlib and struct
        raise DataError(f"{path} is damaged or of another run ({error}): {MEND}") from None


def read_arrays(path: Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All arrays of an .npz; DataError unless the named ones exist, are finite and of this shape (-1: any length)."""
    with _reading(path):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
        for name, shape in shapes.items():
            if name not in arrays:
                raise ValueError(f"it has no {name!r}")
            found = arrays[name].shape
            pairs = zip(shape, found, strict=False)
            if len(found) != len(shape) or any(n not in (-1, m) for n, m in pairs):
                raise ValueError(f"{name} has shape {found}, not {shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds values that are not numbers")
        return arrays


def read_records(path: Path, field: str) -> np.ndarray:
    """The structured array of a .npy; DataError unless it is whole and has this field."""
    with _reading(path):
        records = np.load(path, allow_pickle=False)
        records[field]
        return records
