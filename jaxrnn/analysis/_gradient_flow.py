"""Gradient flow: the norm of the loss's gradient at each step of the backward pass.

    g_t = ∂L/∂s_t = direct_t + J_{t+1}ᵀ g_{t+1}

BPTT is this recursion (Werbos 1990). "Vanishing" and "exploding" describe its norm as a function of the lag
T − t. The sweep represents g as a unit vector and a logarithm, so it neither underflows nor overflows where
the gradient itself would. Where ``jax.grad`` can be computed, the two agree.

Pascanu, Mikolov & Bengio 2013 measure the same flow by

    Ω = Σ_t (‖J_{t+1}ᵀ g_{t+1}‖ / ‖g_{t+1}‖ − 1)² ,

which is zero exactly when no step stretches or shrinks the gradient. Like their regulariser, it is
differentiable.

In a stack, a layer's gradient comes from its own later steps and, at every step, from the layer above. One
backward sweep covers all layers together, and the gradient passed from one layer to the next also carries its
logarithm.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.analysis.rates import Rate, rate_by_lag
from jaxrnn.analysis.trajectory import Trajectory, trace
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import carry_of, compiled, flat_state, readout_of, step_of
from jaxrnn.typing import Carry, Loss, Step, StepLike, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Norms of ∂L/∂s_t along the backward pass.

    Attributes:
      log_norms: natural logarithms of ‖∂L/∂s_t‖ for t = 1 … T, [T, *B]; −inf where it is zero.
      log_gains: log ‖J_{t+1}ᵀ g_{t+1}‖ / ‖g_{t+1}‖ for t = 1 … T − 1, [T − 1, *B]: the factor by which step
        t + 1 scales the gradient; 0 if there is no gradient yet, −inf if it becomes zero.
      log_transported: the sum of the log gains from t on, [T, *B]: the factor by which the gradient at the
        last step that has one has changed at step t. For a loss on the last output it is
        log ‖g_t‖ − log ‖g_T‖. A loss on earlier outputs adds further gradient to g_t, which is left out here.
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
        """Growth of the gradient per step of lag, nats, mean over sequences; negative means vanishing."""
        return self.fit.value

    @property
    def rate_stderr(self) -> Float[Array, "..."]:
        """Standard error of the rate; NaN if it cannot be estimated."""
        return self.fit.stderr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowHistory:
    """The gradient flow measured during training.

    Attributes:
      steps: the training steps at which it was measured, 0 before training [E].
      log_norms: log ‖∂L/∂s_t‖ of N networks, nats, median over sequences [E, N, T].
    """

    steps: Int[Any, "E"]
    log_norms: Float[Any, "E N T"]


@checked
def gradient_flow(
    cell: StepLike, xs: Any, loss: Loss, *, carry: Carry | None = None, length: int | None = None
) -> GradientFlow:
    """Follow the gradient of a loss backward through time.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar, or to one value per sequence [*B].
      carry: initial carry; by default the cell's own.
      length: number of steps, needed only when `xs` is None.

    Returns:
      A `GradientFlow` of the total gradient: through later steps and through the output of step t itself. For
      a foreign step whose output is not part of its carry, only the first part is included.

    Raises:
      InputError: inputs that are not finite, a loss of another shape, or a loss that depends on no state.

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
    """Follow the gradient of a loss backward along an existing trajectory."""
    return _flows([step_of(cell)], [trajectory], loss)[0]


@checked
def stack_gradient_flow(
    cells: Sequence[StepLike],
    xs: Any,
    loss: Loss,
    *,
    carries: Sequence[Carry | None] | None = None,
) -> list[GradientFlow]:
    """Follow the gradient of a loss backward through time and through the layers of a stack.

    Args:
      cells: one a layer, from bottom to top; each reads the outputs of the layer below.
      xs: inputs of the lowest layer [T, *B, F].
      loss: maps the outputs of the highest layer [T, *B, Y] to a scalar, or one value per sequence [*B].
      carries: initial carries, one a layer; by default the cells' own.

    Returns:
      One `GradientFlow` a layer. Its norms are those of the total gradient at that layer's state: through its
      own later steps and through the layers above.

    Raises:
      InputError: as `gradient_flow`, or a number of carries that differs from the number of cells.

    Example:
      >>> from flax import nnx
      >>> import jax, jax.numpy as jnp
      >>> import jaxrnn
      >>> rngs = nnx.Rngs(0)
      >>> cells = [jaxrnn.GRUCell(3, 8, rngs=rngs), jaxrnn.GRUCell(8, 8, rngs=rngs)]
      >>> xs = jax.random.normal(jax.random.key(0), (50, 4, 3))
      >>> loss = lambda outputs: (outputs[-1] ** 2).sum()
      >>> low, high = jaxrnn.analysis.stack_gradient_flow(cells, xs, loss)
      >>> low.log_norms.shape
      (50, 4)
    """
    if not cells:
        checks.refuse("cells", "none", "one cell a layer")
    carries = [None] * len(cells) if carries is None else carries
    if len(carries) != len(cells):
        checks.refuse("carries", f"{len(carries)} of them", f"{len(cells)}, one a layer")
    trajectories = []
    for cell, carry in zip(cells, carries, strict=True):
        trajectories.append(trace(cell, xs, carry=carry))
        xs = trajectories[-1].outputs
    return _flows(list(map(step_of, cells)), trajectories, loss)


def _flows(
    cells: Sequence[Step], trajectories: Sequence[Trajectory], loss: Loss
) -> list[GradientFlow]:
    output_grads = output_gradients(loss, trajectories[-1])
    sweeps = _sweep(list(cells), list(trajectories), output_grads)
    for log_norms, _ in sweeps:
        _refuse_broken(log_norms)
    if all(_is_nowhere(log_norms) for log_norms, _ in sweeps):
        checks.refuse(
            "loss", "a gradient of zero at every step", "a loss that depends on the state"
        )
    return [_flow_of(*sweep) for sweep in sweeps]


def _refuse_broken(log_norms: Any) -> None:
    """Refuse gradients that are not finite, and report where in the backward pass they first occur."""
    if checks.concrete(log_norms):
        broken = ~(np.asarray(log_norms) < np.inf)
        if broken.any():
            step, *where = (int(i) for i in np.argwhere(broken)[-1])
            sequence = f" of sequence {where}" if where else ""
            got = f"non-finite values on the way back from state {step + 1}{sequence}"
            checks.refuse("cell: its derivative", got, "finite values")


def _is_nowhere(log_norms: Any) -> bool:
    return checks.concrete(log_norms) and not np.isfinite(log_norms).any()


def _flow_of(log_norms: Any, log_pulled: Any) -> GradientFlow:
    there = log_norms[1:] != -jnp.inf
    log_gains = jnp.where(there, log_pulled[:-1] - jnp.where(there, log_norms[1:], 0), 0)
    log_transported = _from_here_on(log_norms, log_gains)
    lags = jnp.arange(len(log_norms))[::-1]
    return GradientFlow(
        log_norms=log_norms,
        log_gains=log_gains,
        log_transported=log_transported,
        fit=rate_by_lag(lags, log_transported),
        omega=((jnp.exp(log_gains) - 1) ** 2).sum(axis=0),
    )


def _from_here_on(log_norms: Any, log_gains: Any) -> Any:
    """Sum the gains from the last gradient back to each step; NaN after the last gradient."""
    with jax.enable_x64(True):  # the sum may have ten thousand terms
        sums = jnp.cumsum(log_gains[::-1].astype(jnp.float64), axis=0)[::-1].astype(log_gains.dtype)
    sums = jnp.concatenate([sums, jnp.zeros_like(log_norms[:1])])
    begun = jax.lax.cummax(jnp.isfinite(log_norms).astype(jnp.int32), axis=0, reverse=True) > 0
    return jnp.where(begun, sums, jnp.nan)


def output_gradients(loss: Loss, trajectory: Trajectory) -> Any:
    """Return ∂L/∂y_t with respect to the outputs alone, in the shape of the outputs."""
    for leaf in jax.tree.leaves(trajectory.outputs):
        checks.floating_entries("cell: its outputs", leaf)
    value = jax.eval_shape(loss, trajectory.outputs)
    if not hasattr(value, "shape") or value.shape not in ((), trajectory.batch):
        expected = f"a scalar or one value per sequence, {list(trajectory.batch)}"
        checks.refuse("loss", checks.describe(value), expected)
    checks.floating_entries("loss", value)
    gradients = jax.grad(lambda outputs: jnp.sum(loss(outputs)))(trajectory.outputs)
    checks.finite("loss: its gradient", gradients)
    return gradients


class _Scaled(NamedTuple):
    """A cotangent e^(scale + low) · direction, scales [*B]; `low` is the rounding error of `scale`."""

    direction: Any
    scale: Any
    low: Any


@compiled
def _sweep(
    cells: list[Step], trajectories: list[Trajectory], output_grads: Any
) -> list[tuple[Any, Any]]:
    """Return for each layer log ‖g_t‖ and log ‖the part of g_t through step t + 1‖, each [T, *B]."""
    paths = [_Path(cell, path) for cell, path in zip(cells, trajectories, strict=True)]

    def back(later, t):
        grad = jax.tree.map(lambda leaf: leaf[t], output_grads)
        zero = jnp.zeros_like(later[0].scale)
        entering, earlier, found = _Scaled(grad, zero, zero), [], []
        for i in reversed(range(len(paths))):
            before, entering, norms = paths[i].back(t, later[i], entering, down=i > 0)
            earlier.append(before)
            found.append(norms)
        return earlier[::-1], found[::-1]

    steps = jnp.arange(trajectories[0].length)
    _, norms = jax.lax.scan(back, [path.nothing for path in paths], steps, reverse=True)
    return norms


class _Path:
    """The backward pass of one layer."""

    def __init__(self, cell: Step, trajectory: Trajectory):
        self._trajectory = trajectory
        self._depth = len(trajectory.batch)
        self._cell = for_batch(cell, self._carry(0), self._x(0), trajectory.batch)
        self._readout = readout_of(self._cell, self._carry(0), self._x(0))

    def _carry(self, t: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[t], self._trajectory.carries)

    def _x(self, t: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[t], self._trajectory.xs)

    @property
    def nothing(self) -> _Scaled:
        """The cotangent after the last step, which is zero."""
        zero = jnp.zeros_like(flat_state(self._carry(0), self._depth))
        dtype = at_least_float32(zero.dtype)
        batch = self._trajectory.batch
        return _Scaled(zero, jnp.full(batch, -jnp.inf, dtype), jnp.zeros(batch, dtype))

    def back(
        self, t: Any, later: _Scaled, entering: _Scaled, *, down: bool
    ) -> tuple[_Scaled, Any, tuple[Any, Any]]:
        """Go back by step t; return the cotangents of its state and, if `down`, its input, and the norms.

        The cotangents from later steps and from the output of this step are divided by the same e^scale, the
        larger of the two, so nothing leaves the range of a float.
        """
        pulled = log_norm(later.direction, self._depth) + later.scale + later.low
        grad = entering.direction
        if self._readout is not None:
            (grad,) = self._back_through(self._readout, t + 1)(grad)
        size = log_norm(grad, self._depth)
        own = size + entering.scale
        scale = jnp.maximum(later.scale, own)
        scale = jnp.where(jnp.isfinite(scale), scale, 0)
        low = jnp.where(scale == later.scale, later.low, entering.low)
        low = jnp.where(jnp.isfinite(low), low, 0)
        direction = _scaled(later.direction, later.scale - scale)
        grad = _scaled(_unit(grad, size), own - scale)
        if self._readout is None:  # the output's share is added inside the step
            y_grad = grad
        else:
            direction = direction + grad
            y_grad = jax.tree.map(lambda y: jnp.zeros_like(y[0]), self._trajectory.outputs)
        total = log_norm(direction, self._depth) + scale + low

        below = self._x(t) if down else None

        def step(carry, x):
            moved, y = self._cell(carry, x if down else self._x(t))
            return flat_state(moved, self._depth), y

        earlier, d_x = self._back_through(step, t, below)((direction, y_grad))
        length = log_norm(earlier, self._depth)
        before = _Scaled(_unit(earlier, length), *_exact_sum(scale, length, low))
        return before, _Scaled(d_x, scale, low), (total, pulled)

    def _back_through(
        self, function: Callable[..., Any], t: Any, *others: Any
    ) -> Callable[..., Any]:
        """Return the VJP of a function of the carry with respect to the state at t and other arguments."""
        carry = self._carry(t)
        by_state = lambda state, *others: function(carry_of(state, carry), *others)  # noqa: E731
        return jax.vjp(by_state, flat_state(carry, self._depth), *others)[1]


def _exact_sum(high: Any, addend: Any, low: Any) -> tuple[Any, Any]:
    """Return the rounded sum high + (addend + low) and its rounding error (Knuth's two-sum)."""
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
    """Divide every leaf [*B, …] by e^log_norm [*B], the norm of the tree; zero stays zero."""
    return _scaled(tree, -jnp.where(jnp.isfinite(log_norm), log_norm, 0))


def log_norm(tree: Any, leading: int = 0) -> Any:
    """Return log ‖tree‖ over all axes after the first `leading`, without squaring small numbers."""
    flat = [leaf.reshape(*leaf.shape[:leading], -1) for leaf in jax.tree.leaves(tree)]
    sizes = [jnp.abs(leaf).astype(at_least_float32(leaf.dtype)) for leaf in flat]
    largest = functools.reduce(jnp.maximum, [size.max(axis=-1) for size in sizes])
    safe = jnp.where(largest > 0, largest, 1)
    squares = sum(((size / safe[..., None]) ** 2).sum(axis=-1) for size in sizes)
    squares = jnp.where(largest == 0, 1, squares)  # log 0 is unused, but not its derivative
    return jnp.where(largest == 0, -jnp.inf, jnp.log(safe) + 0.5 * jnp.log(squares))
