"""Fixed points and slow points of a step under a constant input.

    q(s) = ½ ‖F(s, x) − s‖²

The dynamics of a network under a constant input is the iteration of one map, and its fixed points explain
what the network computes: stable fixed points are memories, saddles separate their basins, and lines of
points with small q hold a graded value (Sussillo & Barak 2013, "Opening the black box"). Candidates are drawn
from trajectories of the network (`candidates_from`). Each one minimises q independently
(`jaxrnn.analysis.least_squares`). The map is linearised at the distinct points found, and the eigenvalues of
J = ∂F/∂s decide which are stable.

No candidate is dropped silently. The record says how every candidate ended and at which point. It also counts
the outliers: end points far from all candidates, where the network never goes, are left out, as in Golub &
Sussillo 2018 (FixedPointFinder).

Weakness: no local search can guarantee that all fixed points were found. More candidates and more noise find
more, and low counts in `multiplicity` suggest that other points were missed. Katz & Reggia (2017, "Using
directional fibers to locate fixed points of recurrent neural networks") follow curves instead and find many
points that no trajectory approaches. Where gates are closed, F(s) − s is small over whole regions without a
fixed point. `jaxrnn.analysis.roots` explains how these are distinguished from fixed points, and why they
cannot be if gates are closed to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.least_squares import LevenbergMarquardt, Search
from jaxrnn.analysis.roots import (
    Batch,
    Ends,
    Outcome,
    batch_for,
    by_batches,
    eigenvalues_of,
    jacobians_at,
    paths_from,
    search,
    taken,
)
from jaxrnn.analysis.stationary_points import FixedPoints
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.steps import begin, carry_of, flat_state, step_of
from jaxrnn.typing import Carry, Key, Step, StepLike


@checked
def candidates_from(trajectory: Trajectory, count: int, *, key: Key, noise: float = 0.0) -> Carry:
    """Draw candidates for the search from the states of a trajectory.

    Args:
      trajectory: the states to draw from, from `trace`.
      count: number of candidates; drawn without replacement if there are enough states.
      key: random key.
      noise: standard deviation of the noise added to every entry, in units of the state. Some noise finds
        points that lie off the trajectories.

    Returns:
      Carries with leaves [count, H].

    Raises:
      InputError: an argument out of range.

    Example:
      >>> from flax import nnx
      >>> import jax, jaxrnn
      >>> from jaxrnn.analysis._fixed_points import candidates_from
      >>> cell = jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jax.random.normal(jax.random.key(0), (20, 4, 3)))
      >>> c, h = candidates_from(path, 50, key=jax.random.key(1), noise=0.1)
      >>> c.shape, h.shape
      ((50, 8), (50, 8))
    """
    if not isinstance(trajectory, Trajectory):
        checks.refuse("trajectory", checks.describe(trajectory), "a Trajectory, from trace")
    checks.count("count", count)
    if noise:
        checks.positive("noise", noise)
    where, how = jax.random.split(key)
    leading = 1 + len(trajectory.batch)
    total = int(np.prod(trajectory.states.shape[:-1]))
    rows = jax.random.choice(where, total, (count,), replace=count > total)
    leaves, structure = jax.tree.flatten(trajectory.carries)
    drawn = [leaf.reshape(total, *leaf.shape[leading:])[rows] for leaf in leaves]
    keys = jax.random.split(how, len(leaves))
    noisy = [
        leaf + noise * jax.random.normal(one, leaf.shape, leaf.dtype)
        for leaf, one in zip(drawn, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


@checked
def fixed_points(
    cell: StepLike,
    x: Any,
    candidates: Carry,
    *,
    x_axis: Literal[0] | None = None,
    method: Search | None = None,
    tolerance: float | None = None,
    slow: float | None = None,
    distinct: float | None = None,
    outlier: float = 10.0,
    batch: int | None = None,
) -> FixedPoints:
    """Find the fixed points, and optionally the slow points, that candidates converge to.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)`` of one sequence.
      x: the constant input [F], or None for an autonomous system; with ``x_axis=0`` one input for each
        candidate [C, F].
      candidates: carries from which to start, leaves [C, H]; see `candidates_from`.
      x_axis: axis of `x` that belongs to the candidates, as ``in_axes`` of `jax.vmap`. Points under different
        inputs are different points, and `FixedPoints.xs` holds the input of each.
      method: `LevenbergMarquardt` (the default) or `Descent`, with their settings.
      tolerance: the largest entry of F(s) − s that counts as zero, relative to the largest entry of s, or
        to 1 if that is smaller; by default 100 times the resolution of the dtype. The search continues below
        it while q still decreases. A state counts as a fixed point only if the linearised equation also has a
        solution within `distinct` of it; otherwise its outcome is ``Outcome.NO_POINT_NEAR``.
      slow: points that are not fixed but have q at most this are kept as slow points; by default none are.
      distinct: points count as one if all their entries differ by at most this; by default the square root of
        the dtype's resolution, times the largest entry of all points if that exceeds 1.
      outlier: leave out points further from the candidates' centre than this many times the candidates' own
        mean distance from it. All points are kept if it is infinite or if all candidates are equal.
      batch: number of candidates that advance at once, which bounds the memory. By default the Jacobians of a
        batch take 4 MB on a CPU, to fit its cache, or 64 MB on an accelerator.

    Returns:
      `FixedPoints`. If nothing converged it is empty, and its outcomes say why.

    Raises:
      InputError: candidates or an input that do not fit the cell or are not finite, a setting out of range,
        or a tolerance finer than the dtype or above 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._fixed_points import fixed_points
      >>> step = lambda s, x: (jnp.tanh(2.0 * s), s)
      >>> found = fixed_points(step, None, jnp.array([[-2.0], [-0.1], [0.3], [2.0]]))
      >>> print(found.text)
      4 candidates: 4 reached a fixed point; 0 of them outliers
      3 distinct points: 2 stable, 1 unstable in 1 direction
      ...
    """
    settings = Settings(method or LevenbergMarquardt(), tolerance, slow, distinct, outlier, batch)
    found, _, _ = periodic_points(cell, x, candidates, 1, settings, x_axis)
    return found


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of `fixed_points` and `cycles`, which document them."""

    method: Search
    tolerance: float | None
    slow: float | None
    distinct: float | None
    outlier: float
    batch: int | None

    def __post_init__(self):
        """Refuse settings that are out of range."""
        if not isinstance(self.method, Search):
            got = checks.describe(self.method)
            checks.refuse("method", got, "LevenbergMarquardt() or Descent(), with their settings")
        for name in ("tolerance", "slow", "distinct"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        if isinstance(self.outlier, str) or not self.outlier > 0:
            checks.refuse("outlier", repr(self.outlier), "a number above 0, or infinity")


@one_blas_thread
def periodic_points(
    cell: Step, x: Any, candidates: Carry, period: int, settings: Settings, x_axis: int | None
) -> tuple[FixedPoints, Float[Array, "N p S"], int]:
    """Return a point of every orbit of least period p, the orbits, and the number with a shorter period."""
    cell = step_of(cell)
    xs, like, starts = _checked_system(cell, x, candidates, x_axis)
    tolerance = checked_tolerance(settings.tolerance, starts.dtype)
    batch = batch_for(starts, settings.batch)

    def at_each(function, rows, states):
        bound = functools.partial(function.bound(cell), like, period=period)
        return by_batches(bound, (taken(xs, rows), states), batch)

    ends = search(
        cell, xs, like, starts, settings.method, tolerance, batch, period, settings.distinct
    )
    ends = _slow_told(ends, settings.slow)
    reached = np.flatnonzero(ends.outcomes <= Outcome.SLOW_POINT)
    near = reached[_near(ends.states[reached], starts, settings.outlier)]
    paths = at_each(paths_from, near, ends.states[near])
    apart = _resolution(paths, settings.distinct)
    shorter = _has_shorter_period(paths, apart)
    rows, orbits = near[~shorter], paths[~shorter, :-1]
    order = np.lexsort((ends.speeds[rows], ends.outcomes[rows]))
    groups = _grouped(orbits, _systems(taken(xs, rows), len(rows)), order, apart)
    matrices = at_each(jacobians_at, rows[groups.first], orbits[groups.first, 0])
    outliers = len(reached) - len(near)
    points, chosen = _linearised(ends, xs, rows, orbits, groups, matrices, like, batch, outliers)
    return points, jnp.asarray(orbits[chosen]), int(shorter.sum())


def _linearised(
    ends: Ends,
    xs: Any,
    rows: Any,
    orbits: Any,
    groups: Groups,
    matrices: Any,
    like: Carry,
    batch: Batch,
    outliers: int,
) -> tuple[FixedPoints, Any]:
    """Return the record of the groups, and the index of the orbit that represents each of its points.

    `rows` holds the candidate that ended in each of the orbits [M, p, S]; `matrices` holds the Jacobian of
    each group.
    """
    spectra = by_batches(eigenvalues_of, matrices, batch)
    slow = ends.outcomes[rows[groups.first]] == Outcome.SLOW_POINT
    order = np.lexsort((-groups.count, (np.abs(spectra) > 1).sum(axis=-1), slow))
    ends_in = np.full(len(ends.states), -1)
    ends_in[rows] = np.argsort(order)[groups.member]
    chosen = groups.first[order]
    points = FixedPoints(
        carries=_carries(orbits[chosen, 0], like),
        xs=jax.tree.map(jnp.asarray, taken(xs, rows[chosen])),
        speeds=jnp.asarray(ends.speeds[rows[chosen]]),
        jacobians=jnp.asarray(matrices[order]),
        eigenvalues=jnp.asarray(spectra[order]),
        slow=jnp.asarray(slow[order]),
        multiplicity=jnp.asarray(groups.count[order]),
        outcomes=jnp.asarray(ends.outcomes),
        ends_in=jnp.asarray(ends_in),
        iterations=jnp.asarray(ends.iterations),
        outliers=jnp.asarray(outliers),
    )
    return points, chosen


def _checked_system(
    cell: Step, x: Any, candidates: Carry, x_axis: int | None
) -> tuple[Any, Carry, Any]:
    """Return the input of each candidate [C, F], one carry as a template, and the states [C, S]."""
    if isinstance(candidates, Trajectory):
        got = "a Trajectory"
        checks.refuse(
            "candidates", got, "carries with leaves [C, H], as from candidates_from(it, …)"
        )
    checks.arrays("candidates", candidates)
    checks.arrays("x", x)
    candidates, x = jax.tree.map(jnp.asarray, (candidates, x))
    leaves = jax.tree.leaves(candidates)
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(counts) != 1 or counts == {0}:
        expected = "carries with leaves [C, H], the same C above 0 in all"
        checks.refuse("candidates", checks.describe(candidates), expected)
    if {leaf.dtype for leaf in leaves} not in ({jnp.dtype("float32")}, {jnp.dtype("float64")}):
        checks.refuse("candidates", checks.describe(candidates), "float32 or float64 throughout")
    checks.finite("candidates", candidates)
    checks.finite("x", x)
    if not all(isinstance(leaf.dtype, np.dtype) for leaf in jax.tree.leaves(x)):
        checks.refuse("x", checks.describe(x), "numbers, which random keys are not")
    like = jax.tree.map(lambda leaf: leaf[0], candidates)
    count = leaves[0].shape[0]
    if x_axis is None:
        xs = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), x)
    else:
        xs = jax.tree.map(np.asarray, x)
        if any(leaf.shape[:1] != (count,) for leaf in jax.tree.leaves(xs)):
            expected = f"{count} inputs [C, F], one for each candidate (x_axis=0)"
            checks.refuse("x", checks.describe(x), expected)
    check_input(cell, jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), xs), like)
    return xs, like, flat_state(candidates, 1)


def check_input(cell: Step, x: Any, carry: Carry) -> None:
    """Require one finite input [F] of the cell, and a carry of the cell."""
    checks.finite("x", x)
    features = getattr(cell, "num_feature_axes", None)
    if features is not None and (not checks.is_array(x) or x.ndim != features):
        checks.refuse("x", checks.describe(x), "one constant input [F], without batch axes")
    begin(cell, jax.tree.map(lambda leaf: leaf[None], x), carry, length=1)


def checked_tolerance(tolerance: float | None, dtype: Any) -> float:
    """Return the tolerance, by default 100 resolutions of the dtype; refuse one below the resolution."""
    resolution = float(jnp.finfo(dtype).eps)
    if tolerance is None:
        return 100 * resolution
    if tolerance < resolution:
        got = f"{tolerance:g} for {jnp.dtype(dtype).name}"
        checks.refuse("tolerance", got, f"at least its resolution, {resolution:.1e}")
    if tolerance > 1:
        checks.refuse("tolerance", f"{tolerance:g}", "at most 1, with which any state would do")
    return tolerance


def _slow_told(ends: Ends, slow: float | None) -> Ends:
    """Mark the points with q below the threshold as slow points."""
    if slow is None:
        return ends
    not_fixed = (Outcome.MINIMUM, Outcome.UNFINISHED, Outcome.NO_POINT_NEAR)
    is_slow = np.isin(ends.outcomes, not_fixed) & (ends.speeds <= slow)
    return ends._replace(outcomes=np.where(is_slow, Outcome.SLOW_POINT, ends.outcomes))


def _near(states: Any, starts: Any, outlier: float) -> Any:
    """Tell which states are not outliers of the candidates' distribution."""
    starts = np.asarray(starts, np.float64)
    centre = starts.mean(axis=0)
    spread = np.linalg.norm(starts - centre, axis=-1).mean()
    distances = np.linalg.norm(states.astype(np.float64) - centre, axis=-1)
    return (distances <= outlier * spread) | (spread == 0)


def _resolution(paths: Any, distinct: float | None) -> float:
    """Return the largest difference at which two entries count as equal."""
    if distinct is not None:
        return distinct
    scale = np.abs(paths).max(initial=1.0)
    return float(np.finfo(paths.dtype).eps ** 0.5 * scale)


def _has_shorter_period(paths: Any, apart: float) -> Any:
    """Tell which paths [M, p + 1, S] return to their first state before step p."""
    back = np.abs(paths[:, 1:-1] - paths[:, :1]).max(axis=-1) <= apart
    return back.any(axis=-1)


class Groups(NamedTuple):
    """M orbits sorted into N groups.

    Attributes:
      first: the orbit that represents each group [N].
      member: the group of each orbit [M].
      count: number of orbits in each group [N].
    """

    first: Any
    member: Any
    count: Any


def _systems(xs: Any, count: int) -> Any:
    """Number the inputs [M, …], so that equal inputs, which define the same system, share a number."""
    leaves = jax.tree.leaves(xs)
    if not leaves or not count:
        return np.zeros(count, int)
    columns = [np.reshape(leaf, (count, -1)) for leaf in leaves]
    return np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _grouped(orbits: Any, systems: Any, order: Any, apart: float) -> Groups:
    """Group the orbits [M, p, S] of one system that pass through a point of an earlier one in the order."""
    leader = np.full(len(orbits), -1)
    for i in order:
        if leader[i] < 0:
            free = np.flatnonzero((leader < 0) & (systems == systems[i]))
            differences = np.abs(orbits[free, :1] - orbits[i]).max(axis=-1).min(axis=-1)
            leader[free[differences <= apart]] = i
    return Groups(*np.unique(leader, return_inverse=True, return_counts=True))


def _carries(states: Any, like: Carry) -> Carry:
    """Split states [N, S] into carries with leaves [N, H]."""
    return jax.vmap(lambda state: carry_of(state, like))(jnp.asarray(states))
