"""Directions carried along a trajectory: pushed through the step, made orthonormal again and again.

    J_t Q_{t−1} = Q_t R_t

This is what the Lyapunov exponents are made of (`jaxrnn.analysis.lyapunov`). No Jacobian is formed: a step is
linearised once, and all directions go through the linear map together; where a cell is split, the state goes
through its recurrent weights with them.

On a superstable orbit every direction meets a derivative that is zero. A state in floats is off the orbit by
its rounding, and the derivative computed there is nothing but this rounding. `blind_steps` finds it by

    |J v| ≤ 64 |D²F[v, δ]| ,        δ = ε · (largest entry of s and F(s)) in every entry .
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.batching import for_batch
from jaxrnn.contract import is_split
from jaxrnn.steps import carry_of, flat_state, moves_state, shapes_of_one
from jaxrnn.typing import Carry, SplitCell, Step

_ROUNDINGS = 64  # of the whole, up to which a length is nothing else


class Tangents(NamedTuple):
    """A state of the trajectory and the directions at it.

    Attributes:
      carry: leaves [*B, H].
      directions: rows [*B, K, S], orthonormal unless they come from `same_flag`.
      t: steps taken.
      broken: the step at which a state was no longer finite [*B]; −1 where all were.
      least_growth: of the longest direction in any one step, a factor [*B].
    """

    carry: Carry
    directions: Any
    t: Any
    broken: Any
    least_growth: Any

    @classmethod
    def at(cls, carry: Carry, directions: Any) -> Tangents:
        """Begin at a carry."""
        batch = directions.shape[:-2]
        broken = jnp.full(batch, -1, jnp.int32)
        growth = jnp.full(batch, jnp.inf, directions.dtype)
        return cls(carry, directions, jnp.zeros((), jnp.int32), broken, growth)


def advance(
    cell: Step, xs: Any, state: Tangents, count: Any, factorise: Any = None
) -> tuple[Tangents, Any]:
    """Take `count` steps, then make the directions orthonormal, or what `factorise` makes of them.

    Returns:
      The new state and the logarithms of the growth [*B, K]: −inf where, beside the longest direction, it is
      nothing but rounding, NaN where it is not finite.
    """
    state, columns = _pushed(cell, xs, state, state.directions, count)
    q, lengths, alive = (factorise or orthonormal)(columns)
    logs = jnp.where(alive, jnp.log(jnp.where(alive, lengths, 1)), -jnp.inf)
    logs = jnp.where(jnp.isfinite(lengths), logs, jnp.nan)
    return state._replace(directions=jnp.swapaxes(q, -1, -2)), logs


def orthonormal(columns: Any) -> tuple[Any, Any, Any]:
    """Return Q of A = Q R [*B, S, K], |diag R| [*B, K], and which of these are more than rounding."""
    q, r = jnp.linalg.qr(columns)
    return q, *_lengths(columns, r)


def nearly_orthonormal(columns: Any) -> tuple[Any, Any, Any]:
    """Return the same as `orthonormal` in half the time, Q orthogonal up to ε times the condition of A.

    R is Householder's, Q = A R⁻¹ a triangular solution: it spans what Q spans, column by column, and so the
    next R is as it would be. Where A is singular there is no R⁻¹, and `orthonormal` it is.
    """
    r = jnp.linalg.qr(columns, mode="r")
    lengths, alive = _lengths(columns, r)

    def solved(columns, r):
        return jax.lax.linalg.triangular_solve(r, columns, left_side=False, lower=False)

    q = jax.lax.cond(alive.all(), solved, lambda a, _: jnp.linalg.qr(a)[0], columns, r)
    return q, lengths, alive


def same_flag(columns: Any) -> tuple[Any, Any, Any]:
    """Return Pᵀ L of P A = L U, |diag U|, and which of these are more than rounding; in less time still.

    The first k columns of Pᵀ L span what the first k of Q span, for every k, but are not orthonormal. Volumes
    are therefore off by that of the basis, until a QR closes a run of such factorisations: the sums of the
    logarithms are then what they would have been.
    """
    lu, _, permutation = jax.lax.linalg.lu(columns)
    basis = jnp.vectorize(_permuted_lower, signature="(s,k),(s)->(s,k)")(lu, permutation)
    return basis, *_lengths(columns, lu)


def _permuted_lower(lu: Any, permutation: Any) -> Any:
    """Return Pᵀ L of one factorisation, packed as LAPACK has it."""
    lower = jnp.tril(lu, -1) + jnp.eye(*lu.shape, dtype=lu.dtype)
    places = jnp.arange(len(lu), dtype=permutation.dtype)
    return lower[jnp.zeros_like(places).at[permutation].set(places)]


def _lengths(columns: Any, r: Any) -> tuple[Any, Any]:
    lengths = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    # In units of the largest entry: squares leave the range of floats long before the entries do.
    largest = jnp.abs(columns).max(axis=(-1, -2), keepdims=True)
    relative = jnp.linalg.norm(columns / jnp.where(largest > 0, largest, 1), axis=-2)
    longest = largest[..., 0] * relative.max(axis=-1, keepdims=True)
    return lengths, lengths > _ROUNDINGS * jnp.finfo(columns.dtype).eps * longest


def _pushed(cell: Step, xs: Any, state: Tangents, rows: Any, count: Any) -> tuple[Tangents, Any]:
    """Take `count` steps, and rows [*B, K, S] along with them; return them as columns [*B, S, K]."""
    depth = rows.ndim - 2
    x = shapes_of_one(xs)
    if is_split(cell, state.carry, x):
        push_on = _split_push(cell, state.carry, depth)
    else:
        push_on = _general_push(for_batch(cell, state.carry, x, rows.shape[:-2]), depth)

    def step(_, running):
        carry, tangents, t, broken, least = running
        moved, pushed = push_on(carry, tangents, _at(xs, t))
        lost = (broken < 0) & ~jnp.isfinite(flat_state(moved, depth)).all(axis=-1)
        after, before = jax.lax.stop_gradient((pushed, tangents))
        growth = _longest(after) / _longest(before)
        least = jnp.minimum(least, growth.astype(least.dtype))
        return moved, pushed, t + 1, jnp.where(lost, t, broken), least

    tangents = _tangents_of(rows, state.carry)
    start = (state.carry, tangents, state.t, state.broken, state.least_growth)
    carry, tangents, t, broken, least = jax.lax.fori_loop(0, count, step, start)
    columns = jnp.moveaxis(tangents, 0, -1).astype(rows.dtype)
    return state._replace(carry=carry, t=t, broken=broken, least_growth=least), columns


def _at(xs: Any, t: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), xs)


def _tangents_of(rows: Any, carry: Carry) -> Any:
    """Return rows [*B, K, S] as tangents at a state [K, *B, S], in its precision."""
    dtype = flat_state(carry, rows.ndim - 2).dtype
    return jnp.moveaxis(rows, -2, 0).astype(dtype)


def _longest(tangents: Any) -> Any:
    """Return the largest entry [*B] of all tangents [K, *B, S]."""
    return jnp.abs(tangents).max(axis=(0, -1))


_Push = Callable[[Carry, Any, Any], tuple[Carry, Any]]
"""A carry, tangents at its state [K, *B, S] and an input -> the next carry, and the tangents there."""


def _general_push(cell: Step, depth: int) -> _Push:
    """Push tangents through any step: it is linearised once, and they go through the linear map together."""

    def push_on(carry, tangents, x):
        move = moves_state(cell, carry, x, depth)
        _, push, moved = jax.linearize(move, flat_state(carry, depth), has_aux=True)
        return moved, jax.vmap(push)(tangents)

    return push_on


def _split_push(cell: SplitCell, carry: Carry, depth: int) -> _Push:
    """Push tangents through a split step, whose recurrent weights are read once for them and the state.

    With few tangents a step is a walk through the weights, and two walks take twice as long.
    """
    constant, linear = jax.linearize(cell.mix, jax.tree.map(jnp.zeros_like, carry))

    def push_on(carry, tangents, x):
        tangents = jax.vmap(carry_of, in_axes=(0, None))(tangents, carry)
        together = jax.tree.map(lambda c, v: jnp.concatenate([c[None], v]), carry, tangents)
        pulls = jax.vmap(linear)(together)
        drive = cell.project(x)
        moved, push = jax.linearize(
            lambda carry, pull: cell.update(carry, drive, pull), carry, constant + pulls[0]
        )
        pushed = jax.vmap(push)(tangents, pulls[1:])
        return moved, jax.vmap(flat_state, in_axes=(0, None))(pushed, depth)

    return push_on


def spread_and_reach(logs: Any) -> tuple[Any, Any]:
    """Return how far directions grew apart, and how far any grew or shrank, in nats; of what is finite."""
    there = jnp.isfinite(logs)
    high = jnp.where(there, logs, -jnp.inf).max(axis=-1)
    low = jnp.where(there, logs, jnp.inf).min(axis=-1)
    apart = jnp.where(high >= low, high - low, 0).max(initial=0)
    return apart, jnp.abs(jnp.where(there, logs, 0)).max(initial=0)


def log_determinants(cell: Step, xs: Any, state: Tangents, count: Any) -> Any:
    """Return Σ ln|det J_t| over the next `count` steps [*B]: what the logarithms of all directions sum to."""
    rows = state.directions
    axes = jnp.broadcast_to(jnp.eye(rows.shape[-1], dtype=rows.dtype), rows.shape)

    def step(_, running):
        state, total = running
        state, matrices = _pushed(cell, xs, state, axes, 1)
        return state, total + jnp.linalg.slogdet(matrices)[1]

    start = (state, jnp.zeros(rows.shape[:-2], rows.dtype))
    return jax.lax.fori_loop(0, count, step, start)[1]


def blind_steps(cell: Step, xs: Any, state: Tangents, count: Any) -> Any:
    """Return in how many of the next `count` steps all directions come out as rounding of the state [*B]."""
    batch = state.directions.shape[:-2]
    depth = len(batch)
    push_on = _general_push(for_batch(cell, state.carry, shapes_of_one(xs), batch), depth)
    eps = float(jnp.finfo(state.directions.dtype).eps)

    def step(_, running):
        carry, tangents, t, found = running
        x, before = _at(xs, t), flat_state(carry, depth)
        moved, _ = push_on(carry, tangents, x)
        sizes = [jnp.abs(each).max(axis=-1) for each in (before, flat_state(moved, depth))]
        rounding = jnp.broadcast_to(eps * jnp.maximum(*sizes)[..., None], before.shape)
        pushed, change = jax.jvp(
            lambda before: push_on(carry_of(before, carry), tangents, x)[1],
            (before,),
            (rounding.astype(before.dtype),),
        )
        length = _longest(pushed)
        blind = (length > 0) & (length <= _ROUNDINGS * _longest(change))
        # Only the longest direction matters here, so they may fall into one; but not out of range.
        unit = jnp.where(length > 0, length, 1)
        return moved, pushed / unit[None, ..., None], t + 1, found + blind.astype(found.dtype)

    start = (state.carry, _tangents_of(state.directions, state.carry), state.t)
    none = jnp.zeros(batch, jnp.int32)
    return jax.lax.fori_loop(0, count, step, (*start, none))[-1]
