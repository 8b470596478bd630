"""Covariant Lyapunov vectors: the directions that grow at the rates of the Lyapunov exponents.

The orthogonal directions of `lyapunov` depend on the order in which they are orthogonalised; only the first
is more than a basis vector. The covariant vectors do not depend on it: the step maps each to its successor,

    J_t v_i(t−1) = γ_i(t) v_i(t) ,        ⟨ln γ_i⟩ = λ_i ,

both forward and backward in time. Ginelli et al. (2007, "Characterizing Dynamics with Covariant Lyapunov
Vectors") compute them as v = Q c. Q comes from the factorisations J_t Q_{t−1} = Q_t R_t of a forward pass.
The coefficients c, upper triangular, come from a backward pass, c_{t−1} ∝ R_t⁻¹ c_t. Both passes need time to
converge, so steps at both ends of the trajectory are discarded.

Weakness: everything is stored, K·S numbers a step. If two exponents are equal, their vectors are not
determined in the long run, only the plane that they span.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.analysis._jacobians import jacobians
from jaxrnn.analysis.flows import time_step_of
from jaxrnn.analysis.lapack import one_blas_thread, singular_values
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.typing import Key, StepLike, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CovariantVectors:
    """Covariant Lyapunov vectors along the middle of a trajectory.

    Attributes:
      vectors: unit vectors as columns, by decreasing exponents, at N states [N, *B, S, K].
      local_rates: ln γ, growth of each vector from one of these states to the next, nats a step (or a unit of
        time for a `Flow`) [N − 1, *B, K].
      first: index of the first of these states in ``trajectory.states``.
    """

    vectors: Float[Array, "N *B S K"]
    local_rates: Float[Array, "M *B K"]
    first: int = dataclasses.field(metadata={"static": True})

    @property
    def exponents(self) -> Float[Array, "*B K"]:
        """Mean local rates: the Lyapunov exponents along these states [*B, K]."""
        return self.local_rates.mean(axis=0)

    @checked
    def angles(self, dimension: int) -> Float[Array, "N *B"]:
        """Smallest angle between the first `dimension` vectors and the others, radians [N, *B].

        Where the dynamics is hyperbolic, the angle between expanding and contracting directions stays away
        from 0.
        """
        count = self.vectors.shape[-1]
        checks.within("dimension", dimension, 1, count - 1, ", so that both sides have some")
        one, other = (
            _basis(side) for side in (self.vectors[..., :dimension], self.vectors[..., dimension:])
        )
        shared = jnp.swapaxes(one, -1, -2) @ other
        # The cosine has no digits left for angles near 0, and the sine none near a right angle.
        sines, cosines = (singular_values(x) for x in (other - one @ shared, shared))
        return jnp.arctan2(sines[..., -1], cosines[..., 0])


@checked
def covariant_vectors(
    cell: StepLike,
    trajectory: Trajectory,
    *,
    k: int | None = None,
    settle: int | None = None,
    key: Key | None = None,
) -> CovariantVectors:
    """Compute the covariant Lyapunov vectors along a trajectory.

    Args:
      cell: a cell, any function ``(carry, x) -> (carry, y)``, or a `Flow`.
      trajectory: a path of T steps, from `trace`.
      k: number of vectors, by decreasing exponent; by default all S.
      settle: number of steps discarded at each end; by default a quarter of them.
      key: draws the starts of both passes.

    Raises:
      InputError: arguments that do not fit, or a Jacobian that is singular in the K directions and therefore
        has no inverse for the backward pass.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cat = lambda s, x: (jnp.array([[2.0, 1.0], [1.0, 1.0]]) @ s, s)
      >>> path = jaxrnn.analysis.trace(cat, None, carry=jnp.zeros(2), length=80)
      >>> found = jaxrnn.analysis.covariant_vectors(cat, path)
      >>> bool(jnp.allclose(found.exponents, jnp.array([0.9624237, -0.9624237]), atol=1e-5))
      True
    """
    matrices = jacobians(cell, trajectory)
    matrices = matrices.astype(at_least_float32(matrices.dtype))
    steps, size = len(matrices), matrices.shape[-1]
    k = size if k is None else k
    checks.within("k", k, 1, size, ", the size of the state")
    settle = steps // 4 if settle is None else settle
    checks.within("settle", settle, 0, (steps - 1) // 2, f", so that some of {steps} are left")
    forward, backward = jax.random.split(jax.random.key(0) if key is None else key)
    start = jax.random.normal(forward, (*matrices.shape[1:-1], k), matrices.dtype)
    bases, triangles = _forward(matrices, start)
    _refuse_singular(triangles)
    ends = jax.random.normal(backward, triangles.shape[1:], matrices.dtype)
    coefficients, rates = _backward(triangles, ends)
    kept = slice(settle, steps + 1 - settle)
    vectors = bases[kept] @ coefficients[kept]
    local_rates = rates[settle : steps - settle] / time_step_of(cell)
    return CovariantVectors(vectors, local_rates, first=settle)


@one_blas_thread
def _basis(columns: Any) -> Any:
    return jnp.linalg.qr(columns)[0]


@one_blas_thread
@jax.jit
def _forward(matrices: Any, start: Any) -> tuple[Any, Any]:
    """Return Q_0 … Q_T [T + 1, *B, S, K] and R_1 … R_T [T, *B, K, K]."""

    def step(q, matrix):
        q, r = jnp.linalg.qr(matrix @ q)
        return q, (q, r)

    first, _ = jnp.linalg.qr(start)
    _, (bases, triangles) = jax.lax.scan(step, first, matrices)
    return jnp.concatenate([first[None], bases]), triangles


@one_blas_thread
@jax.jit
def _backward(triangles: Any, ends: Any) -> tuple[Any, Any]:
    """Return the coefficients at all T + 1 states, and the growth of each vector in each of the T steps."""

    def step(after, triangle):
        # Scale by the largest entry, because squares leave the range of floats long before entries do.
        unit = jnp.abs(triangle).max(axis=(-2, -1), keepdims=True)
        before = jax.scipy.linalg.solve_triangular(triangle / unit, after)
        lengths = jnp.linalg.norm(before, axis=-2)
        before = before / lengths[..., None, :]
        return before, (before, jnp.log(unit[..., 0]) - jnp.log(lengths))

    last = jnp.triu(ends)
    last = last / jnp.linalg.norm(last, axis=-2)[..., None, :]
    _, (coefficients, rates) = jax.lax.scan(step, last, triangles, reverse=True)
    return jnp.concatenate([coefficients, last[None]]), rates


def _refuse_singular(triangles: Any) -> None:
    if not checks.concrete(triangles):
        return
    rounding = 64 * np.finfo(triangles.dtype).eps
    triangles = np.asarray(triangles, np.float64)  # squares of float32 do not overflow here
    lengths = np.abs(np.diagonal(triangles, axis1=-2, axis2=-1))
    bad = lengths <= rounding * np.linalg.norm(triangles, axis=(-2, -1))[..., None]
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        got = f"a step that is singular in direction {where[-1]}, at {where[:-1]}"
        checks.refuse("cell", got, f"steps that can be undone, or k of at most {where[-1]}")
