"""Where a map stands still, or nearly so: least squares from many starting points at once.

    r(s) = F^p(s) − s ,    q(s) = ½ ‖r(s)‖² ,    A = ∂r/∂s = J − I ,    J = ∂F^p/∂s

Zeros of q are the fixed points of F^p; its other minima are slow points, past which a trajectory creeps
(Sussillo & Barak 2013, "Opening the black box"). Two methods go down q from a given state:

- `LevenbergMarquardt`, the default, moves by −(AᵀA + λI)⁻¹ Aᵀr with λ = μ ‖r‖. It converges quadratically,
  also to a point of a line or a surface of fixed points, where A is singular and Newton's method is lost
  (Yamashita & Fukushima 2001; Fan & Yuan 2005). A step costs some S³ multiplications.
- `Descent` follows −∇q = −Aᵀr with an optimiser of optax, as Sussillo & Barak did. A step costs what a step
  of the network costs, but thousands are needed, and where A is ill-conditioned more than anyone takes.

Candidates do not know of each other, so they advance together, in batches that bound the memory. After every
round those that have settled are taken out and the rest closed up, so that nobody waits for the slowest.

Weakness: Levenberg–Marquardt squares the condition number. Where that of A exceeds 1/√ε, 3000 in float32,
it converges no faster than descent.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Inexact, Int, Shaped

from jaxrnn import checks
from jaxrnn.analysis.jacobians import general_jacobians, structured_jacobians
from jaxrnn.analysis.lapack import eigenvalues, in_float64
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.steps import carry_of, compiled
from jaxrnn.typing import Carry, SplitCell, Step

_ROUNDS = 16
"""Rounds in which the most iterations are spent: as often are the settled candidates taken out."""

_CACHE_BYTES = 2**22
_ACCELERATOR_BYTES = 2**26
"""What the Jacobians of a batch may take where its size is not given: a CPU is half as fast again (measured)
with all that an iteration touches in its cache, an accelerator wants many at once."""


class Outcome(enum.IntEnum):
    """How the search from one candidate ended."""

    FIXED_POINT = 0
    """The residual is zero to the tolerance."""
    SLOW_POINT = 1
    """Not zero, but q is below the threshold that was asked for."""
    MINIMUM = 2
    """q has a minimum above the tolerance, or cannot be lowered for rounding."""
    UNFINISHED = 3
    """The iterations ran out."""
    NON_FINITE = 4
    """The map leaves the range of floats."""


@dataclasses.dataclass(frozen=True)
class Power:
    """F^p under a constant input, as a map of flat states [S].

    Attributes:
      cell: the step F.
      x: its input.
      like: a carry, for its form.
      period: p.
    """

    cell: Step
    x: Any
    like: Carry
    period: int

    def path(self, state: Inexact[Array, "S"]) -> Trajectory:
        """Return the trajectory of p steps that starts at a state."""

        def move(carry, _):
            moved, _ = self.cell(carry, self.x)
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
        if isinstance(self.cell, SplitCell):
            steps = structured_jacobians(self.cell, path)
        else:
            steps = general_jacobians(self.cell, path)
        return functools.reduce(lambda product, step: step @ product, steps)


class Search(abc.ABC):
    """A way down q from one state; `jax.vmap` makes it many.

    Attributes:
      max_iterations: iterations after which it gives up.
    """

    max_iterations: int

    @abc.abstractmethod
    def memory(self, state: Inexact[Array, "S"]) -> Any:
        """Return what the method carries along beside the state."""

    @abc.abstractmethod
    def advance(
        self, power: Power, state: Inexact[Array, "S"], residual: Inexact[Array, "S"], memory: Any
    ) -> tuple[Inexact[Array, "S"], Inexact[Array, "S"], Any, Bool[Array, ""]]:
        """Return the next state, residual and memory, and whether q is at a minimum."""


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt(Search):
    """Gauss–Newton steps on q, damped by λ = μ ‖r‖.

    Args:
      max_iterations: steps, accepted or not, after which a candidate is given up.
      damping: the first μ. It falls fourfold where q falls as the linear model says, and rises fourfold
        where it does not. A large one keeps a candidate from jumping far at first.
    """

    max_iterations: int = 200
    damping: float = 1e-3

    def __post_init__(self):
        """Refuse settings out of range."""
        checks.count("max_iterations", self.max_iterations)
        checks.positive("damping", self.damping)

    def memory(self, state: Inexact[Array, "S"]) -> Inexact[Array, ""]:
        """Return the first μ."""
        return jnp.asarray(self.damping, state.dtype)

    def advance(self, power, state, residual, memory):
        """Try one step; keep it if q falls."""
        slope = power.jacobian(state) - jnp.eye(state.size, dtype=state.dtype)
        move = _damped_step(slope, residual, memory)
        there = state + move
        left = power.residual(there)
        speed = half_square(residual)
        promised = speed - half_square(residual + slope @ move)
        gained = speed - half_square(left)
        # Written so that NaN, from a product that overflowed or a failed factorisation, is no gain.
        taken = gained > 1e-4 * promised
        factor = jnp.where(
            gained > 0.75 * promised, 0.25, jnp.where(gained > 0.25 * promised, 1.0, 4.0)
        )
        rounding = 4 * float(jnp.finfo(state.dtype).eps) * speed
        at_minimum = (promised <= rounding) & ~(gained > rounding)
        damping = jnp.maximum(memory * factor.astype(state.dtype), 1e-8)
        state, residual = jnp.where(taken, there, state), jnp.where(taken, left, residual)
        return state, residual, damping, at_minimum


def _damped_step(
    slope: Inexact[Array, "S S"], residual: Inexact[Array, "S"], damping: Inexact[Array, ""]
) -> Inexact[Array, "S"]:
    """Return −(AᵀA + λI)⁻¹ Aᵀr, λ no less than the rounding of AᵀA."""
    gram = slope.T @ slope
    rounding = 4 * float(jnp.finfo(gram.dtype).eps) * jnp.max(jnp.diagonal(gram))
    shift = damping * jnp.linalg.norm(residual) + rounding
    factor = jnp.linalg.cholesky(gram + shift * jnp.eye(len(gram), dtype=gram.dtype))
    return -jax.scipy.linalg.cho_solve((factor, True), slope.T @ residual)


@dataclasses.dataclass(frozen=True)
class Descent(Search):
    """Gradient descent on q, its learning rate falling to zero as a cosine.

    Args:
      max_iterations: steps after which a candidate is given up.
      learning_rate: the first one.
      optimizer: makes an optax optimiser of a learning rate, as ``optax.adam`` does. It is given 1, and what
        it proposes multiplied by the rate.
    """

    max_iterations: int = 5000
    learning_rate: float = 0.02
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam

    def __post_init__(self):
        """Refuse settings out of range."""
        checks.count("max_iterations", self.max_iterations)
        checks.positive("learning_rate", self.learning_rate)

    def memory(self, state: Inexact[Array, "S"]) -> Any:
        """Return the optimiser's state, and how many steps it took."""
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


class Place(NamedTuple):
    """Where a candidate is.

    Attributes:
      state: s [S].
      residual: r(s) [S].
      memory: what the method carries along.
      iterations: steps taken.
      settled: whether there is nothing more to gain.
    """

    state: Any
    residual: Any
    memory: Any
    iterations: Any
    settled: Any


class Ends(NamedTuple):
    """Where the candidates ended.

    Attributes:
      states: [N, S].
      speeds: q [N].
      iterations: steps taken [N].
      outcomes: values of `Outcome` [N], slow points not yet told from other minima.
    """

    states: Shaped[np.ndarray, "N S"]
    speeds: Shaped[np.ndarray, "N"]
    iterations: Int[np.ndarray, "N"]
    outcomes: Int[np.ndarray, "N"]


def search(
    cell: Step,
    x: Any,
    like: Carry,
    starts: Inexact[Array, "N S"],
    method: Search,
    tolerance: float,
    batch: Batch,
    period: int = 1,
) -> Ends:
    """Go down q from every start.

    Args:
      cell: the step F.
      x: its input.
      like: one carry, for its form.
      starts: states [N, S].
      method: the way down.
      tolerance: the largest entry of r that counts as zero, relative to the largest of s, or to 1.
      batch: how many candidates advance at once.
      period: p.
    """
    settings = {"method": method, "period": period}
    set_out = functools.partial(_set_out.bound(cell), x, like, **settings)
    go_on = functools.partial(_go_on.bound(cell), x, like, tolerance, **settings)
    places = by_batches(set_out, np.asarray(starts), batch)
    going = np.flatnonzero(~places.settled)
    in_a_round = -(-method.max_iterations // _ROUNDS)
    for spent in range(0, method.max_iterations, in_a_round):
        if not len(going):
            break
        limit = np.int32(min(in_a_round, method.max_iterations - spent))
        moved = by_batches(functools.partial(go_on, limit), _taken(places, going), batch)
        _put(places, going, moved)
        going = going[~moved.settled]
    return _ends(places, tolerance)


class Batch(NamedTuple):
    """How many candidates advance at once.

    Attributes:
      most: a whole batch.
      least: where a batch is as small as this, closing it up further saves less than compiling costs.
    """

    most: int
    least: int


def batch_for(states: Any, size: int | None) -> Batch:
    """Return the batch for states [N, S]: as many as there are, or as said, or as memory allows."""
    count, width = states.shape
    if size is not None:
        checks.count("batch", size)
    bytes_each = width**2 * states.dtype.itemsize
    fitting = _CACHE_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    most = min(count, size or max(1, fitting // bytes_each))
    return Batch(most, min(most, max(1, fitting // (16 * bytes_each))))


def by_batches(function: Callable[[Any], Any], tree: Any, batch: Batch) -> Any:
    """Apply a function to NumPy leaves [N, …] in batches, one after the other (`lapack` says why).

    Where few are left, the batch shrinks fourfold as often as they fit: a handful of shapes is compiled, not
    one for every number.
    """
    count, size = len(jax.tree.leaves(tree)[0]), batch.most
    while size > batch.least and -(-size // 4) >= count:
        size = -(-size // 4)
    # The last batch is filled up with some of its own: they take it no longer.
    batches = [np.resize(np.arange(i, min(i + size, count)), size) for i in range(0, count, size)]
    # Accelerators would multiply float32 with fewer digits, and no residual come below its tolerance.
    with jax.default_matmul_precision("highest"):
        parts = (_taken(tree, rows) for rows in batches or [np.arange(0)])
        results = [jax.block_until_ready(function(part)) for part in parts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *results)


def _taken(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _put(tree: Any, rows: Any, values: Any) -> None:
    for leaf, value in zip(jax.tree.leaves(tree), jax.tree.leaves(values), strict=True):
        leaf[rows] = value


@compiled
def _set_out(cell: Step, x: Any, like: Carry, starts: Any, *, method: Search, period: int) -> Place:
    power = Power(cell, x, like, period)

    def one(state):
        residual = power.residual(state)
        lost = ~jnp.isfinite(half_square(residual))
        return Place(state, residual, method.memory(state), jnp.zeros((), jnp.int32), lost)

    return jax.vmap(one)(starts)


@compiled
def _go_on(
    cell: Step,
    x: Any,
    like: Carry,
    tolerance: Any,
    limit: Any,
    places: Place,
    *,
    method: Search,
    period: int,
) -> Place:
    """Take up to `limit` iterations, fewer where all candidates of the batch settle before."""
    power = Power(cell, x, like, period)

    def unfinished(now):
        count, places = now
        return (count < limit) & ~jnp.all(places.settled)

    def iterate(now):
        count, places = now
        return count + 1, jax.vmap(one)(places)

    def one(place):
        state, residual, memory, at_minimum = method.advance(
            power, place.state, place.residual, place.memory
        )
        before, after = half_square(place.residual), half_square(residual)
        # A root is followed on to rounding, where q no longer falls as it does under Newton's method.
        at_root = is_root(state, residual, tolerance) & ~(after < before / 4)
        settled = at_minimum | at_root | ~jnp.isfinite(after)
        moved = Place(state, residual, memory, place.iterations + 1, settled)
        return jax.tree.map(lambda old, new: jnp.where(place.settled, old, new), place, moved)

    _, places = jax.lax.while_loop(unfinished, iterate, (jnp.zeros_like(limit), places))
    return places


def half_square(residual: Any) -> Any:
    """Return q = ½ ‖r‖² over the last axis."""
    return 0.5 * (residual**2).sum(axis=-1)


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
def jacobians_at(cell: Step, x: Any, like: Carry, states: Any, *, period: int = 1) -> Any:
    """Return ∂F^p/∂s [N, S, S] at states [N, S]."""
    return jax.vmap(Power(cell, x, like, period).jacobian)(states)


@compiled
def paths_from(cell: Step, x: Any, like: Carry, states: Any, *, period: int) -> Any:
    """Return s, F(s), … F^p(s) of states [N, S], [N, p + 1, S]."""
    return jax.vmap(lambda state: Power(cell, x, like, period).path(state).states)(states)


def eigenvalues_of(matrices: Any) -> Any:
    """Return eigenvalues by falling modulus [N, S] of matrices [N, S, S]; NaN where one is not finite."""
    return np.asarray(in_float64(eigenvalues, jnp.asarray(matrices)))
