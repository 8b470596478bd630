"""Small factorisations on the host's cores, without the BLAS threads that slow them down.

Eigenvalues, SVD and QR on a CPU are LAPACK calls. OpenBLAS splits even a 100×100 matrix over all cores and
lets its threads spin while they wait; on a busy two-core machine one ``eigvals`` of that size went from 1.3
to 214 milliseconds. Analyses make thousands of small calls, so each call gets one thread.

Only one factorisation runs at a time. A call on a batch hands its matrices to the thread pool on which it
runs itself, and waits for them (jaxlib 0.10). Two such calls that do not depend on each other run
concurrently, and deadlock on two cores. So no compiled program may contain two that could run concurrently,
and each program is waited for before the next is called; `tests/analysis/test_lapack.py` reads the programs.
A single matrix is not a batch.

Spectra and products are computed in float64 whatever the matrices' precision: an eigenvalue of condition κ
has the error κ ε ‖A‖, and the analysis of non-normal networks is about large κ. A TPU has no float64
factorisations and no eigenvalues of general matrices; the eigenvalues are computed on the host, in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact
from threadpoolctl import ThreadpoolController

from jaxrnn import checks
from jaxrnn.typing import ArrayLike, at_least_float32


def one_blas_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of arrays to run to completion with BLAS limited to one thread."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        with _libraries().limit(limits=1, user_api="blas"):
            return jax.block_until_ready(function(*args, **kwargs))

    return limited


@functools.cache
def _libraries() -> ThreadpoolController:
    """Return the libraries whose threads can be limited, cached because finding them takes milliseconds."""
    import scipy.linalg.cython_lapack  # noqa: F401  # loads XLA's LAPACK, so that it is found

    return ThreadpoolController()


def in_float64(compute: Callable[..., Any], *arrays: Array) -> Any:
    """Return compute(*arrays), computed in float64 and returned in the precision of the first array.

    Half precision is raised to float32. On a TPU everything is computed in float32.
    """
    own = at_least_float32(arrays[0].dtype)
    if jax.default_backend() == "tpu":
        return compute(*(array.astype(own) for array in arrays))
    with jax.enable_x64(True):
        found = compute(*(array.astype(_doubled(array.dtype)) for array in arrays))
        return jax.tree.map(lambda leaf: leaf.astype(_like(leaf, own)), found)


def resolution() -> float:
    """Return the relative rounding error of what `in_float64` computes."""
    return float(jnp.finfo(jnp.float32 if jax.default_backend() == "tpu" else np.float64).eps)


def _doubled(dtype: Any) -> Any:
    return jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64


def _like(leaf: Array, own: Any) -> Any:
    real = jnp.finfo(own).dtype
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf.dtype
    return np.result_type(real, np.complex64) if jnp.iscomplexobj(leaf) else real


@one_blas_thread
@jax.jit
def eigenvalues(matrices: Inexact[Array, "*B S S"]) -> Complex[Array, "*B S"]:
    """Return the eigenvalues of general matrices, by decreasing modulus.

    They are computed on the host if the device has no solver.
    """
    values = jax.lax.platform_dependent(matrices, tpu=_on_the_host, default=jnp.linalg.eigvals)
    order = jnp.argsort(-jnp.abs(values), axis=-1)
    return jnp.take_along_axis(values, order, axis=-1)


def _on_the_host(matrices: Any) -> Any:
    dtype = np.result_type(matrices.dtype, np.complex64)
    shape = jax.ShapeDtypeStruct(matrices.shape[:-1], dtype)

    def call(matrices):
        return np.linalg.eigvals(np.asarray(matrices)).astype(dtype)

    return jax.pure_callback(call, shape, matrices, vmap_method="expand_dims")


@one_blas_thread
@jax.jit
def singular_values(matrices: Inexact[Array, "*B M N"]) -> Float[Array, "*B R"]:
    """Return the singular values, in decreasing order."""
    return jnp.linalg.svd(matrices, compute_uv=False)


HOST = "LAPACK on the host"

_SOLVERS = {"cpu": "LAPACK", "tpu": f"{HOST}, float32"}


def solver() -> str:
    """Name the solver that `eigenvalues` uses on the default backend."""
    return _SOLVERS.get(jax.default_backend(), "XLA on the GPU")


def square_matrices(argument: str, matrices: ArrayLike, axes: int = 0) -> Array:
    """Return finite square matrices [..., S, S] with at least `axes` leading axes.

    Raises:
      InputError: not floating-point, too few axes, not square, empty, or not finite.
    """
    checks.floating(argument, matrices)
    shape = matrices.shape
    if len(shape) < 2 + axes or shape[-1] != shape[-2] or 0 in shape:
        legend = "[T, *B, S, S]" if axes else "[*B, S, S]"
        checks.refuse(argument, checks.describe(matrices), f"square matrices {legend}, S ≥ 1")
    checks.finite(argument, matrices)
    with np.errstate(over="ignore"):
        held = jnp.asarray(matrices)
    # If JAX stores float64 as float32, finite values may have overflowed.
    checks.finite(f"{argument} in {held.dtype}", held)
    return held
