"""Eigenvalues of BPTT products by lag, in logarithms.

    P_k = J_T · J_{T−1} · … · J_{T−k+1} ,        ρ(P_k) = max |λ| ≤ σ_1(P_k)

Singular values say how far a change of the state can propagate over k steps. Eigenvalues say what would
happen to it if the same k steps were repeated for ever. The two agree in the long run for one repeated
Jacobian and differ without limit for a non-normal one. Along a driven trajectory gradients follow the
singular values, so the distance between the two shows how wrong it is to say that "the largest eigenvalue
decides".

The product is stored as Q · diag(e^d) · V (`jaxrnn.analysis.graded`), so its eigenvalues are those of the
row-graded matrix diag(e^d) V Q. LAPACK's balanced QR algorithm usually finds the eigenvalues of such matrices
to high relative accuracy over twenty orders of magnitude and more, but without a guarantee. Two tests check
each result. First, the product of the eigenvalues must be the determinant; if it is not, only the eigenvalues
above rounding count. Second, each eigenvalue must be stable when the entries are perturbed by their rounding.
The eigenvalues of a defective or nearly defective product, as of non-normal networks, fail this test although
their product is right. Unstable eigenvalues are reported as NaN.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn.analysis._jacobians import jacobians
from jaxrnn.analysis._propagator import checked_lags, each_sequence, transposed_products
from jaxrnn.analysis.lapack import (
    eigenvalues,
    in_float64,
    one_blas_thread,
    resolution,
    square_matrices,
)
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, StepLike

_DETERMINANT = 1e-6  # nats by which the sum of log moduli may differ from the log determinant
_STAYS = 1e-6  # nats by which a log modulus may change with the rounding of the entries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductSpectrum:
    """Eigenvalues of ∂s_T/∂s_{T−k}.

    Attributes:
      lags: the lags k, in steps, increasing [K].
      log_moduli: log |λ|, nats, decreasing along the last axis [K, *B, S]; NaN where rounding hides it, −inf
        for eigenvalues that are zero because the product is singular.
      angles: arg λ, radians [K, *B, S].
    """

    lags: Int[Array, "K"]
    log_moduli: Float[Array, "K *B S"]
    angles: Float[Array, "K *B S"]

    @property
    def rate(self) -> Rate:
        """Growth of the spectral radius, nats a step of lag, over the sequences."""
        return rate_by_lag(self.lags, self.log_moduli[..., 0])


@checked
def product_spectrum(
    cell: StepLike, trajectory: Trajectory, lags: Sequence[int] | Any = None
) -> ProductSpectrum:
    """Return the eigenvalues of the BPTT product of the last k steps, for each lag k.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      trajectory: a path of T steps, from `trace`.
      lags: lags k in 1 … T; by default about 20 of them, evenly spaced from 1 to T.

    Raises:
      InputError: a lag outside 1 … T, or a trajectory that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> def spiral(s, x):
      ...     return 0.5 * jnp.stack([-s[1], s[0]]), x
      >>> path = jaxrnn.analysis.trace(spiral, None, carry=jnp.ones(2), length=8)
      >>> found = jaxrnn.analysis.product_spectrum(spiral, path, lags=[1, 8])
      >>> (found.log_moduli[:, 0] / jnp.log(0.5)).round(4).tolist()
      [1.0, 8.0]
    """
    return product_spectrum_of(jacobians(cell, trajectory), lags)


def product_spectrum_of(matrices: ArrayLike, lags: Sequence[int] | Any = None) -> ProductSpectrum:
    """Return the eigenvalues of products of given step Jacobians [T, *B, S, S], in the order of time.

    Raises:
      InputError: a lag outside 1 … T, or matrices that are not square or not finite.
    """
    given = square_matrices("matrices", matrices, axes=1)
    chosen = checked_lags(lags, 1, len(given))
    logs, angles = in_float64(functools.partial(_moduli, lags=tuple(chosen.tolist())), given)
    return ProductSpectrum(jnp.asarray(chosen), logs, angles)


def _moduli(matrices: Float[Array, "T *B S S"], *, lags: tuple[int, ...]) -> tuple[Array, Array]:
    """Return log moduli and angles; each factorisation waits for the one before (`lapack` says why)."""
    cores, tops, log_determinants, ranks = _cores(matrices, lags=lags)
    values = eigenvalues(cores)
    logs, changed = (jnp.log(jnp.abs(v)) for v in (values, eigenvalues(_rounded(cores))))
    size = logs.shape[-1]
    stays = (logs == changed) | (jnp.abs(logs - changed) < _STAYS)
    agree = jnp.abs(logs.sum(axis=-1) - log_determinants) < _DETERMINANT
    lengths = jnp.linalg.norm(cores, axis=(-2, -1))
    floor = jnp.log(64 * size * resolution() * lengths)[..., None]
    known = stays & (agree[..., None] | (logs > floor))
    logs = jnp.where(known, logs + tops[..., None], jnp.nan)
    # A product of rank r has at least S − r zero eigenvalues; set the smallest ones to zero.
    is_zero = jnp.broadcast_to(jnp.arange(size), logs.shape) >= ranks[..., None]
    return jnp.where(is_zero, -jnp.inf, logs), jnp.angle(values)


def _rounded(matrices: Float[Array, "*B S S"]) -> Float[Array, "*B S S"]:
    """Return matrices whose entries are perturbed by their rounding, up or down at random."""
    signs = jax.random.rademacher(jax.random.key(0), matrices.shape, matrices.dtype)
    return matrices * (1 + 4 * resolution() * signs)


@one_blas_thread
@functools.partial(jax.jit, static_argnames="lags")
def _cores(
    matrices: Float[Array, "T *B S S"], *, lags: tuple[int, ...]
) -> tuple[Array, Array, Array, Array]:
    """Return matrices e^−top P' with P' similar to P [K, *B, S, S]; top, their log |det| and rank [K, *B]."""

    def of_one(matrices):
        products = transposed_products(matrices, lags, vectors=True)
        top = products.grades.max(axis=-1)
        grades = products.grades - jnp.where(jnp.isfinite(top), top, 0)[:, None]
        turned = products.v @ products.q
        rank = jnp.isfinite(products.grades).sum(axis=-1)
        return jnp.exp(grades)[..., None] * turned, top, grades.sum(axis=-1), turned, rank

    cores, tops, sums, turned, ranks = each_sequence(of_one, matrices)
    return cores, tops, sums + jnp.linalg.slogdet(turned)[1], ranks
