"""All steps at once: the trajectory as the root of one system of equations, found by Newton's method.

    r_t(s) = s_t − step(s_t−1, x_t) = 0 ,   t = 1 … T

A trajectory s is guessed; the step is linearised around it, and the linear recurrence

    s_t ← step(s_t−1) + (1 − λ) J_t (s_t−1^new − s_t−1)        J_t = ∂step/∂s at s_t−1

solved by an associative scan: Lim et al. 2024, "Parallelizing non-linear sequential models over the sequence
length" (DEER). With the diagonal of J_t alone it is quasi-DEER, whose solve costs S a step and
not S³ (here the diagonal is taken from the whole J_t, and the gradient goes step by step); the damping λ,
which shortens the reach of each linearisation, is Gonzalez et al.'s (2024, "Towards scalable
and stable parallelization of nonlinear RNNs"; 2025, scale-ELK). Every iteration makes at least one more step
exact, so T suffice; dynamics that contract need few, chaotic ones many, and may overflow on the way.

The gradient is the implicit one, exact at the root, whatever Jacobian found it. If the tolerance is not met,
the sequential path answers, and `Unrolled.convergence` says so; under ``jax.vmap`` both paths always run.

Weakness: S³ work and S² memory a step for the dense Jacobian. Worth it for small states, long sequences and
many parallel cores; on a CPU the loop is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.steps import batch_axes, carry_of, flat_state
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.associative import diagonal_recurrence
from jaxrnn.unroll.blocks import at, before_each
from jaxrnn.unroll.record import Convergence, Frames, Method, Unrolled, framed_step
from jaxrnn.unroll.scan import Scan

Jacobian = Literal["dense", "diagonal"]


@dataclasses.dataclass(frozen=True)
class Newton(Method):
    """Newton's method over all steps.

    Args:
      tol: the residual |s_t − step(s_t−1)| at which the trajectory counts as found, relative to the largest
        entry of s_t, at every t; by default 100 times the resolution of the dtype.
      max_iters: iterations before the sequential path takes over.
      damping: λ from 0 (Newton's method) to 1 (fixed-point iteration); a little tames chaotic dynamics.
      jacobian: "dense", or "diagonal" for quasi-DEER.
    """

    tol: float | None = None
    max_iters: int = 100
    damping: float = 0.0
    jacobian: Jacobian = "dense"

    nests: ClassVar[bool] = False

    def __post_init__(self):
        """Refuse settings out of range."""
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
        for leaf in jax.tree.leaves(carry):
            if leaf.dtype not in (jnp.float32, jnp.float64):
                checks.refuse("carry", checks.describe(leaf), "float32 or float64 with Newton()")
        step = framed_step(cell, initial)
        # What the step closes over becomes an argument, so that the equations can be differentiated by it.
        pure, weights = jax.closure_convert(lambda c, f: step(c, f)[0], carry, at(frames, 0))
        leading = 1 + len(batch_axes(cell, frames.x, carry))  # T, *B
        found, convergence = self._search(
            pure, *jax.lax.stop_gradient((weights, carry, frames)), length, leading
        )
        found = jax.lax.cond(
            convergence.converged,
            lambda: found,
            lambda: Scan()(cell, carry, frames, initial=initial, length=length).carries,
        )
        dense = self.jacobian == "dense"
        found = jax.lax.stop_gradient(found)
        carries = _attached(pure, dense, leading, weights, carry, frames, found)
        _, outputs = jax.vmap(step, axis_size=length)(before_each(carry, carries), frames)
        return Unrolled(outputs, at(carries, length - 1), carries, self, convergence)

    def _search(
        self,
        pure: Callable[..., Carry],
        weights: Any,
        carry: Carry,
        frames: Frames,
        length: int,
        leading: int,
    ) -> tuple[Carry, Convergence]:
        """Return the trajectory, leaves [T, *B, …], and how well it was found."""
        dtype = jnp.result_type(*jax.tree.leaves(carry))
        tol = 100 * jnp.finfo(dtype).eps if self.tol is None else self.tol

        def advanced(states):
            return _advance(pure, weights, frames, before_each(carry, states))

        def residual(states, new):
            return jax.tree.map(jnp.subtract, new, states)

        def sizes(tree):
            """Return the largest entry of each step [T]."""
            flat = [jnp.abs(leaf).reshape(length, -1) for leaf in jax.tree.leaves(tree)]
            return jnp.max(jnp.concatenate(flat, axis=1), axis=1, initial=0)

        def is_found(states, new):
            left = sizes(residual(states, new))
            return jnp.all(jnp.isfinite(left) & (left <= tol * sizes(new)))

        def unfinished(state):
            iteration, states, new = state
            return (iteration < self.max_iters) & ~is_found(states, new)

        def iterate(state):
            iteration, states, new = state
            starts = before_each(carry, states)
            linear = _jacobians(lambda s: _advance(pure, weights, frames, s), starts, leading)
            left = residual(states, new)
            carried = residual(left, self._solve(linear, left, leading))
            # Added to the step's own value, so that a step whose past is exact becomes exact to the last
            # bit; and nothing is added where the products overflowed.
            states = jax.tree.map(lambda n, c: n + jnp.where(jnp.isfinite(c), c, 0), new, carried)
            states = jax.tree.map(lambda s: jnp.where(jnp.isfinite(s), s, 0), states)
            return iteration + 1, states, advanced(states)

        guess = jax.tree.map(lambda c: jnp.broadcast_to(c, (length, *c.shape)), carry)
        start = (jnp.zeros((), jnp.int32), guess, advanced(guess))
        iterations, states, new = jax.lax.while_loop(unfinished, iterate, start)
        left = jnp.max(sizes(residual(states, new)))
        return states, Convergence(iterations, left, is_found(states, new))

    def _solve(self, linear: Any, left: Carry, leading: int) -> Carry:
        """Return the corrections δ_t = r_t + (1 − λ) J_t δ_t−1, leaves [T, *B, …]."""
        rest = flat_state(left, leading)
        if self.jacobian == "dense":
            linear = (1 - self.damping) * linear
            solved = _dense_recurrence(linear, rest, jnp.zeros_like(rest[0]))
        else:
            diagonal = (1 - self.damping) * jnp.diagonal(linear, axis1=-2, axis2=-1)
            solved = diagonal_recurrence(diagonal, rest, jnp.zeros_like(rest[0]))
        return carry_of(solved, left)


def _dense_recurrence(matrices: Any, gain: Any, first: Any) -> Any:
    """Return all s_t = J_t s_t−1 + gain_t [T, *B, S], s_0 = `first`, by an associative scan."""

    def apply(matrix, vector):
        return jnp.einsum("...ij,...j->...i", matrix, vector)

    def then(early, late):
        (j1, b1), (j2, b2) = early, late
        return j2 @ j1, apply(j2, b1) + b2

    gain = gain.at[0].add(apply(matrices[0], first))
    return jax.lax.associative_scan(then, (matrices, gain))[1]


def _jacobians(advance: Callable[[Carry], Carry], starts: Carry, leading: int) -> jax.Array:
    """Return ∂advance_t/∂starts_t for all steps [T, *B, S, S], by pushing each unit vector through them."""
    flat = flat_state(starts, leading)
    units = jnp.eye(flat.shape[-1], dtype=flat.dtype)

    def push(unit):
        direction = carry_of(jnp.broadcast_to(unit, flat.shape), starts)
        return flat_state(jax.jvp(advance, (starts,), (direction,))[1], leading)

    return jnp.moveaxis(jax.vmap(push)(units), 0, -1)


def _attached(
    pure: Callable[..., Carry],
    dense: bool,
    leading: int,
    weights: Any,
    carry: Carry,
    frames: Frames,
    found: Carry,
) -> Carry:
    """Return the trajectory found, with the derivative that its equations give it.

    From s_t = step(s_t−1, θ) follows ds_t = J_t ds_t−1 + ∂step/∂θ dθ, a linear recurrence; transposed, it is
    BPTT.
    """

    @jax.custom_jvp
    def attach(weights, carry, frames, found):
        del weights, carry, frames
        return found

    @attach.defjvp
    def derivative(primals, tangents):
        weights, carry, frames, found = primals
        d_weights, d_carry, d_frames, _ = tangents
        starts = before_each(carry, found)
        _, gain = jax.jvp(
            lambda weights, frames: _advance(pure, weights, frames, starts),
            (weights, frames),
            (d_weights, d_frames),
        )
        if dense:
            linear = _jacobians(lambda s: _advance(pure, weights, frames, s), starts, leading)
            rest, first = flat_state(gain, leading), flat_state(d_carry, leading - 1)
            moved = carry_of(_dense_recurrence(linear, rest, first), gain)
        else:

            def step(d, at_t):
                start, frame, more = at_t
                _, d = jax.jvp(lambda s: pure(s, frame, *weights), (start,), (d,))
                d = jax.tree.map(jnp.add, d, more)
                return d, d

            _, moved = jax.lax.scan(step, d_carry, (starts, frames, gain))
        return found, moved

    return attach(weights, carry, frames, found)


def _advance(pure: Callable[..., Carry], weights: Any, frames: Frames, starts: Carry) -> Carry:
    """Take one step from each of the T carries in `starts`."""
    length = jax.tree.leaves(starts)[0].shape[0]
    return jax.vmap(lambda s, frame: pure(s, frame, *weights), axis_size=length)(starts, frames)
