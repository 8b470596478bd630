"""Newton's method over all steps at once: the trajectory is the root of one system of equations.

    r_t(s) = s_t − step(s_t−1, x_t) = 0 ,   t = 1 … T

The method guesses a trajectory s, linearises the step around it, and solves the linear recurrence

    s_t ← step(s_t−1) + (1 − λ) J_t (s_t−1^new − s_t−1)        J_t = ∂step/∂s at s_t−1

by an associative scan: Lim et al. 2024, "Parallelizing non-linear sequential models over the sequence length"
(DEER). With only the diagonal of J_t the method is quasi-DEER, whose solve costs S per step instead of S³
(here the diagonal is taken from the whole J_t, and the gradient is computed step by step). The damping λ,
which shortens the reach of each linearisation, is due to Gonzalez et al. (2024, "Towards scalable and stable
parallelization of nonlinear RNNs"; 2025, scale-ELK). Every iteration makes at least one more step exact, so T
iterations suffice. Contracting dynamics need few iterations; chaotic dynamics need many, and may overflow.

The gradient is the implicit gradient. It is exact at the root, whichever Jacobian was used to find the root.
If the tolerance is not met, the steps are computed sequentially, and `Unrolled.convergence` says so. Under
``jax.vmap`` both paths always run.

The sequences of a batch must be independent. A step that mixes its leading axes is not detected, and its
gradient is wrong.

Weakness: S³ work and S² memory per step for the dense Jacobian. The method pays off for small states, long
sequences and many parallel cores; on a CPU the loop is faster.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.steps import batch_axes, carry_of, flat_state
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.associative import combinations, diagonal_recurrence
from jaxrnn.unrolling.blocks import at, before_each
from jaxrnn.unrolling.record import Convergence, Frames, Method, Unrolled, framed_step
from jaxrnn.unrolling.scan import Scan

Jacobian = Literal["dense", "diagonal"]

_DTYPES = ({jnp.dtype("float32")}, {jnp.dtype("float64")})

_Advance = Callable[..., Any]
"""One step of the whole state: (state [*B, S], frame, *weights) -> state."""


@checked
@dataclasses.dataclass(frozen=True)
class Newton(Method):
    """Newton's method over all steps at once.

    Args:
      tol: the residual |s_t − step(s_t−1)| at which the iteration has converged, relative to the largest
        entry of s_t, at every t; by default 100 times the resolution of the dtype.
      max_iters: iterations after which the steps are computed sequentially.
      damping: λ from 0 (Newton's method) to 1 (fixed-point iteration); a small λ helps with chaotic dynamics.
      jacobian: "dense", or "diagonal" for quasi-DEER.
    """

    tol: float | None = None
    max_iters: int = 100
    damping: float = 0.0
    jacobian: Jacobian = "dense"

    nests: ClassVar[bool] = False

    def __post_init__(self):
        """Require settings within their ranges."""
        if self.tol is not None:
            checks.positive("tol", self.tol)
        checks.count("max_iters", self.max_iters)
        if not 0 <= self.damping <= 1:
            checks.refuse("damping", self.damping, "a number from 0 to 1")
        checks.choice("jacobian", self.jacobian, get_args(Jacobian))

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        if {leaf.dtype for leaf in jax.tree.leaves(carry)} not in _DTYPES:
            expected = "float32 or float64 throughout with Newton()"
            checks.refuse("carry", checks.describe(carry), expected)
        step = framed_step(cell, initial)
        depth = len(batch_axes(cell, frames.x, carry))
        start = flat_state(carry, depth)

        def advance(state, frame):
            return flat_state(step(carry_of(state, carry), frame)[0], depth)

        def one_by_one():
            done = Scan()(cell, carry, frames, initial=initial, length=length)
            return flat_state(done.carries, 1 + depth)

        # Turn what the step closes over into arguments, to differentiate the equations with respect to it.
        pure, weights = jax.closure_convert(advance, start, at(frames, 0))
        found, convergence = self._search(
            pure, *jax.lax.stop_gradient((weights, start, frames)), length
        )
        found = jax.lax.cond(convergence.converged, lambda: found, one_by_one)
        dense = self.jacobian == "dense"
        states = _attached(pure, dense, weights, start, frames, jax.lax.stop_gradient(found))
        carries = jax.vmap(lambda state: carry_of(state, carry))(states)
        _, outputs = jax.vmap(step, axis_size=length)(before_each(carry, carries), frames)
        return Unrolled(outputs, at(carries, length - 1), carries, self, convergence)

    def rounds(self, length: int, convergence: Convergence | None) -> Int[Array, ""]:
        """Return the rounds of all iterations, plus those of the loop where they did not converge."""
        assert convergence is not None  # `__call__` always gives one
        loop = jnp.where(convergence.converged, 0, length)
        return convergence.iterations * combinations(length) + loop

    def _search(
        self, pure: _Advance, weights: Any, start: Any, frames: Frames, length: int
    ) -> tuple[Any, Convergence]:
        """Return the states of the trajectory [T, *B, S] and the convergence of the iteration."""
        tol = 100 * jnp.finfo(start.dtype).eps if self.tol is None else self.tol

        def advanced(states):
            return _all_advanced(pure, weights, frames, before_each(start, states))

        def sizes(states):
            """Return the largest entry of each step [T]."""
            return jnp.max(jnp.abs(states).reshape(length, -1), axis=1, initial=0)

        def is_found(states, new):
            left = sizes(new - states)
            return jnp.all(jnp.isfinite(left) & (left <= tol * sizes(new)))

        def unfinished(now):
            iteration, states, new = now
            return (iteration < self.max_iters) & ~is_found(states, new)

        def iterate(now):
            iteration, states, new = now
            linear = _jacobians(pure, weights, frames, before_each(start, states))
            left = new - states
            carried = self._solve(linear, left) - left
            # The correction is added to the step's own value, so that a step whose past is exact becomes
            # exact to the last bit. Nothing is added where the products overflowed.
            states = new + jnp.where(jnp.isfinite(carried), carried, 0)
            states = jnp.where(jnp.isfinite(states), states, 0)
            return iteration + 1, states, advanced(states)

        guess = jnp.broadcast_to(start, (length, *start.shape))
        first = (jnp.zeros((), jnp.int32), guess, advanced(guess))
        iterations, states, new = jax.lax.while_loop(unfinished, iterate, first)
        left = jnp.max(sizes(new - states))
        return states, Convergence(iterations, left, is_found(states, new))

    def _solve(self, linear: Any, left: Any) -> Any:
        """Return the corrections δ_t = r_t + (1 − λ) J_t δ_t−1 [T, *B, S]."""
        if self.jacobian == "dense":
            linear = (1 - self.damping) * linear
            return _dense_recurrence(linear, left, jnp.zeros_like(left[0]))
        diagonal = (1 - self.damping) * jnp.diagonal(linear, axis1=-2, axis2=-1)
        return diagonal_recurrence(diagonal, left, jnp.zeros_like(left[0]))


def _dense_recurrence(matrices: Any, gain: Any, first: Any) -> Any:
    """Return all s_t = J_t s_t−1 + gain_t [T, *B, S], s_0 = `first`, by an associative scan."""

    def apply(matrix, vector):
        return jnp.einsum("...ij,...j->...i", matrix, vector)

    def then(early, late):
        (j1, b1), (j2, b2) = early, late
        return j2 @ j1, apply(j2, b1) + b2

    gain = gain.at[0].add(apply(matrices[0], first))
    return jax.lax.associative_scan(then, (matrices, gain))[1]


def _products(matrices: Any) -> Any:
    """Return J_t … J_1 for every t [T, *B, S, S], by the same rounds as `_dense_recurrence`."""
    return jax.lax.associative_scan(lambda early, late: late @ early, matrices)


def _all_advanced(pure: _Advance, weights: Any, frames: Frames, states: Any) -> Any:
    """Take one step from each of the T states [T, *B, S]."""
    return jax.vmap(lambda state, frame: pure(state, frame, *weights))(states, frames)


def _jacobians(pure: _Advance, weights: Any, frames: Frames, states: Any) -> Any:
    """Return ∂step_t/∂states_t for all steps [T, *B, S, S], by pushing each unit vector through them."""

    def advance(states):
        return _all_advanced(pure, weights, frames, states)

    def push(unit):
        return jax.jvp(advance, (states,), (jnp.broadcast_to(unit, states.shape),))[1]

    units = jnp.eye(states.shape[-1], dtype=states.dtype)
    return jnp.moveaxis(jax.vmap(push)(units), 0, -1)


def _attached(
    pure: _Advance, dense: bool, weights: Any, start: Any, frames: Frames, found: Any
) -> Any:
    """Attach the implicit derivative to the states found.

    From s_t = step(s_t−1, θ) follows the linear recurrence ds_t = J_t ds_t−1 + ∂step/∂θ dθ. Its transpose is
    BPTT.
    """

    @jax.custom_jvp
    def attach(weights, start, frames, found):
        del weights, start, frames
        return found

    @attach.defjvp
    def derivative(primals, tangents):
        weights, start, frames, found = primals
        d_weights, d_start, d_frames, _ = tangents
        before = before_each(start, found)
        _, gain = jax.jvp(
            lambda weights, frames: _all_advanced(pure, weights, frames, before),
            (weights, frames),
            (d_weights, d_frames),
        )

        def one_by_one(gain, d_start):
            def step(d, at_t):
                state, frame, more = at_t
                _, moved = jax.jvp(lambda s: pure(s, frame, *weights), (state,), (d,))
                return moved + more, moved + more

            return jax.lax.scan(step, d_start, (before, frames, gain))[1]

        if not dense:
            return found, one_by_one(gain, d_start)
        matrices = _jacobians(pure, weights, frames, before)
        # Products of Jacobians over long stretches may overflow where the gradient does not: go step by step.
        finite = jnp.isfinite(_products(matrices)).all()
        at_once = functools.partial(_dense_recurrence, matrices)
        return found, jax.lax.cond(finite, at_once, one_by_one, gain, d_start)

    return attach(weights, start, frames, found)
