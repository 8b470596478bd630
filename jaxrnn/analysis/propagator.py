"""The BPTT product: how a change of the state k steps ago reaches the last state.

    P_k = ∂s_T/∂s_{T−k} = J_T · J_{T−1} · … · J_{T−k+1}          later factors on the left

Its singular values by lag are the memory of the network along one trajectory: the largest bounds every
gradient that BPTT can deliver over k steps, the smallest says which directions are lost. They are held
in logarithms from the start (`jaxrnn.analysis.graded`), so nothing overflows. The product is taken in
float64 whatever the cell's precision: in float32, ten thousand steps would add up to an error of a nat, and
directions that fade faster than others by 10⁷ would be lost. On a TPU, which has no float64 to factorise
in, it is taken in float32, with these limits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.analysis.graded import Graded, graded, left_multiply, log_singular_values
from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.typing import Step, at_least_float32

_DEFAULT_LAGS = 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Propagator:
    """Singular values of ∂s_T/∂s_{T−k}.

    Attributes:
      lags: the lags k, in steps, rising [K].
      log_singular_values: natural logarithms, falling along the last axis [K, *B, S]; −inf where the
        product is singular to rounding.
    """

    lags: Int[Array, "K"]
    log_singular_values: Float[Array, "K *B S"]

    @property
    def rate(self) -> Rate:
        """Growth of the largest singular value, nats a step of lag, over the sequences."""
        return rate_by_lag(self.lags, self.log_singular_values[..., 0])


def propagator(cell: Step, trajectory: Trajectory, lags: Sequence[int] | Any = None) -> Propagator:
    """Return the singular values of the BPTT product of the last k steps, for each lag k.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      trajectory: a path of T steps, from `trace`.
      lags: lags k in 1 … T; by default about 20 of them, spread evenly from 1 to T.

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


def propagator_of(
    matrices: Float[Array, "T *B S S"], lags: Sequence[int] | Any = None
) -> Propagator:
    """Return the propagator of given step Jacobians [T, *B, S, S], in the order of time."""
    chosen = _checked_lags(lags, matrices.shape[0])
    if jax.default_backend() == "tpu":
        products = _graded_products(matrices.astype(jnp.float32), lags=tuple(chosen.tolist()))
    else:
        with jax.enable_x64(True):
            products = _graded_products(matrices.astype(jnp.float64), lags=tuple(chosen.tolist()))
            products = products.astype(at_least_float32(matrices.dtype))
    return Propagator(lags=jnp.asarray(chosen), log_singular_values=products)


def _checked_lags(lags: Any, steps: int) -> Any:
    if lags is None:
        return np.unique(np.linspace(1, steps, min(steps, _DEFAULT_LAGS)).round().astype(int))
    chosen = np.unique(np.asarray(lags))
    if chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        checks.refuse("lags", repr(lags), "one or more whole numbers of steps")
    if chosen[0] < 1 or chosen[-1] > steps:
        checks.refuse(
            "lags", f"values from {chosen[0]} to {chosen[-1]}", f"1 to {steps}, the steps"
        )
    return chosen


@one_blas_thread
@functools.partial(jax.jit, static_argnames="lags")
def _graded_products(matrices: Any, lags: tuple[int, ...]) -> Float[Array, "K *B S"]:
    """Grow Pᵀ_k = Jᵀ_{T−k+1} · Pᵀ_{k−1} from the last step backwards and stop at each lag."""
    by_sequence = functools.partial(_products_of_one, lags=lags)
    for _ in matrices.shape[1:-2]:
        by_sequence = jax.vmap(by_sequence, in_axes=1, out_axes=1)
    return by_sequence(matrices)


def _products_of_one(matrices: Float[Array, "T S S"], lags: tuple[int, ...]) -> Float[Array, "K S"]:
    backward = jnp.flip(jnp.swapaxes(matrices, -1, -2), axis=0)[: lags[-1]]
    size = matrices.shape[-1]
    slots = np.full(lags[-1], len(lags))  # steps at no lag write past the end, and are dropped
    slots[np.array(lags) - 1] = np.arange(len(lags))

    def grow(state, step):
        product, kept_grades, kept_v = state
        transposed, slot = step
        product = left_multiply(transposed, product)
        return (product, *_keep(product, slot, kept_grades, kept_v)), None

    product = graded(backward[0])
    kept = (
        jnp.zeros((len(lags), size), matrices.dtype),
        jnp.zeros((len(lags), size, size), matrices.dtype),
    )
    start = (product, *_keep(product, slots[0], *kept))
    rest = (backward[1:], jnp.asarray(slots[1:]))
    (product, grades, v), _ = jax.lax.scan(grow, start, rest)
    del product  # its orthogonal factor has the singular vectors, which are not asked for
    ignored_q = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), v.shape)
    return jax.vmap(log_singular_values)(Graded(ignored_q, grades, v))


def _keep(product: Graded, slot: Any, grades: Any, v: Any) -> tuple[Any, Any]:
    return (
        grades.at[slot].set(product.grades, mode="drop"),
        v.at[slot].set(product.v, mode="drop"),
    )
