"""The memory curve of a linear network in closed form, as a reference for measured capacities.

    s' = W s + v u + noise ,        MC_k = (W^k v)ᵀ C⁻¹ (W^k v) ,        C = Σ_k W^k (v vᵀ + noise) W^kᵀ

with C the covariance of the state (White, Lee & Sompolinsky 2004). MC_k is the leverage of the row W^k v in
the matrix of all these rows. So C, whose condition number would be the square of that matrix's, is never
formed.

Weakness: it holds only for linear networks with independent input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cholesky, solve_discrete_lyapunov

from jaxrnn import checks
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike

_MOST_STEPS = 100_000  # within which an impulse response must decay


@checked
@one_blas_thread
def linear_memory(
    kernel: ArrayLike, input_kernel: ArrayLike, *, lags: int, noise_variance: float = 0.0
) -> Float[np.ndarray, "K"]:
    """Return the memory curve of s' = W s + v u (+ noise) for independent u of variance 1.

    MC_k = (W^k v)ᵀ C⁻¹ (W^k v), where C = Σ_k W^k (v vᵀ + noise) W^kᵀ is the covariance of the state. Without
    noise the curve sums to the dimension of the subspace that v reaches, S for almost all W and v.

    Args:
      kernel: W [S, S], acting from the left. Its spectral radius must be far enough below 1 that an impulse
        decays to rounding within 100 000 steps; 0.9996 is sufficient for normal matrices.
      input_kernel: v [S].
      lags: K; the lags are 0 … K − 1.
      noise_variance: variance of the independent noise that enters every unit at every step.

    Raises:
      InputError: shapes that do not fit, values that are not finite, a spectral radius that is not far enough
        below 1, or a noise variance below 0.

    Example:
      >>> import numpy as np
      >>> from jaxrnn.analysis import linear_memory
      >>> linear_memory(np.diag([0.5]), np.ones(1), lags=3).round(6).tolist()  # ¾ of 1/4^k
      [0.75, 0.1875, 0.046875]
    """
    checks.count("lags", lags)
    W, v = _checked_network(kernel, input_kernel)
    if not 0 <= noise_variance < math.inf:
        checks.refuse("noise_variance", noise_variance, "a finite number, 0 or above")
    radius = float(np.abs(np.linalg.eigvals(W)).max())
    if not radius < 1:
        checks.refuse(
            "kernel", f"a spectral radius of {radius:g}", "less than 1: memory that fades"
        )
    if not noise_variance and np.any(v):  # without noise the scale of v does not matter
        v = v / np.abs(v).max()
    rows = _impulse_response(W, v, lags)
    if noise_variance > 0:
        covariance = solve_discrete_lyapunov(W, noise_variance * np.eye(len(v)))
        rows = np.concatenate([rows, cholesky(covariance)])
    # vᵀ (AᵀA)⁻¹ v is the leverage of a row v of A. Scaling the columns changes only the conditioning.
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=0), np.finfo(np.float64).tiny)
    U, sigma, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = U[:, sigma > max(rows.shape) * np.finfo(np.float64).eps * sigma[0]]
    return (kept[:lags] ** 2).sum(axis=1)


def _impulse_response(W: Any, v: Any, least: int) -> Any:
    """Return v, W v, W² v, … as rows, at least `least` of them, until they have decayed to rounding."""
    rows, size, largest = [v], np.linalg.norm(v), np.linalg.norm(v)
    while len(rows) < least or size > np.finfo(np.float64).eps * largest:
        if len(rows) >= max(least, _MOST_STEPS):
            got = (
                f"an impulse response of which {size / largest:.0e} is left after {len(rows)} steps"
            )
            checks.refuse("kernel", got, "a spectral radius further below 1")
        rows.append(W @ rows[-1])
        size = np.linalg.norm(rows[-1])
        largest = max(largest, size)
    return np.stack(rows)


def _checked_network(kernel: Any, input_kernel: Any) -> tuple[Any, Any]:
    checks.floating("kernel", kernel)
    if np.ndim(kernel) != 2 or kernel.shape[0] != kernel.shape[1]:
        checks.refuse("kernel", checks.describe(kernel), "a square matrix [S, S]")
    checks.floating("input_kernel", input_kernel)
    checks.shape("input_kernel", input_kernel, kernel.shape[:1], "[S]")
    checks.finite("kernel", kernel)
    checks.finite("input_kernel", input_kernel)
    return np.asarray(kernel, np.float64), np.asarray(input_kernel, np.float64)
