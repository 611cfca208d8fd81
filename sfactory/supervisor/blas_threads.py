"""One thread for the linear algebra of every process that steps environments.

A BLAS library starts as many threads as there are cores, in every process. Samplers run side by side and occupy the
cores already: with two of them on two cores, matrix products of 400 x 400 were 6 times slower than with one thread
each. The libraries read these variables when they are loaded, so they must be set before the interpreter starts.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Variables of OpenMP, which the libraries after it fall back to, and of each library."""


def one_thread(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to a process with this environment: none that the user has set, nor any that would override it.

    OMP_NUM_THREADS is what the user wants of all libraries; the variable of one library concerns that one alone.
    """
    if VARIABLES[0] in environ:
        return {}
    return {name: "1" for name in VARIABLES if name not in environ}
