"""Input sensitivity: the derivative of the last state with respect to the input of k steps ago.

    ∂s_T/∂x_{T−k} = J_T · … · J_{T−k+1} · ∂⁺s_{T−k}/∂x_{T−k} ,

where ∂⁺ is the immediate derivative, with the previous carry held fixed (Pascanu, Mikolov & Bengio 2013,
equation 5, for the input instead of the parameters). It is computed from the graded form of the product
(`jaxrnn.analysis.graded`), so it neither overflows nor is lost to rounding.
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
from jaxrnn.analysis._jacobians import input_jacobians, jacobians
from jaxrnn.analysis._propagator import checked_lags, each_sequence, transposed_products
from jaxrnn.analysis.graded import left_multiply, log_singular_values
from jaxrnn.analysis.lapack import in_float64, one_blas_thread, square_matrices
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, StepLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputSensitivity:
    """The R = min(S, F) singular values of ∂s_T/∂x_{T−k}.

    Attributes:
      lags: the lags k, in steps, increasing; 0 is the last input [K].
      log_singular_values: natural logarithms, decreasing along the last axis [K, *B, R]; −inf if an input has
        no influence, to rounding.
    """

    lags: Int[Array, "K"]
    log_singular_values: Float[Array, "K *B R"]

    @property
    def rate(self) -> Rate:
        """Growth of the largest singular value, nats a step of lag, over the sequences."""
        return rate_by_lag(self.lags, self.log_singular_values[..., 0])


@checked
def input_sensitivity(
    cell: StepLike, trajectory: Trajectory, lags: Sequence[int] | Any = None
) -> InputSensitivity:
    """Return the singular values of ∂s_T/∂x_{T−k} for each lag k.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      trajectory: a path of T steps, from `trace`, with inputs.
      lags: lags k in 0 … T − 1; by default about 20 of them, evenly spaced.

    Raises:
      InputError: a lag outside 0 … T − 1, or a trajectory without inputs or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis import trace
      >>> from jaxrnn.analysis._input_sensitivity import input_sensitivity
      >>> leaky = lambda s, x: (0.5 * s + 3.0 * x, s)
      >>> path = trace(leaky, jnp.ones((9, 1)), carry=jnp.zeros(1))
      >>> found = input_sensitivity(leaky, path, lags=[0, 1, 2])
      >>> jnp.exp(found.log_singular_values[:, 0]).round(4).tolist()  # 3 / 2^k
      [3.0, 1.5, 0.75]
    """
    inputs = input_jacobians(cell, trajectory)
    return input_sensitivity_of(jacobians(cell, trajectory), inputs, lags)


def input_sensitivity_of(
    matrices: ArrayLike, inputs: ArrayLike, lags: Sequence[int] | Any = None
) -> InputSensitivity:
    """Return the same from given step Jacobians [T, *B, S, S] and input Jacobians [T, *B, S, F].

    Raises:
      InputError: a lag outside 0 … T − 1, or arrays that do not fit each other or are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._input_sensitivity import input_sensitivity_of
      >>> halving, entering = jnp.full((9, 1, 1), 0.5), jnp.full((9, 1, 1), 3.0)
      >>> found = input_sensitivity_of(halving, entering, lags=[0, 1])
      >>> jnp.exp(found.log_singular_values[:, 0]).round(4).tolist()
      [3.0, 1.5]
    """
    matrices = square_matrices("matrices", matrices, axes=1)
    checks.floating("inputs", inputs)
    if np.ndim(inputs) != matrices.ndim or inputs.shape[:-1] != matrices.shape[:-1]:
        expected = f"shape {[*matrices.shape[:-1], 'F']}, [T, *B, S, F] as in matrices"
        checks.refuse("inputs", checks.describe(inputs), expected)
    checks.finite("inputs", inputs)
    chosen = checked_lags(lags, 0, len(matrices) - 1)
    take = functools.partial(_input_logs, lags=tuple(chosen.tolist()))
    return InputSensitivity(
        lags=jnp.asarray(chosen),
        log_singular_values=in_float64(
            lambda matrices, inputs: take(matrices, _triangles(inputs)),
            matrices,
            jnp.asarray(inputs),
        ),
    )


@one_blas_thread
@jax.jit
def _triangles(inputs: Float[Array, "T *B S F"]) -> Float[Array, "T *B Q S"]:
    """Return R of each derivative's transpose: dropping its Q on the left changes no singular value."""
    return jnp.linalg.qr(jnp.swapaxes(inputs, -1, -2), mode="r")


@one_blas_thread
@functools.partial(jax.jit, static_argnames="lags")
def _input_logs(
    matrices: Float[Array, "T *B S S"],
    triangles: Float[Array, "T *B Q S"],
    *,
    lags: tuple[int, ...],
) -> Float[Array, "K *B R"]:
    count, size = triangles.shape[-2:]

    def of_one(matrices, triangles):
        # Append an identity, so that the product for lag 0 is empty.
        padded = jnp.concatenate([matrices, jnp.eye(size, dtype=matrices.dtype)[None]])
        products = transposed_products(padded, tuple(k + 1 for k in lags), vectors=True)
        sources = triangles[len(triangles) - 1 - np.array(lags)]
        return jax.vmap(logs_at)(products, sources)[:, :count]

    def logs_at(product, triangle):
        """Return the log singular values of R · Pᵀ."""
        square = jnp.pad(triangle, ((0, size - count), (0, 0)))
        return log_singular_values(left_multiply(square, product))

    return each_sequence(of_one, matrices, triangles)
