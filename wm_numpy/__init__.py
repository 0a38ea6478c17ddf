"""World Models (Ha & Schmidhuber 2018) in NumPy.

    from wm_numpy import Agent, Dream, RealWorld, Task, check_pair, check_vector, faces  # loaded when first used

BLAS is kept on one thread, and the batch is split over Python threads instead (system/threads.py): then everything,
not only the matrix products, runs on all cores, many times faster. The variables below have an effect only before
NumPy is first imported; after that, BLAS itself is told. An OPENBLAS_NUM_THREADS that is already set is respected.
"""

import os
import sys
from importlib import import_module

_named = "OPENBLAS_NUM_THREADS" in os.environ
for _name in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
    os.environ.setdefault(f"{_name}_THREADS", "1")


def _blas_on_one_thread() -> None:
    """Tell the BLAS that NumPy has loaded; warn if it is an unknown one."""
    import ctypes
    import warnings
    from pathlib import Path

    import numpy as np

    # A symbol is looked up in a library and in those it was linked with; on Windows in that library alone.
    files = [np.linalg._umath_linalg.__file__]
    files += Path(np.__file__).parents[1].glob("numpy.libs/*openblas*.dll")
    openblas = "openblas_set_num_threads"
    names = [f"scipy_{openblas}64_", f"scipy_{openblas}", f"{openblas}64_", openblas]
    for file in files:
        library = ctypes.CDLL(str(file))
        for name in (*names, "MKL_Set_Num_Threads"):
            if hasattr(library, name):
                getattr(library, name)(1)
                return
    advice = "import wm_numpy before numpy, or set OMP_NUM_THREADS=1: many times faster"
    warnings.warn(advice, stacklevel=3)


if "numpy" in sys.modules and not _named:
    _blas_on_one_thread()


_ROOMS = {
    "Agent": "models.agent", "Dream": "worlds.world", "RealWorld": "worlds.world",
    "Task": "settings.tasks", "check_pair": "core.gradcheck", "check_vector": "core.gradcheck",
    "faces": "envs.faces",
}  # fmt: skip


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_ROOMS[name]}", __name__)
    return module if name == "faces" else getattr(module, name)
