"""Gradient flow: how much of the loss's gradient is left at each step on its way back.

    g_t = ∂L/∂s_t = direct_t + J_{t+1}ᵀ g_{t+1}

BPTT is this recursion (Werbos 1990), and its norm against the lag T − t is what "vanishing" and
"exploding" mean. The sweep carries g as a unit vector and a logarithm, so it neither underflows nor
overflows where the gradient itself would; where ``jax.grad`` can be computed, the two agree.

Pascanu, Mikolov & Bengio 2013 measure the same flow by

    Ω = Σ_t (‖J_{t+1}ᵀ g_{t+1}‖ / ‖g_{t+1}‖ − 1)² ,

which is zero exactly when no step stretches or shrinks the gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory, flat_state, trace
from jaxrnn.steps import compiled, readout_of
from jaxrnn.typing import Carry, Loss, Step, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Norms of ∂L/∂s_t along the way back.

    Attributes:
      log_norms: natural logarithms of ‖∂L/∂s_t‖ for t = 1 … T, [T, *B]; −inf where it is zero.
      log_gains: log ‖J_{t+1}ᵀ g_{t+1}‖ / ‖g_{t+1}‖ for t = 1 … T − 1, [T − 1, *B]: what step t + 1 does to
        the gradient that passes through it; 0 where there is none yet, −inf where it is lost.
      log_transported: their sum from t on, [T, *B]: what has become, at step t, of the gradient at the
        last step that has one. For a loss on the last output it is log ‖g_t‖ − log ‖g_T‖; a loss on
        earlier outputs adds new gradient to g_t, which this leaves out.
      fit: slope of log_transported by lag, with its error (`jaxrnn.analysis.rates`).
      omega: Pascanu's Ω of each sequence, [*B].
    """

    log_norms: Float[Array, "T *B"]
    log_gains: Float[Array, "T1 *B"]
    log_transported: Float[Array, "T *B"]
    fit: Rate
    omega: Float[Array, "*B"]

    @property
    def rate(self) -> Float[Array, "..."]:
        """Growth of the gradient per step of lag, nats, mean over sequences; negative: vanishing."""
        return self.fit.value

    @property
    def rate_stderr(self) -> Float[Array, "..."]:
        """Standard error of the rate; NaN where it cannot be told."""
        return self.fit.stderr


def gradient_flow(
    cell: Step, xs: Any, loss: Loss, *, carry: Carry | None = None, length: int | None = None
) -> GradientFlow:
    """Follow the gradient of a loss back through time.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar, or to one value per sequence [*B].
      carry: initial carry; by default the cell's own.
      length: number of steps, needed only when `xs` is None.

    Returns:
      A `GradientFlow`. The gradient is the total one: through later steps and through the output of step
      t itself. A foreign step whose output is not part of its carry shows the first part only.

    Raises:
      InputError: inputs that are not finite, a loss of another shape, or one on which no state has any
        influence.

    Example:
      >>> from flax import nnx
      >>> import jax, jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> xs = jax.random.normal(jax.random.key(0), (50, 4, 3))
      >>> flow = jaxrnn.analysis.gradient_flow(cell, xs, lambda outputs: (outputs[-1] ** 2).sum())
      >>> bool(flow.rate < 0)  # a fresh LSTM forgets
      True
    """
    return flow_along(cell, trace(cell, xs, carry=carry, length=length), loss)


def flow_along(cell: Step, trajectory: Trajectory, loss: Loss) -> GradientFlow:
    """Follow the gradient of a loss back along a trajectory that is already there."""
    output_grads = output_gradients(loss, trajectory)
    log_norms, log_pulled = _sweep(cell, trajectory, output_grads)
    if checks.concrete(log_norms) and not np.isfinite(log_norms).any():
        checks.refuse(
            "loss", "a gradient of zero at every step", "a loss that depends on the state"
        )
    there = jnp.isfinite(log_norms[1:])
    log_gains = jnp.where(there, log_pulled[:-1] - log_norms[1:], 0)
    log_transported = _from_here_on(log_norms, log_gains)
    lags = jnp.arange(trajectory.length)[::-1]
    return GradientFlow(
        log_norms=log_norms,
        log_gains=log_gains,
        log_transported=log_transported,
        fit=rate_by_lag(lags, log_transported),
        omega=((jnp.exp(log_gains) - 1) ** 2).sum(axis=0),
    )


def _from_here_on(log_norms: Any, log_gains: Any) -> Any:
    """Sum the gains from the last gradient back to each step; NaN after it, where there is none."""
    with jax.enable_x64(True):  # ten thousand terms
        sums = jnp.cumsum(log_gains[::-1].astype(jnp.float64), axis=0)[::-1].astype(log_gains.dtype)
    sums = jnp.concatenate([sums, jnp.zeros_like(log_norms[:1])])
    begun = jax.lax.cummax(jnp.isfinite(log_norms).astype(jnp.int32), axis=0, reverse=True) > 0
    return jnp.where(begun, sums, jnp.nan)


def output_gradients(loss: Loss, trajectory: Trajectory) -> Any:
    """Return ∂L/∂y_t by the outputs alone, shaped as the outputs."""
    for leaf in jax.tree.leaves(trajectory.outputs):
        checks.floating("cell: its outputs", leaf)
    value = jax.eval_shape(loss, trajectory.outputs)
    if not hasattr(value, "shape") or value.shape not in ((), trajectory.batch):
        expected = f"a scalar or one value per sequence, {list(trajectory.batch)}"
        checks.refuse("loss", checks.describe(value), expected)
    checks.floating("loss", value)
    gradients = jax.grad(lambda outputs: jnp.sum(loss(outputs)))(trajectory.outputs)
    checks.finite("loss: its gradient", gradients)
    return gradients


@compiled
def _sweep(cell: Step, trajectory: Trajectory, output_grads: Any) -> tuple[Any, Any]:
    """Return log ‖g_t‖ and log ‖the part of g_t that came through step t + 1‖, each [T, *B].

    The running cotangent is e^scale · direction. Whatever enters beside it is divided by the same e^scale,
    where scale is the larger of the two logarithms, so nothing leaves the range of a float.
    """
    depth = len(trajectory.batch)
    x_at = lambda t: jax.tree.map(lambda leaf: leaf[t], trajectory.xs)  # noqa: E731
    carry_at = lambda t: jax.tree.map(lambda leaf: leaf[t], trajectory.carries)  # noqa: E731
    readout = readout_of(cell, carry_at(0), x_at(0))

    def back(later, t):
        direction, (scale, low) = later
        pulled = _log_norm(direction, depth) + scale + low
        y_grad = jax.tree.map(lambda leaf: leaf[t], output_grads)
        entering = y_grad if readout is None else jax.vjp(readout, carry_at(t + 1))[1](y_grad)[0]

        own = _log_norm(entering, depth)
        joint = jnp.maximum(scale, own)
        joint = jnp.where(jnp.isfinite(joint), joint, 0)
        low = jnp.where(joint == scale, low, 0)
        direction = _scaled(direction, scale - joint)
        entering = _scaled(_unit(entering, own), own - joint)
        if readout is None:  # the output's share joins inside the step
            y_grad = entering
        else:
            direction = jax.tree.map(jnp.add, direction, entering)
            y_grad = jax.tree.map(jnp.zeros_like, y_grad)
        total = _log_norm(direction, depth) + joint + low

        _, pull_back = jax.vjp(lambda carry: cell(carry, x_at(t)), carry_at(t))
        (earlier,) = pull_back((direction, y_grad))
        size = _log_norm(earlier, depth)
        return (_unit(earlier, size), _exact_sum(joint, size, low)), (total, pulled)

    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), trajectory.carries)
    dtype = at_least_float32(flat_state(nothing, depth).dtype)
    none = (jnp.full(trajectory.batch, -jnp.inf, dtype), jnp.zeros(trajectory.batch, dtype))
    steps = jnp.arange(trajectory.length)
    _, (totals, pulled) = jax.lax.scan(back, (nothing, none), steps, reverse=True)
    return totals, pulled


def _exact_sum(high: Any, addend: Any, low: Any) -> tuple[Any, Any]:
    """Return high + (addend + low) as a sum and what its rounding lost (Knuth's two-sum)."""
    addend = addend + low
    total = high + addend
    part = total - high
    lost = (high - (total - part)) + (addend - part)
    return total, jnp.where(jnp.isfinite(total), lost, 0)


def _scaled(tree: Any, log_factor: Any) -> Any:
    """Multiply every leaf [*B, …] by e^log_factor [*B]."""

    def scale(leaf):
        factor = jnp.exp(log_factor).astype(leaf.dtype)
        return leaf * factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim))

    return jax.tree.map(scale, tree)


def _unit(tree: Any, log_norm: Any) -> Any:
    """Divide every leaf [*B, …] by e^log_norm [*B], the tree's norm; leave zero as it is."""
    return _scaled(tree, -jnp.where(jnp.isfinite(log_norm), log_norm, 0))


def _log_norm(tree: Any, depth: int) -> Any:
    """Return log ‖tree‖ of each sequence, without squaring anything small."""
    flat = jnp.abs(flat_state(tree, depth))
    flat = flat.astype(at_least_float32(flat.dtype))
    largest = flat.max(axis=-1)
    safe = jnp.where(largest > 0, largest, 1)
    log = jnp.log(safe) + 0.5 * jnp.log(((flat / safe[..., None]) ** 2).sum(axis=-1))
    return jnp.where(largest == 0, -jnp.inf, log)
