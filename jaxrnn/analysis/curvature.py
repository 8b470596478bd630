"""The extreme eigenvalues of a Hessian without forming it: Lanczos on Hessian-vector products.

    H v = d/dε ∇L(θ + ε v)                                  forward over reverse, two gradients' time
    H Q = Q T + β q_{m+1} e_mᵀ                              Q: m orthonormal vectors, T: tridiagonal

The eigenvalues θ of T with eigenvectors s converge to those of H from inside, the extreme ones first, and
|θ − λ| ≤ |β s_m| for one eigenvalue λ of H (Lanczos 1950; Parlett 1980, ch. 13). An eigenvalue below minus
its error shows that a point where training has converged is a saddle, not a minimum (Dauphin et al. 2014).

Every new vector is orthogonalised twice against all previous ones. Without this, rounding produces copies of
eigenvalues already found (Paige 1971). The vectors are held in memory: m times the parameters.

Weakness: an eigenvector orthogonal to the random start is not found, and only one copy of a multiple
eigenvalue is. Where L has kinks, as with ReLU, H is that of the smooth piece that contains θ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HessianExtremes:
    """The extreme eigenvalues of a Hessian.

    Attributes:
      eigenvalues: the K smallest and the K largest, increasing [2 K]; all of them if there are fewer.
      errors: bounds on their distances from an eigenvalue of the Hessian [2 K], apart from rounding.
      steps: number of Hessian-vector products.
      gradient_norm: ‖∇L‖; a point where it is far from 0 is neither a minimum nor a saddle.
      converged: whether all bounds are below the tolerance times the largest modulus.
    """

    eigenvalues: Float[np.ndarray, "N"]
    errors: Float[np.ndarray, "N"]
    steps: int
    gradient_norm: float
    converged: bool

    @property
    def text(self) -> str:
        """The ends of the spectrum with their errors, in words."""
        low, high = (f"{self.eigenvalues[i]:.4g} ± {self.errors[i]:.1g}" for i in (0, -1))
        status = "" if self.converged else " (not converged: more steps)"
        return f"eigenvalues from {low} to {high} in {self.steps} steps{status}"


@checked
def hessian_extremes(
    loss: Callable[[Any], Any],
    parameters: Any,
    *,
    key: Key,
    count: int = 1,
    steps: int = 64,
    tolerance: float = 1e-3,
) -> HessianExtremes:
    """Return the smallest and the largest eigenvalues of ∂²L/∂θ².

    Args:
      loss: maps the parameters to a scalar.
      parameters: θ, a tree of floats, such as a cell or a model; P numbers in all.
      key: draws the first vector.
      count: K, the number of eigenvalues at each end.
      steps: m, the largest number of Hessian-vector products; P suffice.
      tolerance: error that counts as converged, relative to the largest modulus.

    Raises:
      InputError: parameters that are not floating-point, a loss that is not a scalar, a count or number of
        steps out of range, or curvature that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrnn.analysis import hessian_extremes
      >>> bowl = lambda x: jnp.sum(jnp.array([-1.0, 2.0, 5.0]) * x**2)
      >>> hessian_extremes(bowl, jnp.ones(3), key=jax.random.key(0)).eigenvalues.round(4).tolist()
      [-2.0, 10.0]
    """
    checks.counts(count=count, steps=steps)
    checks.positive("tolerance", tolerance)
    checks.finite("parameters", parameters)
    if not all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(parameters)
    ):
        checks.refuse("parameters", checks.describe(parameters), "a tree of floats")
    flat, restore = ravel_pytree(parameters)
    if not flat.size:
        checks.refuse("parameters", "none", "at least one number")
    value = jax.eval_shape(loss, parameters)
    if getattr(value, "shape", None) != ():
        checks.refuse("loss", checks.describe(value), "a scalar")

    def gradient(theta: Any) -> Any:
        return jax.grad(lambda theta: loss(restore(theta)))(theta)

    def product(theta: Any, vector: Any) -> Any:
        return jax.jvp(gradient, (theta,), (vector,))[1]

    norm = float(jnp.linalg.norm(jax.jit(gradient)(flat)))
    start = jax.random.normal(key, flat.shape, flat.dtype)
    diagonal, beside, rest = _lanczos(jax.jit(product), flat, start, min(steps, flat.size))
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    errors = np.abs(rest * vectors[-1])
    ends = [*range(len(values))]
    if len(values) > 2 * count:
        ends = ends[:count] + ends[-count:]
    largest = np.abs(values).max()
    return HessianExtremes(
        values[ends],
        errors[ends],
        len(values),
        norm,
        bool((errors[ends] <= tolerance * largest).all()),
    )


def _lanczos(
    product: Callable[[Any, Any], Any], theta: Any, start: Any, steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return diagonal [m] and off-diagonal [m − 1] of T, and the last β: 0 if the space is exhausted.

    The recurrence is in float64 on the host: T is small, and everything depends on orthogonality.
    """
    vector = np.asarray(start, np.float64)
    basis = [vector / np.linalg.norm(vector)]
    diagonal, beside = [], []
    while True:
        image = np.asarray(product(theta, jnp.asarray(basis[-1], theta.dtype)), np.float64)
        checks.finite("loss: its curvature", image)
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            image = image - np.stack(basis, axis=1) @ (np.stack(basis) @ image)
        length = float(np.linalg.norm(image))
        scale = max(map(abs, (*diagonal, *beside)), default=0.0)
        if length <= 10 * float(jnp.finfo(theta.dtype).eps) * max(scale, np.finfo(float).tiny):
            return np.array(diagonal), np.array(beside), 0.0
        if len(diagonal) == steps:
            return np.array(diagonal), np.array(beside), length
        beside.append(length)
        basis.append(image / length)
