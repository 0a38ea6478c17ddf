"""World Models (Ha & Schmidhuber 2018), whole, in NumPy.

BLAS is kept on one thread, and the batch is split over Python threads instead (parallel.py): then not only the
matrix products but everything runs on all cores. The variables count only when set before NumPy is first imported.
"""

import os
import sys

BLAS_THREADS_LEFT = "numpy" in sys.modules and "OPENBLAS_NUM_THREADS" not in os.environ  # parallel.py warns
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")
