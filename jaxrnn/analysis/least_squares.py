"""Two methods to minimise q, the squared residual of a fixed point, from one state.

    r(s) = F^p(s) − s ,    q(s) = ½ ‖r(s)‖² ,    A = ∂r/∂s = J − I ,    J = ∂F^p/∂s

- `LevenbergMarquardt`, the default, moves by −(AᵀA + λI)⁻¹ Aᵀr with λ = μ ‖r‖. It converges quadratically,
even to
  a point of a line or a surface of fixed points, where A is singular and Newton's method fails (Yamashita &
  Fukushima 2001; Fan & Yuan 2005). A step costs some S³ multiplications.
- `Descent` follows −∇q = −Aᵀr with an optimiser of optax, as Sussillo & Barak did. A step costs as much as a
step
  of the network, but thousands are needed, and impractically many where A is ill-conditioned.

Weakness: Levenberg–Marquardt squares the condition number. If that of A exceeds 1/√ε, 3000 in float32, it
converges no faster than descent.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Inexact

from jaxrnn import checks
from jaxrnn.analysis._jacobians import general_jacobians, structured_jacobians
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.contract import is_split
from jaxrnn.steps import carry_of
from jaxrnn.typing import Carry, Step


@dataclasses.dataclass(frozen=True)
class Power:
    """F^p under a constant input, as a map of flat states [S].

    Attributes:
      cell: the step F.
      x: its input.
      like: a carry, as a template.
      period: p.
    """

    cell: Step
    x: Any
    like: Carry
    period: int

    def path(self, state: Inexact[Array, "S"]) -> Trajectory:
        """Return the trajectory of p steps from a state."""
        step = for_batch(self.cell, self.like, self.x, ())

        def move(carry, _):
            moved, _ = step(carry, self.x)
            return moved, moved

        first = carry_of(state, self.like)
        _, rest = jax.lax.scan(move, first, None, length=self.period)
        return Trajectory(
            xs=jax.tree.map(lambda x: jnp.broadcast_to(x, (self.period, *x.shape)), self.x),
            carries=jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest),
            outputs=None,
            batch=(),
        )

    def residual(self, state: Inexact[Array, "S"]) -> Inexact[Array, "S"]:
        """Return F^p(s) − s."""
        return self.path(state).states[-1] - state

    def jacobian(self, state: Inexact[Array, "S"]) -> Inexact[Array, "S S"]:
        """Return J_p … J_1 along the path from s."""
        path = self.path(state)
        if is_split(self.cell, self.like, self.x):
            steps = structured_jacobians(self.cell, path)
        else:
            steps = general_jacobians(self.cell, path)
        return functools.reduce(lambda product, step: step @ product, steps)


def half_square(residual: Any) -> Any:
    """Return q = ½ ‖r‖² over the last axis."""
    return 0.5 * (residual**2).sum(axis=-1)


class Search(abc.ABC):
    """A method that minimises q from one state; `jax.vmap` runs it from many.

    Attributes:
      max_iterations: number of iterations after which it gives up.
    """

    max_iterations: int

    @abc.abstractmethod
    def memory(self, state: Inexact[Array, "S"]) -> Any:
        """Return the initial internal state of the method, which is carried along with the state."""

    @abc.abstractmethod
    def advance(
        self, power: Power, state: Inexact[Array, "S"], residual: Inexact[Array, "S"], memory: Any
    ) -> tuple[Inexact[Array, "S"], Inexact[Array, "S"], Any, Bool[Array, ""]]:
        """Return the next state, residual and memory, and whether q is at a minimum."""


@checked
@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt(Search):
    """Gauss–Newton steps on q, damped by λ = μ ‖r‖.

    Args:
      max_iterations: number of steps, accepted or not, after which a candidate is given up.
      damping: the first μ. It is divided by four if q falls as the linear model predicts, and multiplied by
        four if it does not. A large value keeps a candidate from jumping far at first.
    """

    max_iterations: int = 200
    damping: float = 1e-3

    def __post_init__(self):
        """Refuse settings that are out of range."""
        checks.count("max_iterations", self.max_iterations)
        checks.positive("damping", self.damping)

    def memory(self, state: Inexact[Array, "S"]) -> Inexact[Array, ""]:
        """Return the first μ."""
        return jnp.asarray(self.damping, state.dtype)

    def advance(self, power, state, residual, memory):
        """Try one step; keep it if q falls."""
        slope = power.jacobian(state) - jnp.eye(state.size, dtype=state.dtype)
        move = regularised_step(slope, residual, memory * jnp.linalg.norm(residual))
        there = state + move
        left = power.residual(there)
        speed = half_square(residual)
        promised = speed - half_square(residual + slope @ move)
        gained = speed - half_square(left)
        # Written so that NaN, from an overflow or a failed factorisation, counts as no gain.
        taken = gained > 1e-4 * promised
        factor = jnp.where(
            gained > 0.75 * promised, 0.25, jnp.where(gained > 0.25 * promised, 1.0, 4.0)
        )
        rounding = 4 * float(jnp.finfo(state.dtype).eps) * speed
        at_minimum = (promised <= rounding) & ~(gained > rounding)
        damping = jnp.maximum(memory * factor.astype(state.dtype), 1e-8)
        state, residual = jnp.where(taken, there, state), jnp.where(taken, left, residual)
        return state, residual, damping, at_minimum


def regularised_step(
    slope: Inexact[Array, "S S"], residual: Inexact[Array, "S"], shift: Inexact[Array, ""] | float
) -> Inexact[Array, "S"]:
    """Return −(AᵀA + λI)⁻¹ Aᵀr, where λ is `shift` plus the rounding of AᵀA."""
    gram = slope.T @ slope
    rounding = 4 * float(jnp.finfo(gram.dtype).eps) * jnp.max(jnp.diagonal(gram))
    diagonal = (shift + rounding) * jnp.eye(len(gram), dtype=gram.dtype)
    factor = jnp.linalg.cholesky(gram + diagonal)
    return -jax.scipy.linalg.cho_solve((factor, True), slope.T @ residual)


@checked
@dataclasses.dataclass(frozen=True)
class Descent(Search):
    """Gradient descent on q, with a learning rate that decays to zero as a cosine.

    Args:
      max_iterations: number of steps after which a candidate is given up.
      learning_rate: the first learning rate.
      optimizer: maps a learning rate to an optax optimiser, as ``optax.adam`` does. It is called with 1, and
        its updates are multiplied by the rate.
    """

    max_iterations: int = 5000
    learning_rate: float = 0.02
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam

    def __post_init__(self):
        """Refuse settings that are out of range."""
        checks.count("max_iterations", self.max_iterations)
        checks.positive("learning_rate", self.learning_rate)

    def memory(self, state: Inexact[Array, "S"]) -> Any:
        """Return the optimiser's state, and the number of steps taken."""
        return self.optimizer(1.0).init(state), jnp.zeros((), state.dtype)

    def advance(self, power, state, residual, memory):
        """Take one step of the optimiser."""
        own, count = memory
        _, pull = jax.vjp(power.residual, state)
        (gradient,) = pull(residual)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            move, own = self.optimizer(1.0).update(gradient, own, state)
        rate = self.learning_rate * (1 + jnp.cos(np.pi / self.max_iterations * count)) / 2
        state = state + rate * jnp.asarray(move)
        return state, power.residual(state), (own, count + 1), jnp.zeros((), bool)
