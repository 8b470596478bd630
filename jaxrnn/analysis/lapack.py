"""Small factorisations on the host's cores, without the BLAS threads that slow them down.

Eigenvalues, SVD and QR on a CPU are LAPACK calls. OpenBLAS splits even a 100×100 matrix over all cores
and lets its threads spin while they wait; on a busy two-core machine one ``eigvals`` of that size went from
1.3 to 214 milliseconds. Analysis makes thousands of small calls, so each of them gets one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from threadpoolctl import threadpool_limits


def one_blas_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function of arrays to its end with BLAS held to one thread."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        with threadpool_limits(limits=1, user_api="blas"):
            return jax.block_until_ready(function(*args, **kwargs))

    return limited
