"""World Models (Ha & Schmidhuber 2018), whole, in NumPy.

BLAS is kept on one thread, and the batch is split over Python threads instead (parallel.py): then not only the
matrix products but everything runs on all cores, many times faster. The variables count when set before NumPy is
first imported; after that BLAS itself is told. Who has set OPENBLAS_NUM_THREADS is obeyed in either order.
"""

import os
import sys

_named = "OPENBLAS_NUM_THREADS" in os.environ
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")


def _blas_on_one_thread() -> None:
    """Tell the BLAS that NumPy has loaded; a warning where it is none of those known here."""
    import ctypes
    import warnings
    from pathlib import Path

    import numpy as np

    # A symbol is looked for in a library and in those that it was linked with; not so on Windows.
    files = [np.linalg._umath_linalg.__file__, *Path(np.__file__).parents[1].glob("numpy.libs/*openblas*.dll")]
    openblas = [f"{start}openblas_set_num_threads{end}" for start in ("scipy_", "") for end in ("64_", "")]
    for file in files:
        library = ctypes.CDLL(str(file))
        for name in (*openblas, "MKL_Set_Num_Threads"):
            if hasattr(library, name):
                getattr(library, name)(1)
                return
    warnings.warn("import wm_numpy before numpy, or set OMP_NUM_THREADS=1: many times faster", stacklevel=3)


if "numpy" in sys.modules and not _named:
    _blas_on_one_thread()
