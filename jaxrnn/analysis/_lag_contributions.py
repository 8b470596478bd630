"""Lag contributions: the parameter gradient decomposed by the lag of the dependencies it comes from.

The gradient of a loss is a sum over two steps: t, at which the loss is incurred, and t − k, at which the
parameters acted (Werbos 1990; Pascanu, Mikolov & Bengio 2013, eq. 3–5):

    g = Σ_k g_k ,    g_k = Σ_t ∂L_t/∂s_t · ∂s_t/∂s_{t−k} · ∂⁺s_{t−k}/∂θ ,

where ∂⁺ is the immediate derivative, with the previous carry held fixed. Contributions are vectors and may
cancel, so two numbers are given for each: its length ‖g_k‖, and its share of the whole, ⟨g_k, g⟩ / ‖g‖²,
which may be negative and sums to 1 over the lags.

All loss times are swept together. The cotangents that have gone back k steps form one array [T, *B, S], and
one VJP through all T steps at once gives g_k and the cotangents of lag k + 1. That is O(T²) step gradients in
T large calls; memory is that of one BPTT gradient and a few copies of the parameters. Cotangents are stored
as an array of length 1 and a logarithm, so distant lags do not underflow.

The initial carry is held fixed: if it is learned, its gradient is not part of the g_k.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.analysis._gradient_flow import log_norm, output_gradients
from jaxrnn.analysis.trajectory import Trajectory, trace
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import carry_of, compiled_unprepared, flat_state, shapes_of_one, step_of
from jaxrnn.typing import Carry, Loss, Step, StepLike, at_least_float32, prepared


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LagContributions:
    """The parameter gradient by lag, g = Σ_k g_k.

    Attributes:
      lags: the lags k = 0 … K − 1, in steps, from the use of the parameters to the loss.
      log_norms: log ‖g_k‖; −inf where it is zero, [K].
      fractions: ⟨g_k, g⟩ / ‖g‖²; over all lags they sum to 1, [K].
      leaf_log_norms: log ‖g_k‖ of each parameter array, by its name, [K].
      leaf_fractions: ⟨g_k, g⟩ / ‖g‖² within each parameter array; NaN where its gradient is zero, [K].
      difference: ‖Σ_k g_k − g‖ / ‖g‖, where g is computed by autodiff through the whole run; at most rounding
        if all is well, and NaN unless all lags were requested.
    """

    lags: Int[Array, "K"]
    log_norms: Float[Array, "K"]
    fractions: Float[Array, "K"]
    leaf_log_norms: dict[str, Float[Array, "K"]]
    leaf_fractions: dict[str, Float[Array, "K"]]
    difference: Float[Array, ""]

    @property
    def cumulative(self) -> Float[Array, "K"]:
        """Share of the gradient that comes from lags up to k, [K]."""
        return jnp.cumsum(self.fractions)


@checked
def lag_contributions(
    cell: StepLike,
    xs: Any,
    loss: Loss,
    *,
    carry: Carry | None = None,
    length: int | None = None,
    max_lag: int | None = None,
) -> LagContributions:
    """Decompose the gradient of a loss with respect to a cell's parameters by lag.

    Args:
      cell: a cell of this package or of Flax: an ``nnx.Module`` whose parameters are its ``nnx.Param``s.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar, or to one value per sequence [*B].
      carry: initial carry; by default the cell's own.
      length: number of steps, needed only when `xs` is None.
      max_lag: largest lag, 0 to T − 1; by default T − 1, which costs T gradients of T steps each.

    Raises:
      InputError: a plain function, which exposes no parameters; a loss whose gradient with respect to them is
        zero or not finite; `max_lag` outside 0 … T − 1; or inputs that do not fit.

    Example:
      >>> from flax import nnx
      >>> import jax, jaxrnn
      >>> from jaxrnn.analysis._lag_contributions import lag_contributions
      >>> cell = jaxrnn.make_cell("elman-sigmoid", 3, 8, rngs=nnx.Rngs(0))
      >>> xs = jax.random.normal(jax.random.key(0), (30, 4, 3))
      >>> found = lag_contributions(cell, xs, lambda outputs: (outputs[-1] ** 2).sum())
      >>> bool(found.cumulative[5] > 0.99)  # it learns from the last few steps only
      True
      >>> sorted(found.leaf_fractions)
      ['bias', 'kernel', 'recurrent_kernel']
    """
    layer, cell = cell, step_of(cell)
    if not has_parameters(cell):
        got = type(cell).__name__ + isinstance(cell, nnx.Module) * " without nnx.Param"
        expected = "an nnx.Module with nnx.Param leaves: a plain function shows no parameters"
        checks.refuse("cell", got, expected)
    trajectory = trace(layer, xs, carry=carry, length=length)
    limit = _limit(max_lag, trajectory.length - 1)
    gradient = ParameterGradient.of(cell, trajectory, loss)
    checks.finite("cell: its gradient", gradient.whole)
    if not gradient.can_be_taken_apart:
        checks.refuse("loss", "a gradient of zero", "a loss that depends on the parameters")
    return contributions_along(cell, trajectory, gradient, limit)


class ParameterGradient(NamedTuple):
    """The gradient of a loss with respect to a module's parameters, through a whole run.

    Attributes:
      names: names of the N parameter arrays.
      at_outputs: the loss's gradient with respect to the outputs alone, in the shape of the outputs.
      whole: the gradient, in the shape of the module's parameters.
      unit: the same with each array scaled to length 1, or zero.
      log_norms: logarithms of the arrays' lengths [N].
    """

    names: list[str]
    at_outputs: Any
    whole: Any
    unit: Any
    log_norms: Float[Array, "N"]

    @classmethod
    def of(cls, cell: nnx.Module, trajectory: Trajectory, loss: Loss) -> ParameterGradient:
        """Compute it by BPTT along a trajectory."""
        names, at_outputs = _parameter_names(cell), output_gradients(loss, trajectory)
        return cls(names, at_outputs, *_whole_gradient(cell, trajectory, at_outputs))

    @property
    def can_be_taken_apart(self) -> bool:
        """Whether the gradient is nonzero and within the range of floats."""
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(self.whole))
        return finite and bool(jnp.isfinite(self.log_norms).any())


def has_parameters(cell: Any) -> TypeGuard[nnx.Module]:
    """Tell whether a step exposes parameters: whether it is a module with ``nnx.Param`` leaves."""
    return isinstance(cell, nnx.Module) and bool(jax.tree.leaves(nnx.state(cell, nnx.Param)))


def contributions_along(
    cell: Step, trajectory: Trajectory, gradient: ParameterGradient, max_lag: int
) -> LagContributions:
    """Decompose a gradient that `can_be_taken_apart` along the trajectory it was computed on."""
    grown, logs, shares, difference = _by_lag(
        cell,
        trajectory,
        gradient.at_outputs,
        gradient.whole,
        gradient.unit,
        lags=max_lag + 1,
    )
    complete = max_lag == trajectory.length - 1
    return _record(gradient, grown, logs, shares, difference if complete else jnp.nan)


def _limit(max_lag: Any, last: int) -> int:
    if max_lag is None:
        return last
    checks.within("max_lag", max_lag, 0, last, " steps")
    return int(max_lag)


def _record(
    gradient: ParameterGradient, grown: Any, logs: Any, shares: Any, difference: Any
) -> LagContributions:
    """Assemble the record from measurements by lag [K] and parameter array [N], in float64."""
    dtype = np.asarray(logs).dtype
    measured = (gradient.log_norms, grown, logs, shares)
    sizes, grown, logs, shares = (np.asarray(a, np.float64) for a in measured)
    scales = np.concatenate([[0.0], np.cumsum(grown)[:-1]])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = logs + scales
        along = np.sign(shares) * np.exp(scales + np.log(np.abs(shares)) - sizes)
        leaf_fractions = np.where(np.isfinite(sizes), along, np.nan)
        parts = np.exp(2 * (sizes - sizes.max()))
    fractions = np.where(parts > 0, leaf_fractions, 0) @ (parts / parts.sum())

    def by_name(columns: Any) -> dict[str, Any]:
        return {
            n: jnp.asarray(column, dtype)
            for n, column in zip(gradient.names, columns.T, strict=True)
        }

    return LagContributions(
        lags=jnp.arange(len(logs)),
        log_norms=jnp.asarray(0.5 * np.logaddexp.reduce(2 * logs, axis=1), dtype),
        fractions=jnp.asarray(fractions, dtype),
        leaf_log_norms=by_name(logs),
        leaf_fractions=by_name(leaf_fractions),
        difference=jnp.asarray(difference, dtype),
    )


def _parameter_names(cell: nnx.Module) -> list[str]:
    """Return the names of a module's parameter arrays, in the order of its state's leaves."""
    paths = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    for path, leaf in paths:
        checks.floating(f"cell{jax.tree_util.keystr(path)}", leaf)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


@compiled_unprepared
def _whole_gradient(cell: Step, trajectory: Trajectory, output_grads: Any) -> tuple[Any, Any, Any]:
    """Return the gradient with respect to the parameters through the whole run, and its `_units`."""
    rebuild, parameters = _apart(cell)
    start = jax.tree.map(lambda leaf: leaf[0], trajectory.carries)
    x = shapes_of_one(trajectory.xs)

    def outputs(parameters):
        step = for_batch(prepared(rebuild(parameters)), start, x, trajectory.batch)
        run = jax.lax.scan(lambda c, x: step(c, x), start, trajectory.xs, trajectory.length)
        return run[1]

    whole = jax.vjp(outputs, parameters)[1](output_grads)[0]
    return whole, *_units(whole)


def _by_lag(
    cell: Step, trajectory: Trajectory, output_grads: Any, whole: Any, unit: Any, *, lags: int
) -> tuple[Any, Any, Any, Any]:
    """Return by lag the growth of the cotangents [K], log ‖g_k‖ and ⟨g_k, unit⟩ [K, N]; and the difference.

    log ‖g_k‖ and ⟨g_k, unit⟩ are those of cotangents scaled to length 1, without the growth so far. The lags
    are processed in pieces of one compiled call each, and the run can be interrupted between two pieces.
    """
    none = jnp.zeros_like(trajectory.states[1:])
    scale = jnp.zeros((), log_norm(none).dtype)
    state = (none, output_grads, scale, jax.tree.map(jnp.zeros_like, unit))
    count = min(lags, max(1, _PIECE // trajectory.length))
    pieces = []
    for _ in range(-(-lags // count)):
        state, piece = jax.block_until_ready(_some_lags(cell, trajectory, state, unit, lags=count))
        pieces.append(piece)
    # The last piece may go beyond the requested lags.
    grown, logs, shares = (jnp.concatenate(parts)[:lags] for parts in zip(*pieces, strict=True))
    *_, total = state
    wrong = [t - w.astype(t.dtype) for t, w in _pairs(total, whole)]
    return grown, logs, shares, jnp.exp(log_norm(wrong) - log_norm(whole))


_PIECE = 2**20  # step gradients of one call: a second or so


@compiled_unprepared
def _some_lags(
    cell: Step, trajectory: Trajectory, state: Any, unit: Any, *, lags: int
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Process the next `lags` lags; `state` is (cotangents, output cotangents, scale, sum so far)."""
    rebuild, parameters = _apart(cell)

    shapes = shapes_of_one(trajectory.carries), shapes_of_one(trajectory.xs)

    def all_steps(parameters, before):
        step = for_batch(prepared(rebuild(parameters)), *shapes, trajectory.batch)

        def at_step(state, carry, x):
            moved, y = step(carry_of(state, carry), x)
            return flat_state(moved, len(trajectory.batch)), y

        return jax.vmap(at_step)(before, trajectory.before, trajectory.xs)

    _, pull = jax.vjp(all_steps, parameters, trajectory.states[:-1])

    def next_lag(state, _):
        arriving, at_outputs, scale, total = state
        gradient, sent = pull((arriving, at_outputs))
        # The cotangent of s_{t−1} belongs to the step before; the cotangent of s_0 leaves the run.
        earlier = jnp.concatenate([sent[1:], jnp.zeros_like(sent[:1])])
        wide = jax.tree.map(lambda a: a.astype(at_least_float32(a.dtype)), gradient)
        total = jax.tree.map(lambda a, g: a + (jnp.exp(scale) * g).astype(a.dtype), total, wide)
        size = log_norm(earlier)
        grown = jnp.where(jnp.isfinite(size), size, 0)
        earlier = _shortened(earlier, grown).astype(earlier.dtype)
        logs = jnp.stack([log_norm(leaf) for leaf in jax.tree.leaves(wide)])
        shares = jnp.stack([jnp.vdot(*pair) for pair in _pairs(wide, unit)])
        paid = jax.tree.map(jnp.zeros_like, at_outputs)
        return (earlier, paid, scale + grown, total), (grown, logs, shares)

    return jax.lax.scan(next_lag, state, length=lags)


def _apart(cell: Any) -> tuple[Any, Any]:
    """Return a function that rebuilds the module with other parameters, and its present parameters."""
    graph, parameters, rest = nnx.split(cell, nnx.Param, ...)
    return lambda parameters: nnx.merge(graph, parameters, rest), parameters


def _units(tree: Any) -> tuple[Any, Float[Array, "N"]]:
    """Return every leaf scaled to length 1, or zero, and the logarithms of their lengths [N]."""
    leaves, treedef = jax.tree.flatten(tree)
    logs = [log_norm(leaf) for leaf in leaves]
    scaled = [
        _shortened(leaf, jnp.where(jnp.isfinite(log), log, 0))
        for leaf, log in zip(leaves, logs, strict=True)
    ]
    return jax.tree.unflatten(treedef, scaled), jnp.stack(logs)


def _shortened(leaf: Array, log: Float[Array, ""]) -> Array:
    """Return leaf / e^log, in two factors because a single one may leave the range of a float."""
    half = jnp.exp(-log / 2)
    return leaf.astype(log.dtype) * half * half


def _pairs(first: Any, second: Any) -> Any:
    return zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
