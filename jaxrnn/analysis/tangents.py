"""Tangents: directions pushed along a trajectory through the step, and orthonormalised repeatedly.

    J_t Q_{t−1} = Q_t R_t

The Lyapunov exponents are computed from R_t (`jaxrnn.analysis.lyapunov`). No Jacobian is formed: each step is
linearised once, and all directions go through the linear map together. If a cell is split, the state and the
directions go through its recurrent weights in one product.

On a superstable orbit the derivative is zero in every direction. A floating-point state is off the orbit by
its rounding error, and the derivative computed there is only a consequence of this error. `blind_steps`
detects it by

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

_ROUNDINGS = 64  # multiple of the rounding error up to which a length counts as rounding


class Tangents(NamedTuple):
    """A state of the trajectory and the tangent directions at it.

    Attributes:
      carry: leaves [*B, H].
      directions: rows [*B, K, S], orthonormal unless they come from `same_flag`.
      t: number of steps taken.
      broken: the first step at which a state was not finite [*B]; −1 if all were finite.
      least_growth: the smallest growth factor of the longest direction in any one step [*B].
    """

    carry: Carry
    directions: Any
    t: Any
    broken: Any
    least_growth: Any

    @classmethod
    def at(cls, carry: Carry, directions: Any) -> Tangents:
        """Return the tangents at the start of a run."""
        batch = directions.shape[:-2]
        broken = jnp.full(batch, -1, jnp.int32)
        growth = jnp.full(batch, jnp.inf, directions.dtype)
        return cls(carry, directions, jnp.zeros((), jnp.int32), broken, growth)


def advance(
    cell: Step, xs: Any, state: Tangents, count: Any, factorise: Any = None
) -> tuple[Tangents, Any]:
    """Take `count` steps, then make the directions orthonormal, or apply `factorise` instead.

    Returns:
      The new state and the logarithms of the growth [*B, K]: −inf if a direction is only rounding relative to
      the longest one, NaN if it is not finite.
    """
    state, columns = _pushed(cell, xs, state, state.directions, count)
    q, lengths, alive = (factorise or orthonormal)(columns)
    logs = jnp.where(alive, jnp.log(jnp.where(alive, lengths, 1)), -jnp.inf)
    logs = jnp.where(jnp.isfinite(lengths), logs, jnp.nan)
    return state._replace(directions=jnp.swapaxes(q, -1, -2)), logs


def orthonormal(columns: Any) -> tuple[Any, Any, Any]:
    """Return Q of A = Q R [*B, S, K], |diag R| [*B, K], and which of the lengths exceed rounding."""
    q, r = jnp.linalg.qr(columns)
    return q, *_lengths(columns, r)


def nearly_orthonormal(columns: Any) -> tuple[Any, Any, Any]:
    """Return the same as `orthonormal` in half the time, Q orthogonal up to ε times the condition of A.

    R comes from Householder reflections, and Q = A R⁻¹ from a triangular solve. Its first k columns span the
    same subspaces as those of an orthogonal Q, so the next R is the same. If A is singular, R⁻¹ does not
    exist and Q is computed as in `orthonormal`.
    """
    r = jnp.linalg.qr(columns, mode="r")
    lengths, alive = _lengths(columns, r)

    def solved(columns, r):
        return jax.lax.linalg.triangular_solve(r, columns, left_side=False, lower=False)

    q = jax.lax.cond(alive.all(), solved, lambda a, _: jnp.linalg.qr(a)[0], columns, r)
    return q, lengths, alive


def same_flag(columns: Any) -> tuple[Any, Any, Any]:
    """Return Pᵀ L of P A = L U, |diag U|, and which lengths exceed rounding; faster still than QR.

    The first k columns of Pᵀ L span the same subspace as the first k columns of Q, for every k, but are not
    orthonormal. Volumes are therefore off by the volume of the basis, until a QR ends a run of such
    factorisations. The sums of the logarithms then equal those with QR throughout.
    """
    lu, _, permutation = jax.lax.linalg.lu(columns)
    basis = jnp.vectorize(_permuted_lower, signature="(s,k),(s)->(s,k)")(lu, permutation)
    return basis, *_lengths(columns, lu)


def _permuted_lower(lu: Any, permutation: Any) -> Any:
    """Return Pᵀ L of one factorisation in LAPACK's packed format."""
    lower = jnp.tril(lu, -1) + jnp.eye(*lu.shape, dtype=lu.dtype)
    places = jnp.arange(len(lu), dtype=permutation.dtype)
    return lower[jnp.zeros_like(places).at[permutation].set(places)]


def _lengths(columns: Any, r: Any) -> tuple[Any, Any]:
    lengths = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    # Scale by the largest entry: squares leave the range of floats long before the entries do.
    largest = jnp.abs(columns).max(axis=(-1, -2), keepdims=True)
    relative = jnp.linalg.norm(columns / jnp.where(largest > 0, largest, 1), axis=-2)
    longest = largest[..., 0] * relative.max(axis=-1, keepdims=True)
    return lengths, lengths > _ROUNDINGS * jnp.finfo(columns.dtype).eps * longest


def _pushed(cell: Step, xs: Any, state: Tangents, rows: Any, count: Any) -> tuple[Tangents, Any]:
    """Take `count` steps, push rows [*B, K, S] along with them, and return them as columns [*B, S, K]."""
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
    """Return rows [*B, K, S] as tangents of the state [K, *B, S], in the state's precision."""
    dtype = flat_state(carry, rows.ndim - 2).dtype
    return jnp.moveaxis(rows, -2, 0).astype(dtype)


def _longest(tangents: Any) -> Any:
    """Return the largest entry [*B] of all tangents [K, *B, S]."""
    return jnp.abs(tangents).max(axis=(0, -1))


_Push = Callable[[Carry, Any, Any], tuple[Carry, Any]]
"""(carry, tangents of its state [K, *B, S], input) -> (next carry, its tangents)."""


def _general_push(cell: Step, depth: int) -> _Push:
    """Push tangents through any step, which is linearised once and applied to all of them together."""

    def push_on(carry, tangents, x):
        move = moves_state(cell, carry, x, depth)
        _, push, moved = jax.linearize(move, flat_state(carry, depth), has_aux=True)
        return moved, jax.vmap(push)(tangents)

    return push_on


def _split_push(cell: SplitCell, carry: Carry, depth: int) -> _Push:
    """Push tangents through a split step, reading its recurrent weights once for tangents and state together.

    With few tangents the time of a step is the time to read the weights, and two reads take twice as long.
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
    """Return how far directions grew apart, and the largest growth or decay of any, in nats, if finite."""
    there = jnp.isfinite(logs)
    high = jnp.where(there, logs, -jnp.inf).max(axis=-1)
    low = jnp.where(there, logs, jnp.inf).min(axis=-1)
    apart = jnp.where(high >= low, high - low, 0).max(initial=0)
    return apart, jnp.abs(jnp.where(there, logs, 0)).max(initial=0)


def log_determinants(cell: Step, xs: Any, state: Tangents, count: Any) -> Any:
    """Return Σ ln|det J_t| over the next `count` steps [*B], the sum of the logarithms of all directions."""
    rows = state.directions
    axes = jnp.broadcast_to(jnp.eye(rows.shape[-1], dtype=rows.dtype), rows.shape)

    def step(_, running):
        state, total = running
        state, matrices = _pushed(cell, xs, state, axes, 1)
        return state, total + jnp.linalg.slogdet(matrices)[1]

    start = (state, jnp.zeros(rows.shape[:-2], rows.dtype))
    return jax.lax.fori_loop(0, count, step, start)[1]


def blind_steps(cell: Step, xs: Any, state: Tangents, count: Any) -> Any:
    """Return the number of the next `count` steps in which all directions are rounding of the state [*B]."""
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
        # Only the longest direction matters, so directions may align; rescale them to stay in range.
        unit = jnp.where(length > 0, length, 1)
        return moved, pushed / unit[None, ..., None], t + 1, found + blind.astype(found.dtype)

    start = (state.carry, _tangents_of(state.directions, state.carry), state.t)
    none = jnp.zeros(batch, jnp.int32)
    return jax.lax.fori_loop(0, count, step, (*start, none))[-1]
