"""Certificates: identities that hold for every network, checked on the measured numbers.

- **Jacobian.** J v equals the forward-mode derivative of the step itself, for a random v of each sequence.
  If sequences affect each other, it does not.
- **Determinant.** The product of a product's singular values is the product of its factors' determinants:
  Σ log σ = Σ_t log |det J_t|.
- **Gradient.** ‖∂L/∂s_1‖ from the flow equals the norm that autodiff gives for the whole run.
- **Lags.** The parts of the parameter gradient by lag sum to the gradient that autodiff gives.
- **Exponents.** The sum of all Lyapunov exponents is the mean of log |det J_t|.

Each is reported as the largest difference found, or as NaN if it cannot be computed: a product with a factor
that is singular to rounding has no finite logarithm to compare, and a gradient beyond the range of floats has
no norm.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.analysis._gradient_flow import GradientFlow, output_gradients
from jaxrnn.analysis._lag_contributions import LagContributions
from jaxrnn.analysis._propagator import Propagator
from jaxrnn.analysis._spectrum import Spectrum
from jaxrnn.analysis.exponents import Lyapunov
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.batching import for_batch
from jaxrnn.steps import carry_of, compiled, flat_state, moves_state, readout_of, shapes_of_one
from jaxrnn.typing import Loss, Step


@dataclasses.dataclass(frozen=True)
class Certificates:
    """The largest differences found, each of which is only rounding if all is well.

    Attributes:
      jacobian: between J v and the step's own derivative, relative to the length of the latter.
      determinant: between Σ log σ and Σ log |det J|, nats a step of lag.
      gradient: between ‖∂L/∂s_1‖ and autodiff's norm, relative.
      lags: between Σ_k g_k and autodiff's parameter gradient, relative.
      exponents: between Σ λ and ⟨log |det J|⟩, nats a step.
    """

    jacobian: float
    determinant: float
    gradient: float
    lags: float
    exponents: float

    def __str__(self) -> str:
        named = dataclasses.asdict(self).items()
        known = [(name, difference) for name, difference in named if not math.isnan(difference)]
        return ", ".join(f"{name} {difference:.0e}" for name, difference in known)


def certify(
    cell: Step,
    trajectory: Trajectory,
    matrices: Any,
    spectra: Spectrum,
    product: Propagator,
    flow: GradientFlow,
    loss: Loss,
    *,
    contributions: LagContributions | None,
    exponents: Lyapunov,
) -> Certificates:
    """Check the identities on the measurements along one trajectory."""
    return Certificates(
        jacobian=float(_jacobian_difference(cell, trajectory, matrices)),
        determinant=_determinant_difference(matrices, spectra, product),
        gradient=_gradient_difference(cell, trajectory, flow, loss),
        lags=math.nan if contributions is None else float(contributions.difference),
        exponents=float(exponents.determinant),
    )


@compiled
def _jacobian_difference(cell: Step, trajectory: Trajectory, matrices: Any) -> Any:
    depth = len(trajectory.batch)
    step = for_batch(cell, *_shapes_at_one(trajectory), trajectory.batch)
    states = trajectory.states[:-1]
    directions = jax.random.normal(jax.random.key(0), states.shape, states.dtype)

    def pushed(now):
        carry, x, direction = now
        move = moves_state(step, carry, x, depth)
        return jax.jvp(move, (flat_state(carry, depth),), (direction,), has_aux=True)[1]

    true = jax.lax.map(pushed, (trajectory.before, trajectory.xs, directions))
    difference = jnp.linalg.norm(
        jnp.einsum("...ij,...j->...i", matrices, directions) - true, axis=-1
    )
    length = jnp.linalg.norm(true, axis=-1)
    return jnp.max(jnp.where(difference > 0, difference / jnp.where(length > 0, length, 1), 0))


@one_blas_thread
def _determinant_difference(matrices: Any, spectra: Spectrum, product: Propagator) -> float:
    _, logs = np.linalg.slogdet(np.asarray(matrices, np.float64))
    singular = np.asarray(spectra.singular_values)
    rounding = singular.shape[-1] * float(jnp.finfo(matrices.dtype).eps)
    logs = np.where(singular[..., -1] > rounding * singular[..., 0], logs, np.nan)
    lags = np.asarray(product.lags)
    by_lag = np.cumsum(logs[::-1], axis=0)[lags - 1]
    sums = np.asarray(product.log_singular_values, np.float64).sum(axis=-1)
    comparable = np.isfinite(sums) & np.isfinite(by_lag)
    if not comparable.any():
        return math.nan
    steps = np.broadcast_to(lags.reshape(-1, *[1] * (sums.ndim - 1)), sums.shape)
    return float(np.max(np.abs(sums[comparable] - by_lag[comparable]) / steps[comparable]))


def _gradient_difference(
    cell: Step, trajectory: Trajectory, flow: GradientFlow, loss: Loss
) -> float:
    gradient = _gradient_at_first_state(cell, trajectory, output_gradients(loss, trajectory))
    if gradient is None:
        return math.nan
    norms = np.linalg.norm(np.asarray(gradient, np.float64), axis=-1)
    measured = np.exp(np.asarray(flow.log_norms[0], np.float64))
    tiny = float(jnp.finfo(gradient.dtype).tiny) ** 0.5
    comparable = np.isfinite(norms) & np.isfinite(measured) & (norms > tiny)
    if not comparable.any():
        return math.nan
    return float(np.max(np.abs(norms[comparable] - measured[comparable]) / norms[comparable]))


@compiled
def _gradient_at_first_state(cell: Step, trajectory: Trajectory, output_grads: Any) -> Any:
    """Return ∂L/∂s_1 [*B, S] by autodiff through all later steps; None if y_1 is not a function of s_1."""
    first = jax.tree.map(lambda leaf: leaf[1], trajectory.carries)
    depth = len(trajectory.batch)
    step = for_batch(cell, *_shapes_at_one(trajectory), trajectory.batch)
    readout = readout_of(step, first, jax.tree.map(lambda leaf: leaf[0], trajectory.xs))
    if readout is None:
        return None
    rest = jax.tree.map(lambda leaf: leaf[1:], trajectory.xs)

    def outputs(state):
        carry = carry_of(state, first)
        _, later = jax.lax.scan(lambda c, x: step(c, x), carry, rest, length=trajectory.length - 1)
        return jax.tree.map(lambda y, ys: jnp.concatenate([y[None], ys]), readout(carry), later)

    (gradient,) = jax.vjp(outputs, flat_state(first, depth))[1](output_grads)
    return gradient


def _shapes_at_one(trajectory: Trajectory) -> tuple[Any, Any]:
    return shapes_of_one(trajectory.carries), shapes_of_one(trajectory.xs)
