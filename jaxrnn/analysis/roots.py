"""Roots of F(s) − s: a least-squares search for fixed and slow points from many starting points at once.

    r(s) = F^p(s) − s ,    q(s) = ½ ‖r(s)‖²

Zeros of q are the fixed points of F^p. Its other minima are slow points, where a trajectory moves very slowly
(Sussillo & Barak 2013, "Opening the black box"). `jaxrnn.analysis.least_squares` has the methods that
minimise q from one candidate.

Candidates are independent, so they advance together, in batches that bound the memory. After every round the
settled ones are removed and the rest are compacted, so no candidate waits for the slowest.

A small residual alone does not prove a root. If gates saturate, r and A = ∂r/∂s become small together over
whole regions, and the solution of the linearised equation is far away. So a candidate counts as a root only
if a negligibly short δ solves r + A δ = 0 to rounding. The δ that is tested is the regularised one,

    δ = −(AᵀA + λI)⁻¹ Aᵀr ,        √λ = (rounding of r) / (negligible length) ,

which ignores rounding errors along directions in which A is singular, as along a line of fixed points.
Candidates that are not close enough yet, as at a multiple root, continue by Newton's method.

Weakness: if F(s) equals s to the last bit and A is zero, a saturated region cannot be distinguished from true
fixed points. Such points are kept, and have eigenvalues next to 1.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int, Shaped

from jaxrnn import checks
from jaxrnn.analysis.lapack import eigenvalues, in_float64
from jaxrnn.analysis.least_squares import Power, Search, half_square, regularised_step
from jaxrnn.steps import compiled
from jaxrnn.typing import Carry, Step

_ROUNDS = 16
"""Number of rounds that `max_iterations` is divided into; settled candidates are removed after each."""

_NEWTON_STEPS = 30
"""Newton's method halves the distance from a double root and takes a third off it at a triple root. This many
steps reduce the distance by the square root of float64's resolution, or by half as many digits."""

_RESIDUAL_ROUNDINGS = 8
"""Number of roundings in an entry of r: in the products in F, its activations and the difference."""

_CACHE_BYTES = 2**22
_ACCELERATOR_BYTES = 2**26
"""Memory for the Jacobians of a batch whose size is not given. A CPU is half as fast again (measured) if all
data of an iteration fits its cache; an accelerator needs many candidates at once."""


class Outcome(enum.IntEnum):
    """How the search from one candidate ended."""

    FIXED_POINT = 0
    """The residual is zero within the tolerance."""
    SLOW_POINT = 1
    """The residual is not zero, but q is below the requested threshold."""
    MINIMUM = 2
    """q has a minimum above the tolerance, or rounding prevents a further decrease."""
    UNFINISHED = 3
    """The iterations ran out."""
    NON_FINITE = 4
    """The map leaves the range of floats."""
    NO_POINT_NEAR = 5
    """The residual is zero within the tolerance, but the map is so flat that no fixed point is near."""


class Place(NamedTuple):
    """The state of the search from one candidate.

    Attributes:
      state: s [S].
      residual: r(s) [S].
      memory: the internal state of the method.
      iterations: number of steps taken.
      settled: whether no further progress is possible.
    """

    state: Any
    residual: Any
    memory: Any
    iterations: Any
    settled: Any


class Ends(NamedTuple):
    """The states at which the candidates ended.

    Attributes:
      states: [N, S].
      speeds: q [N].
      iterations: number of steps taken [N].
      outcomes: values of `Outcome` [N]; slow points are not yet distinguished from other minima.
    """

    states: Shaped[np.ndarray, "N S"]
    speeds: Shaped[np.ndarray, "N"]
    iterations: Int[np.ndarray, "N"]
    outcomes: Int[np.ndarray, "N"]


def search(
    cell: Step,
    xs: Any,
    like: Carry,
    starts: Inexact[Array, "N S"],
    method: Search,
    tolerance: float,
    batch: Batch,
    period: int = 1,
    distinct: float | None = None,
) -> Ends:
    """Minimise q from every start.

    Args:
      cell: the step F.
      xs: the constant input of each, leaves [N, …].
      like: one carry, as a template.
      starts: states [N, S].
      method: the method of minimisation.
      tolerance: the largest entry of r that counts as zero, relative to the largest of s, or to 1.
      batch: number of candidates that advance at once.
      period: p.
      distinct: the distance, relative to the largest entry of s or to 1, up to which two states are the same
        point; by default the square root of the resolution.
    """
    settings = {"method": method, "period": period}
    set_out = functools.partial(_set_out.bound(cell), like, **settings)
    go_on = functools.partial(_go_on.bound(cell), like, tolerance, **settings)
    places = by_batches(set_out, (xs, np.asarray(starts)), batch)
    going = np.flatnonzero(~places.settled)
    in_a_round = -(-method.max_iterations // _ROUNDS)
    for spent in range(0, method.max_iterations, in_a_round):
        if not len(going):
            break
        limit = np.int32(min(in_a_round, method.max_iterations - spent))
        moved = by_batches(functools.partial(go_on, limit), taken((xs, places), going), batch)
        _put(places, going, moved)
        going = going[~moved.settled]
    ends = _ends(places, tolerance)
    near = float(np.finfo(ends.states.dtype).eps) ** 0.5 if distinct is None else distinct
    confirm = functools.partial(_confirm.bound(cell), like, tolerance, near, period=period)
    return _confirmed(xs, ends, tolerance, functools.partial(by_batches, confirm, batch=batch))


def _confirmed(xs: Any, ends: Ends, tolerance: float, confirm: Callable[[Any], Any]) -> Ends:
    """Refine inexact roots by Newton's method, and mark candidates that turn out not to be roots.

    Newton's method may go as far as a triple root can be from the place where r falls below the tolerance.
    Any further, it would walk out of a saturated region, in which r keeps decreasing.
    """
    states, speeds, outcomes = ends.states.copy(), ends.speeds.copy(), ends.outcomes.copy()
    going = np.flatnonzero(outcomes == Outcome.FIXED_POINT)
    outcomes[going] = Outcome.NO_POINT_NEAR
    here = states[going]
    reach = 2 * tolerance ** (1 / 3) * np.abs(here).max(axis=-1).clip(1.0)
    for _ in range(_NEWTON_STEPS):
        if not len(going):
            break
        speed, is_point, onward = confirm((taken(xs, going), here))
        found = going[is_point]
        far = ~(np.abs(onward - ends.states[going]).max(axis=-1) <= reach)  # or NaN
        states[found], speeds[found] = here[is_point], speed[is_point]
        outcomes[found] = Outcome.FIXED_POINT
        rest = ~is_point & ~far
        going, here, reach = going[rest], onward[rest], reach[rest]
    return ends._replace(states=states, speeds=speeds, outcomes=outcomes)


class Batch(NamedTuple):
    """The number of candidates that advance at once.

    Attributes:
      most: size of a full batch.
      least: size below which shrinking a batch further saves less time than compiling costs.
    """

    most: int
    least: int


def batch_for(states: Any, size: int | None) -> Batch:
    """Return the batch for states [N, S]: of the given size, or as large as memory allows."""
    count, width = states.shape
    if size is not None:
        checks.count("batch", size)
    bytes_each = width**2 * states.dtype.itemsize
    fitting = _CACHE_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    most = min(count, size or max(1, fitting // bytes_each))
    return Batch(most, min(most, max(1, fitting // (16 * bytes_each))))


def by_batches(function: Callable[[Any], Any], tree: Any, batch: Batch) -> Any:
    """Apply a function to NumPy leaves [N, …] in batches, one after the other (`lapack` says why).

    If few candidates are left, the batch shrinks by factors of four while they still fit, so only a handful
    of shapes is compiled instead of one for every number.
    """
    count, size = len(jax.tree.leaves(tree)[0]), batch.most
    while size > batch.least and -(-size // 4) >= count:
        size = -(-size // 4)
    # The last batch is padded with repeated rows of its own, which take no extra iterations.
    batches = [np.resize(np.arange(i, min(i + size, count)), size) for i in range(0, count, size)]
    # By default accelerators multiply float32 with fewer digits, and residuals would stay above tolerance.
    with jax.default_matmul_precision("highest"):
        parts = (taken(tree, rows) for rows in batches or [np.arange(0)])
        results = [jax.block_until_ready(function(part)) for part in parts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *results)


def taken(tree: Any, rows: Any) -> Any:
    """Return some rows of all leaves [N, …]."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _put(tree: Any, rows: Any, values: Any) -> None:
    for leaf, value in zip(jax.tree.leaves(tree), jax.tree.leaves(values), strict=True):
        leaf[rows] = value


@compiled
def _set_out(cell: Step, like: Carry, given: Any, *, method: Search, period: int) -> Place:
    def one(x, state):
        power = Power(cell, x, like, period)
        residual = power.residual(state)
        lost = ~jnp.isfinite(half_square(residual))
        return Place(state, residual, method.memory(state), jnp.zeros((), jnp.int32), lost)

    return jax.vmap(one)(*given)


@compiled
def _go_on(
    cell: Step,
    like: Carry,
    tolerance: Any,
    limit: Any,
    given: tuple[Any, Place],
    *,
    method: Search,
    period: int,
) -> Place:
    """Take up to `limit` iterations, or fewer if all candidates of the batch settle earlier."""
    xs, places = given

    def unfinished(now):
        count, places = now
        return (count < limit) & ~jnp.all(places.settled)

    def iterate(now):
        count, places = now
        return count + 1, jax.vmap(one)(xs, places)

    def one(x, place):
        power = Power(cell, x, like, period)
        state, residual, memory, at_minimum = method.advance(
            power, place.state, place.residual, place.memory
        )
        before, after = half_square(place.residual), half_square(residual)
        # Follow a root down to rounding, where q no longer falls as fast as under Newton's method.
        at_root = is_root(state, residual, tolerance) & ~(after < before / 4)
        settled = at_minimum | at_root | ~jnp.isfinite(after)
        moved = Place(state, residual, memory, place.iterations + 1, settled)
        return jax.tree.map(lambda old, new: jnp.where(place.settled, old, new), place, moved)

    _, places = jax.lax.while_loop(unfinished, iterate, (jnp.zeros_like(limit), places))
    return places


def is_root(state: Any, residual: Any, tolerance: Any) -> Any:
    """Tell whether |r| is below the tolerance, relative to the largest entry of the state or to 1."""
    return abs(residual).max(axis=-1) <= tolerance * abs(state).max(axis=-1).clip(1.0)


def _ends(places: Place, tolerance: float) -> Ends:
    with np.errstate(over="ignore"):
        speeds = half_square(places.residual)
    outcomes = np.select(
        [
            ~np.isfinite(speeds),
            is_root(places.state, places.residual, tolerance),
            places.settled,
        ],
        [Outcome.NON_FINITE, Outcome.FIXED_POINT, Outcome.MINIMUM],
        Outcome.UNFINISHED,
    )
    return Ends(places.state, speeds, places.iterations, outcomes)


@compiled
def _confirm(
    cell: Step, like: Carry, tolerance: Any, near: Any, given: Any, *, period: int
) -> tuple[Any, Any, Any]:
    """Return q, whether there is a root within rounding, and the next Newton iterate [N, S]."""
    limits = jnp.finfo(given[1].dtype)

    def one(x, state):
        power = Power(cell, x, like, period)
        residual = power.residual(state)
        own = jnp.eye(state.size, dtype=state.dtype)
        slope = power.jacobian(state) - own
        size = abs(state).max()
        length = near * size.clip(1.0)
        rounding = _RESIDUAL_ROUNDINGS * float(limits.eps) * size.clip(length)
        move = regularised_step(slope, residual, ((rounding / length) ** 2).clip(limits.tiny))
        short = abs(move).max() <= length
        solved = abs(residual + slope @ move).max() <= rounding
        is_point = is_root(state, residual, tolerance) & short & solved
        # The second factorisation must wait for the first (`lapack`), so it depends on its result.
        onward = state - jnp.linalg.solve(jnp.where(is_point, own, slope), residual)
        return half_square(residual), is_point, onward

    return jax.vmap(one)(*given)


@compiled
def jacobians_at(cell: Step, like: Carry, given: Any, *, period: int = 1) -> Any:
    """Return ∂F^p/∂s [N, S, S] at inputs [N, …] and states [N, S]."""
    return jax.vmap(lambda x, state: Power(cell, x, like, period).jacobian(state))(*given)


@compiled
def paths_from(cell: Step, like: Carry, given: Any, *, period: int) -> Any:
    """Return s, F(s), … F^p(s) for inputs [N, …] and states [N, S], [N, p + 1, S]."""
    return jax.vmap(lambda x, state: Power(cell, x, like, period).path(state).states)(*given)


def eigenvalues_of(matrices: Any) -> Any:
    """Return eigenvalues by decreasing modulus [N, S] of matrices [N, S, S]; NaN if one is not finite."""
    return np.asarray(in_float64(eigenvalues, jnp.asarray(matrices)))
