"""Norm bounds on the gradient, which need no backward pass.

In an Elman network J_t = diag(φ'_t) W, and the norm of a product is at most the product of the norms:

    ‖J_T … J_1‖ ≤ ∏ σ₁(W) · max_i |φ'_{t,i}| ≤ (σ₁(W) γ)^T ,      γ = sup |φ'| .

So σ₁(W) γ < 1 is *sufficient* for gradients to vanish, and σ₁(W) γ > 1 is *necessary* for them to explode:
Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013. Their text says
"largest eigenvalue" where their proof uses the norm, the largest singular value. The two are the same only
for normal matrices: W = [[2, −4], [1, −2]] has no eigenvalue but 0, and a ReLU network whose second unit is
silent doubles its gradient at every step.

For any step, along one trajectory,

    ∏ σ_min(J_t) ≤ σ_min(J_T … J_1),        ‖J_T … J_1‖ ≤ ∏ ‖J_t‖ ,

which is never worse than the bound from the weights, and also gives a lower bound.

Weakness: norms ignore directions. A random tanh network of gain g has σ₁(W) ≈ 2 g, so its bound is ln 2 above
the true rate at the origin and further above it elsewhere. For most networks of interest the bound decides
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar

from jaxrnn import checks
from jaxrnn.analysis._jacobians import jacobians
from jaxrnn.analysis.lapack import in_float64, resolution, singular_values
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, StepLike

Activation = Callable[[Any], Any]
"""φ, applied elementwise to an array."""

_VANISHES = "vanishing for certain"
_EXPLODES = "exploding for certain"
_OPEN = "may explode"

_FAR, _NEAR = 1e4, 1e2  # slopes that still grow from near to far count as unbounded
_BATCH = 2**14  # points of one compiled evaluation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightBound:
    """Pascanu's bound: the largest growth of a gradient that an Elman network's weights allow.

    Attributes:
      norm: σ₁(W).
      slope: γ = sup |φ'|, or max_i |φ'_i| at each step of a trajectory [T, *B].
      rounding: possible rounding error of the rate, nats.
    """

    norm: float
    slope: Float[np.ndarray, "..."]
    rounding: float

    @property
    def rate_bound(self) -> Float[np.ndarray, "*B"]:
        """Largest possible growth of a gradient, nats a step: the mean of ln(σ₁ γ)."""
        with np.errstate(divide="ignore"):
            rates = np.log(self.norm * self.slope)
        return np.asarray(rates if rates.ndim == 0 else rates.mean(axis=0))

    @property
    def word(self) -> str:
        """What the bound proves: "vanishing for certain", or "may explode", which rules out nothing."""
        return _VANISHES if (self.rate_bound < -self.rounding).all() else _OPEN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrajectoryBound:
    """Largest and smallest singular value of every step Jacobian, and the bounds on their product.

    Attributes:
      log_norms: ln ‖J_t‖₂, [T, *B].
      log_least: ln σ_min(J_t), [T, *B]; −inf where J_t is singular to rounding.
    """

    log_norms: Float[Array, "T *B"]
    log_least: Float[Array, "T *B"]

    @property
    def rate_bound(self) -> Float[Array, "*B"]:
        """Upper bound on the growth of every gradient, nats a step."""
        return jnp.mean(self.log_norms, axis=0)

    @property
    def rate_floor(self) -> Float[Array, "*B"]:
        """Lower bound on the growth of every gradient, nats a step."""
        return jnp.mean(self.log_least, axis=0)

    @property
    def word(self) -> str:
        """What the bounds prove about all of these trajectories.

        One of "vanishing for certain", "exploding for certain" and "may explode", which rules out nothing.
        """
        rounding = float(jnp.finfo(self.log_norms.dtype).eps) * len(self.log_norms)
        if bool((self.rate_bound < -rounding).all()):
            return _VANISHES
        return _EXPLODES if bool((self.rate_floor > rounding).all()) else _OPEN


@checked
def weight_bound(
    kernel: ArrayLike, activation: Activation, preactivations: ArrayLike | None = None
) -> WeightBound:
    """Return the bound of Pascanu et al. for h' = φ(W h + …).

    Args:
      kernel: W or its transpose, [H, H], which have the same singular values.
      activation: φ.
      preactivations: arguments of φ along trajectories, [T, *B, H], for a tighter bound with the slopes that
        occur there; by default the bound holds for every trajectory.

    Raises:
      InputError: W is not a square matrix of finite floats, φ is not an elementwise function, or the
        preactivations are not finite or do not fit the size of W.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis.bounds import weight_bound
      >>> bound = weight_bound(0.9 * jnp.eye(4), jnp.tanh)
      >>> bound.word, round(float(bound.rate_bound), 4)
      ('vanishing for certain', -0.1054)
    """
    checks.floating("kernel", kernel)
    if np.ndim(kernel) != 2 or kernel.shape[0] != kernel.shape[1]:
        checks.refuse("kernel", checks.describe(kernel), "a square matrix [H, H]")
    checks.finite("kernel", kernel)
    size = kernel.shape[0]
    norm = float(np.linalg.norm(np.asarray(kernel, np.float64), 2))
    rounding = size * float(jnp.finfo(kernel.dtype).eps)
    return WeightBound(norm, _largest_slopes(activation, preactivations, size), rounding)


def _largest_slopes(activation: Activation, preactivations: Any, size: int) -> Any:
    if preactivations is None:
        return np.asarray(slope_bound(activation))
    check_elementwise(activation)
    checks.floating("preactivations", preactivations)
    if np.ndim(preactivations) < 2 or preactivations.shape[-1] != size:
        checks.refuse(
            "preactivations", checks.describe(preactivations), f"[T, *B, {size}], a unit a row of W"
        )
    checks.finite("preactivations", preactivations)
    return np.abs(slopes(activation, preactivations)).max(axis=-1)


@checked
def trajectory_bound(cell: StepLike, trajectory: Trajectory) -> TrajectoryBound:
    """Return bounds on the BPTT product of any step, from the step Jacobians of a trajectory.

    The singular values are computed in float64, on a TPU in float32.

    Raises:
      InputError: the trajectory contains values that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.analysis.bounds import trajectory_bound
      >>> halving = lambda s, x: (0.5 * s, s)
      >>> path = jaxrnn.analysis.trace(halving, None, carry=jnp.ones(3), length=5)
      >>> trajectory_bound(halving, path).word
      'vanishing for certain'
    """
    return trajectory_bound_of(in_float64(singular_values, jacobians(cell, trajectory)))


def trajectory_bound_of(sigma: Float[Array, "T *B S"]) -> TrajectoryBound:
    """Return the same bounds from the singular values of the step Jacobians, as stored in a `Spectrum`."""
    largest, least = sigma[..., 0], sigma[..., -1]
    noise = sigma.shape[-1] * resolution() * largest
    return TrajectoryBound(jnp.log(largest), jnp.log(jnp.where(least > noise, least, 0)))


@checked
def slope_bound(activation: Activation) -> float:
    """Return γ = sup |φ'| over the reals: tanh 1, sigmoid ¼; infinite where |φ'| keeps growing.

    It is found by a search, which is exact to rounding for a smooth maximum or for a limit at 0 or infinity.
    A slope that is large only on a short interval (less than a hundredth of its distance from 0) can be
    missed.

    Raises:
      InputError: φ is not an elementwise function, or its slope is NaN somewhere.

    Example:
      >>> import jax
      >>> from jaxrnn.analysis.bounds import slope_bound
      >>> slope_bound(jax.nn.sigmoid)
      0.25
    """
    check_elementwise(activation)
    ladder = np.geomspace(1e-12, _FAR, 8192)
    points = np.concatenate([-ladder[::-1], [0.0], ladder])
    sizes = np.abs(slopes(activation, points))
    if np.isnan(sizes).any():
        first = float(points[np.isnan(sizes)][0])
        checks.refuse("activation", f"a slope that is NaN at {first:g}", "a slope everywhere")
    best = int(sizes.argmax())
    if sizes[best] > 1.01 * sizes[np.abs(points) <= _NEAR].max():
        return float("inf")
    between = (points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)])
    refined: Any = minimize_scalar(
        lambda a: -abs(float(slopes(activation, np.asarray([a]))[0])),
        bounds=between,
        method="bounded",
        options={"xatol": 1e-12},
    )
    return max(float(sizes[best]), -float(refined.fun))


def slopes(activation: Activation, points: ArrayLike) -> Float[np.ndarray, "..."]:
    """Return φ' at given points, in float64 on the host."""
    return _on_host(_slopes, activation, points)


def values(activation: Activation, points: ArrayLike) -> Float[np.ndarray, "..."]:
    """Return φ at given points, in float64 on the host."""
    return _on_host(_values, activation, points)


def _on_host(evaluate: Any, activation: Activation, points: ArrayLike) -> Any:
    """Evaluate φ in batches of one size, so that it is compiled once."""
    points = np.asarray(points, np.float64)
    flat = np.pad(points.reshape(-1), (0, -points.size % _BATCH))
    host = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(host):
        batches = [jnp.asarray(batch) for batch in flat.reshape(-1, _BATCH)]
        found = [np.asarray(evaluate(activation, batch)) for batch in batches]
    return np.concatenate(found)[: points.size].reshape(points.shape)


@functools.partial(jax.jit, static_argnums=0)
def _values(activation: Activation, points: Any) -> Any:
    return activation(points)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(activation: Activation, points: Any) -> Any:
    return jax.jvp(activation, (points,), (jnp.ones_like(points),))[1]


def check_elementwise(activation: Activation) -> None:
    """Require a function of one array that returns an array of the same shape."""
    wanted = "a function of one array, elementwise, such as jnp.tanh"
    if not callable(activation):
        checks.refuse("activation", checks.describe(activation), wanted)
    example = jax.ShapeDtypeStruct((3,), jnp.float32)
    try:
        result = jax.eval_shape(activation, example)
    except Exception as error:
        raise checks.InputError(
            f"activation: got {activation!r}, which fails on one array ({error}); expected {wanted}"
        ) from error
    if getattr(result, "shape", None) != (3,) or not jnp.issubdtype(result.dtype, jnp.floating):
        checks.refuse("activation", f"a function that returns {checks.describe(result)}", wanted)
