"""The propagator: the BPTT product, by which a change of the state k steps ago reaches the last state.

    P_k = ∂s_T/∂s_{T−k} = J_T · J_{T−1} · … · J_{T−k+1}          later factors on the left

Its singular values by lag describe the memory of the network along one trajectory. The largest bounds every
gradient that BPTT can deliver over k steps; the smallest say which directions are lost. Its singular vectors
say *what* is remembered: a change along the right vector v_i, k steps ago, becomes a change along the left
vector u_i at the end, σ_i times as long; a gradient along u_i goes back to one along v_i.

Both are computed in graded form with logarithms (`jaxrnn.analysis.graded`), so nothing overflows. The product
is computed in float64 whatever the cell's precision. In float32, ten thousand steps would accumulate an error
of a nat, and directions that decay faster than others by a factor of 10⁷ would be lost. A TPU has no float64
factorisations, so there the product is computed in float32, with these limits.

A singular vector is determined only as well as its singular value is separated from the others: if two are
equal, only the plane of their vectors is determined.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from jaxrnn import checks
from jaxrnn.analysis._jacobians import jacobians
from jaxrnn.analysis.graded import (
    Graded,
    graded,
    left_multiply,
    log_singular_values,
    singular_vectors,
)
from jaxrnn.analysis.lapack import in_float64, one_blas_thread, square_matrices
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, StepLike

_DEFAULT_LAGS = 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Propagator:
    """Singular values of ∂s_T/∂s_{T−k}.

    Attributes:
      lags: the lags k, in steps, increasing [K].
      log_singular_values: natural logarithms, decreasing along the last axis [K, *B, S]; −inf where the
        product is singular to rounding.
    """

    lags: Int[Array, "K"]
    log_singular_values: Float[Array, "K *B S"]

    @property
    def rate(self) -> Rate:
        """Growth of the largest singular value, nats a step of lag, over the sequences."""
        return rate_by_lag(self.lags, self.log_singular_values[..., 0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PropagatorDirections:
    """The R leading singular values and vectors of ∂s_T/∂s_{T−k}.

    Attributes:
      lags: the lags k, in steps, increasing [K].
      log_singular_values: natural logarithms, decreasing along the last axis [K, *B, R]; −inf where the
        product is singular to rounding.
      left: the changes at the end that `right` leads to, columns of length 1 [K, *B, S, R].
      right: the changes k steps ago, columns of length 1 [K, *B, S, R].
    """

    lags: Int[Array, "K"]
    log_singular_values: Float[Array, "K *B R"]
    left: Float[Array, "K *B S R"]
    right: Float[Array, "K *B S R"]


@checked
def propagator(
    cell: StepLike, trajectory: Trajectory, lags: Sequence[int] | Any = None
) -> Propagator:
    """Return the singular values of the BPTT product of the last k steps, for each lag k.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      trajectory: a path of T steps, from `trace`.
      lags: lags k in 1 … T; by default about 20 of them, evenly spaced from 1 to T.

    Raises:
      InputError: a lag outside 1 … T, or a trajectory that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> doubling = lambda s, x: (2.0 * s, s)
      >>> path = jaxrnn.analysis.trace(doubling, None, carry=jnp.zeros(3), length=5)
      >>> log_sigma = jaxrnn.analysis.propagator(doubling, path, lags=[1, 5]).log_singular_values
      >>> bool(jnp.allclose(log_sigma / jnp.log(2.0), jnp.array([[1.0], [5.0]])))
      True
    """
    return propagator_of(jacobians(cell, trajectory), lags)


def propagator_of(matrices: ArrayLike, lags: Sequence[int] | Any = None) -> Propagator:
    """Return the propagator of given step Jacobians [T, *B, S, S], ordered by time.

    Raises:
      InputError: a lag outside 1 … T, or matrices that are not square or not finite.
    """
    given = square_matrices("matrices", matrices, axes=1)
    chosen = checked_lags(lags, 1, len(given))
    values = in_float64(functools.partial(_values, lags=tuple(chosen.tolist())), given)
    return Propagator(lags=jnp.asarray(chosen), log_singular_values=values)


@checked
def propagator_directions(
    cell: StepLike,
    trajectory: Trajectory,
    lags: Sequence[int] | Any = None,
    *,
    leading: int | None = None,
) -> PropagatorDirections:
    """Return singular values *and* vectors of the BPTT product of the last k steps, for each lag k.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      trajectory: a path of T steps, from `trace`.
      lags: lags k in 1 … T; by default about 20 of them, evenly spaced from 1 to T.
      leading: the number of singular values to return, largest first; by default all S.

    Raises:
      InputError: a lag outside 1 … T, `leading` outside 1 … S, or a trajectory that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.analysis._propagator import propagator_directions
      >>> shrink = lambda s, x: (jnp.array([0.9, 0.1]) * s, s)
      >>> path = jaxrnn.analysis.trace(shrink, None, carry=jnp.zeros(2), length=50)
      >>> slow = propagator_directions(shrink, path, lags=[50], leading=1)
      >>> abs(slow.right[0]).tolist()  # the first unit is remembered
      [[1.0], [0.0]]
    """
    return directions_of(jacobians(cell, trajectory), lags, leading=leading)


def directions_of(
    matrices: ArrayLike, lags: Sequence[int] | Any = None, *, leading: int | None = None
) -> PropagatorDirections:
    """Return the propagator's directions for given step Jacobians [T, *B, S, S], ordered by time.

    Raises:
      InputError: a lag outside 1 … T, `leading` outside 1 … S, or matrices not square or not finite.
    """
    given = square_matrices("matrices", matrices, axes=1)
    chosen = checked_lags(lags, 1, len(given))
    size = given.shape[-1]
    kept = size if leading is None else leading
    checks.count("leading", kept)
    if kept > size:
        checks.refuse("leading", kept, f"1 to {size}, the size of the state")
    take = functools.partial(_directions, lags=tuple(chosen.tolist()), leading=int(kept))
    return PropagatorDirections(jnp.asarray(chosen), *in_float64(take, given))


@checked
def state_derivative(
    cell: StepLike, trajectory: Trajectory, start: int = 0, stop: int | None = None
) -> Inexact[Array, "*B S S"]:
    """Return ∂s_stop/∂s_start of a trajectory, the product of the step Jacobians in between, [*B, S, S].

    It is multiplied in float64 and returned in the precision of the cell. Over thousands of steps entries may
    round to zero; `propagator` computes the singular values of such products.

    Args:
      cell: the step.
      trajectory: from `trace`, T steps.
      start: index of the earlier state in ``trajectory.states``.
      stop: index of the later one; by default T, the last.

    Raises:
      InputError: indices that are out of range or in the wrong order, or a product that overflows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis import state_derivative, trace
      >>> step = lambda s, x: (0.5 * s, s)
      >>> float(
      ...     state_derivative(step, trace(step, None, carry=jnp.ones(1), length=5), start=2)[0, 0]
      ... )
      0.125
    """
    matrices = jacobians(cell, trajectory)
    stop = len(matrices) if stop is None else stop
    checks.within("stop", stop, 1, len(matrices), ", a step of the trajectory")
    checks.within("start", start, 0, stop - 1, ", before stop")
    product = in_float64(_product, matrices[start:stop])
    checks.finite("trajectory: the product of its Jacobians", product)
    return product


@jax.jit
def _product(matrices: Inexact[Array, "T *B S S"]) -> Inexact[Array, "*B S S"]:
    first, rest = matrices[0], matrices[1:]
    return jax.lax.scan(lambda product, matrix: (matrix @ product, None), first, rest)[0]


def checked_lags(lags: Any, first: int, last: int) -> np.ndarray:
    """Return the requested lags, increasing and unique; by default about 20 of first … last.

    Raises:
      InputError: no lags, lags that are not integers, or a lag outside first … last.
    """
    if lags is None:
        count = min(last - first + 1, _DEFAULT_LAGS)
        return np.unique(np.linspace(first, last, count).round().astype(int))
    chosen = np.unique(np.asarray(checks.as_array("lags", lags)))
    if chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        checks.refuse("lags", repr(lags), "one or more whole numbers of steps")
    if chosen[0] < first or chosen[-1] > last:
        got, expected = f"values from {chosen[0]} to {chosen[-1]}", f"{first} to {last}, the steps"
        checks.refuse("lags", got, expected)
    return chosen


@one_blas_thread
@functools.partial(jax.jit, static_argnames="lags")
def _values(matrices: Float[Array, "T *B S S"], *, lags: tuple[int, ...]) -> Any:
    def of_one(matrices):
        return jax.vmap(log_singular_values)(transposed_products(matrices, lags, vectors=False))

    return each_sequence(of_one, matrices)


@one_blas_thread
@functools.partial(jax.jit, static_argnames=("lags", "leading"))
def _directions(
    matrices: Float[Array, "T *B S S"], *, lags: tuple[int, ...], leading: int
) -> tuple[Any, Any, Any]:
    def of_one(matrices):
        products = transposed_products(matrices, lags, vectors=True)
        logs, right, left = jax.vmap(singular_vectors)(products)  # exchanged, as P is transposed
        return logs[..., :leading], left[..., :leading], right[..., :leading]

    return each_sequence(of_one, matrices)


def each_sequence(of_one: Callable[..., Any], matrices: Any, *others: Any) -> Any:
    """Map a function of one sequence's [T, …] to arrays [K, …] over all batch axes *B."""
    for _ in matrices.shape[1:-2]:
        of_one = jax.vmap(of_one, in_axes=1, out_axes=1)
    return of_one(matrices, *others)


def transposed_products(
    matrices: Float[Array, "T S S"], lags: tuple[int, ...], *, vectors: bool
) -> Graded:
    """Return Pᵀ_k for each lag in graded form, leading axis [K]; without `vectors` its q is empty.

    Pᵀ_k = Jᵀ_{T−k+1} · Pᵀ_{k−1} is accumulated from the last step backward and stored at each lag.
    """
    backward = jnp.flip(jnp.swapaxes(matrices, -1, -2), axis=0)[: lags[-1]]
    slots = np.full(lags[-1], len(lags))  # other steps write past the end: dropped
    slots[np.array(lags) - 1] = np.arange(len(lags))

    def keep(kept, product, slot):
        shown = product if vectors else product._replace(q=product.q[:0])
        return jax.tree.map(lambda all_, one: all_.at[slot].set(one, mode="drop"), kept, shown)

    def grow(state, step):
        product, kept = state
        transposed, slot = step
        product = left_multiply(transposed, product)
        return (product, keep(kept, product, slot)), None

    first = graded(backward[0])
    size = len(first.grades)
    shapes = ((size if vectors else 0, size), (size,), (size, size))
    room = Graded(*(jnp.zeros((len(lags), *shape), matrices.dtype) for shape in shapes))
    start = (first, keep(room, first, slots[0]))
    (_, kept), _ = jax.lax.scan(grow, start, (backward[1:], jnp.asarray(slots[1:])))
    return kept
