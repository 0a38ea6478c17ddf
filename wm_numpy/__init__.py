"""World Models (Ha & Schmidhuber 2018), whole, in NumPy.

BLAS is kept on one thread, and the batch is split over Python threads instead (parallel.py): then not only the
matrix products but everything runs on all cores. The variables count only when set before NumPy is first imported.
"""

import os
import sys
import warnings

if "numpy" in sys.modules and "OPENBLAS_NUM_THREADS" not in os.environ:
    warnings.warn("import wm_numpy before numpy, or set OPENBLAS_NUM_THREADS=1: several times slower", stacklevel=2)
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")
