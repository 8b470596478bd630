"""Continuation: follow a branch of fixed points while a parameter changes, and locate its bifurcations.

    G(s, μ) = F(s, x(μ)) − s = 0

defines a curve in (s, μ). Pseudo-arclength continuation (Keller 1977; Kuznetsov, "Elements of Applied
Bifurcation Theory", 2004, ch. 10) predicts the next point along the tangent t of the curve and corrects it by
Newton's method on

    G(z) = 0 ,   tᵀ (z − z_predicted) = 0 ,        z = (s, μ)

so μ may reverse its direction, as it does at a fold. The eigenvalues of J = ∂F/∂s are computed at every
point. When the number of eigenvalues outside the unit circle changes from k to l between two points, the
moduli ranked k-th to l-th pass through 1 between them. Brent's method locates each crossing on the arc
between the two points, and the eigenvalue on the circle determines the kind of bifurcation:

    +1, and μ reverses      fold (saddle-node): two fixed points meet and vanish
    +1, and μ goes on       branch point: another branch crosses, as at a pitchfork or transcritical point
    −1                      flip: a cycle of period 2 branches off
    a complex pair          Neimark–Sacker: an invariant circle branches off
    none near the circle    border collision: the map has a kink there, across which eigenvalues jump

Border collisions are treated in di Bernardo, Budd, Champneys & Kowalczyk, "Piecewise-smooth Dynamical
Systems", 2008. An eigenvalue may also touch 1 and return. This is detected in two cases: where μ reverses, as
on a branch that ends in a pitchfork and continues as its mirror image, and where the bordered determinant det
[∂G/∂z; tᵀ] changes sign, as it does at every simple branch point (Keller 1977).

Weakness: only one branch is followed, and each point costs O(S³). If one eigenvalue leaves the circle and
another enters within the same step, only the two sign tests can detect it; a smaller `max_step` separates the
crossings. A kink at which the branch turns by more than a right angle ends it as "lost". The side of a
bifurcation on which the new branch lies is not computed: start another continuation there, or use `cycles`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import root_scalar

from jaxrnn import checks
from jaxrnn.analysis._fixed_points import check_input, checked_tolerance
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.least_squares import Power, half_square
from jaxrnn.analysis.roots import eigenvalues_of, is_root
from jaxrnn.annotations import checked
from jaxrnn.steps import carry_of, compiled, flat_state, step_of
from jaxrnn.typing import Carry, Step, StepLike

_NEWTON_STEPS = 10  # most iterations of one correction
_SHORTEST = 1e-6
"""The fraction of the longest step below which the branch counts as lost."""

_STRAIGHT = 0.95
"""The smallest cosine allowed between the tangents of neighbouring points. A sharper turn may be a jump to
another branch or, if it persists at the shortest step, a kink of this branch."""


_COLLISION = "border collision"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bifurcation:
    """A point of a branch where eigenvalues cross the unit circle.

    Attributes:
      kind: "fold", "branch point", "flip", "Neimark–Sacker" or "border collision".
      parameter: μ at the bifurcation.
      state: s at the bifurcation [S].
      eigenvalue: the eigenvalue on the circle; of a complex pair, the one with positive imaginary part. At a
        border collision, the eigenvalue nearest to the circle on one side of it.
      position: the number of points of the branch that precede the bifurcation.
    """

    kind: str = dataclasses.field(metadata={"static": True})
    parameter: Any
    state: Any
    eigenvalue: Any
    position: int = dataclasses.field(metadata={"static": True})

    def __str__(self) -> str:
        return f"{self.kind} at {self.parameter:.6g}, eigenvalue {self.eigenvalue:.4g}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branch:
    """Fixed points along a curve, in the order in which they were reached.

    Attributes:
      parameters: μ [K].
      carries: the fixed points as carries, leaves [K, H].
      eigenvalues: of ∂F/∂s, by decreasing modulus [K, S].
      bifurcations: where stability changes or an eigenvalue touches 1, in the order of the curve.
      ending: why the branch ends: "reached the end", "returned to the beginning", "out of points", or "lost"
        if even the shortest step found no next point.
    """

    parameters: Float[Array, "K"]
    carries: Carry
    eigenvalues: Complex[Array, "K S"]
    bifurcations: tuple[Bifurcation, ...]
    ending: str = dataclasses.field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def states(self) -> Float[Array, "K S"]:
        """The points as flat states [K, S]."""
        return flat_state(self.carries, 1)

    @property
    def unstable_dimension(self) -> Int[Array, "K"]:
        """Number of eigenvalues outside the unit circle [K]."""
        return jnp.sum(jnp.abs(self.eigenvalues) > 1, axis=-1)

    @property
    def stable(self) -> Bool[Array, "K"]:
        """Whether all eigenvalues lie inside the unit circle [K]."""
        return jnp.all(jnp.abs(self.eigenvalues) < 1, axis=-1)

    @property
    def text(self) -> str:
        """A short summary."""
        low, high = float(self.parameters.min()), float(self.parameters.max())
        head = f"{len(self)} points, parameter {low:.6g} to {high:.6g}, {self.ending}"
        return "\n".join([head, *map(str, self.bifurcations)])

    def __str__(self) -> str:
        return self.text


@checked
def continuation(
    cell: StepLike,
    path: Callable[[Any], Any],
    start: Carry,
    *,
    begin: float | Any,
    end: float | Any,
    max_step: float = 0.1,
    max_points: int = 1000,
    tolerance: float | None = None,
) -> Branch:
    """Follow the branch of fixed points through `start` at μ = `begin`, towards `end`.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)`` of one sequence. If the parameter is not an
        input, write the step as a function of the parameter, ``lambda carry, mu: …``.
      path: maps μ, a scalar of the carry's dtype, to the input x(μ); ``lambda mu: mu`` for a step that
        takes the parameter itself.
      start: a carry, leaves [H], near the fixed point at μ = `begin`.
      begin: the value of μ to start at.
      end: the value of μ to stop at. The branch also ends if it leaves the interval on the side of `begin`.
      max_step: longest distance between neighbouring points in (s, μ).
      max_points: maximum number of points.
      tolerance: as in `jaxrnn.analysis.fixed_points`.

    Returns:
      A `Branch`, which records why it ended.

    Raises:
      InputError: invalid or non-finite arguments, or no fixed point near `start`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._continuation import continuation
      >>> step = lambda s, mu: (jnp.tanh(2.0 * s + mu), s)  # folds at ±0.532840
      >>> branch = continuation(step, lambda mu: mu, jnp.array([-1.0]), begin=-1.0, end=1.0)
      >>> [(b.kind, round(b.parameter, 3)) for b in branch.bifurcations]
      [('fold', 0.533), ('fold', -0.533)]
    """
    for name, value in (("max_step", max_step), ("tolerance", tolerance)):
        if value is not None:
            checks.positive(name, value)
    checks.count("max_points", max_points)
    begin, end = checks.number("begin", begin), checks.number("end", end)
    start = jax.tree.map(jnp.asarray, start)
    cell = step_of(cell)
    _check(cell, path, start, begin, end)
    dtype = flat_state(start, 0).dtype
    correct = functools.partial(_corrected.bound(cell), start, path=path)
    curve = _Curve(correct, checked_tolerance(tolerance, dtype), max_step)
    points, ending = _follow(curve, start, begin, end, max_points)
    return Branch(
        parameters=jnp.stack([point.place[-1] for point in points]),
        carries=jax.vmap(lambda place: carry_of(place[:-1], start))(
            jnp.stack([point.place for point in points])
        ),
        eigenvalues=jnp.stack([point.eigenvalues for point in points]),
        bifurcations=_bifurcations(curve, points),
        ending=ending,
    )


def _check(cell: Step, path: Callable[[Any], Any], start: Carry, begin: float, end: float) -> None:
    checks.finite("start", start)
    for leaf in jax.tree.leaves(start):
        if leaf.dtype not in (jnp.float32, jnp.float64):
            checks.refuse("start", checks.describe(start), "float32 or float64 throughout")
    for value in (begin, end):
        check_input(cell, path(jnp.asarray(value, flat_state(start, 0).dtype)), start)
    if begin == end:
        checks.refuse("end", end, "another value than begin")


class _Point(NamedTuple):
    """A point of the curve: z = (s, μ) and the unit tangent t [S + 1], eigenvalues [S], det [∂G/∂z; tᵀ]."""

    place: np.ndarray
    tangent: np.ndarray
    eigenvalues: np.ndarray
    determinant: float

    @property
    def unstable(self) -> int:
        return int(np.sum(np.abs(self.eigenvalues) > 1))


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The curve G(z) = 0, with the settings used to follow it.

    Attributes:
      correct: Newton's method, called with a guess, a border and a tolerance.
      tolerance: tolerance of the residual.
      max_step: longest step along the curve.
    """

    correct: Callable[..., Any]
    tolerance: float
    max_step: float

    def point(self, guess: Any, border: Any, along: Any) -> tuple[_Point, bool]:
        """Return the point with borderᵀ (z − guess) = 0, and whether it was found.

        The tangent t is computed from the system bordered with `along`, and oriented so that alongᵀ t > 0.
        """
        with jax.default_matmul_precision("highest"):  # as in `jaxrnn.analysis.roots`
            place, slopes, jacobian, found = self.correct(guess, border, self.tolerance)
        slopes = np.asarray(slopes)
        tangent = _tangent(slopes, along)
        with np.errstate(invalid="ignore"):  # slopes are NaN if no point was found
            sign, log = np.linalg.slogdet(np.vstack([slopes, tangent]).astype(np.float64))
        determinant = float(sign * np.exp(np.clip(log, -700, 700)))
        values = eigenvalues_of(jacobian[None])[0]
        return _Point(np.asarray(place), tangent, values, determinant), bool(found)

    def ahead(self, point: _Point, length: float) -> tuple[_Point, bool]:
        """Return the point reached by a step of a given length along the tangent."""
        guess = point.place + point.place.dtype.type(length) * point.tangent
        return self.point(guess, point.tangent, point.tangent)

    def at(self, one: _Point, other: _Point, parameter: float) -> tuple[_Point, bool]:
        """Return the point at a given parameter between two neighbouring points."""
        low, high = one.place[-1], other.place[-1]
        part = (one.place.dtype.type(parameter) - low) / (high - low)
        guess = one.place + part * (other.place - one.place)
        guess[-1] = parameter
        return self.point(guess, _parameter_axis(guess), one.tangent)

    def between(self, across: Any, one: _Point, other: _Point, part: float) -> _Point:
        """Return the point at a fraction of the distance between two points, measured along `across`."""
        whole = across @ (other.place - one.place)
        slopes = [whole / (across @ point.tangent) * point.tangent for point in (one, other)]
        cubic = CubicHermiteSpline([0.0, 1.0], [one.place, other.place], slopes)
        guess = cubic(part).astype(one.place.dtype)
        return self.point(guess, across, one.tangent)[0]

    def next(self, point: _Point, length: float) -> tuple[_Point | None, float]:
        """Return the next point, or None if there is none, and the step length to try after it."""
        shortest = _SHORTEST * self.max_step
        while length >= shortest:
            found, converged = self.ahead(point, length)
            if converged and found.tangent @ point.tangent > _STRAIGHT:
                return found, min(1.5 * length, self.max_step)
            if converged and length < 2 * shortest:
                return found, length
            length /= 2
        return None, length


def _parameter_axis(place: Any) -> Any:
    return np.eye(1, len(place), len(place) - 1, dtype=place.dtype)[0]


def _tangent(slopes: Any, along: Any) -> Any:
    """Return the unit null vector of ∂G/∂z [S, S + 1] on the same side as `along`."""
    try:
        tangent = np.linalg.solve(np.vstack([slopes, along]), _parameter_axis(along))
    except np.linalg.LinAlgError:  # two branches cross here: keep the previous direction
        return along
    return tangent / np.linalg.norm(tangent)


@compiled
def _corrected(
    cell: Step, like: Carry, guess: Any, border: Any, tolerance: Any, *, path: Callable[[Any], Any]
) -> Any:
    """Return the corrected point, ∂G/∂z and ∂F/∂s at it, and whether it is a root."""

    def residual(place):
        return Power(cell, path(place[-1]), like, 1).residual(place[:-1])

    def slopes(place):
        jacobian = Power(cell, path(place[-1]), like, 1).jacobian(place[:-1])
        own = jacobian - jnp.eye(len(jacobian), dtype=jacobian.dtype)
        axis = jnp.zeros_like(place).at[-1].set(1)
        by_parameter = jax.jvp(residual, (place,), (axis,))[1]
        return jnp.concatenate([own, by_parameter[:, None]], axis=1), jacobian

    def unfinished(now):
        count, place, left, falling = now
        return (count < _NEWTON_STEPS) & (falling | ~is_root(place, left, tolerance))

    def iterate(now):
        count, place, left, _ = now
        matrix = jnp.concatenate([slopes(place)[0], border[None]])
        off = jnp.concatenate([left, (border @ (place - guess))[None]])
        place = place - jnp.linalg.solve(matrix, off)
        after = residual(place)
        return count + 1, place, after, half_square(after) < half_square(left) / 4

    left = residual(guess)
    start = (jnp.zeros((), jnp.int32), guess, left, half_square(left) > 0)
    _, place, left, _ = jax.lax.while_loop(unfinished, iterate, start)
    # If the bordered matrix is exactly singular, Newton's method finds nothing; keep the guess.
    found = jnp.all(jnp.isfinite(left)) & is_root(place, left, tolerance)
    place = jnp.where(found, place, guess)
    return place, *slopes(place), found


@one_blas_thread
def _follow(
    curve: _Curve, start: Carry, begin: float, end: float, max_points: int
) -> tuple[list[_Point], str]:
    """Return the points of the branch, and the reason why it ends."""
    state = np.asarray(flat_state(start, 0))
    guess = np.append(state, state.dtype.type(begin))
    axis = _parameter_axis(guess) * state.dtype.type(np.sign(end - begin))
    point, found = curve.point(guess, axis, axis)
    if not found:
        checks.refuse(
            "start", "no fixed point near it", f"a carry near one at {begin}, the beginning"
        )
    points, length = [point], curve.max_step / 10
    while len(points) < max_points:
        point, length = curve.next(points[-1], length)
        if point is None:
            return points, "lost"
        for bound, ending in ((end, "reached the end"), (begin, "returned to the beginning")):
            if _beyond(point, bound, end - begin if bound == end else begin - end):
                last, found = curve.at(points[-1], point, bound)
                return [*points, last] if found else points, ending
        points.append(point)
    return points, "out of points"


def _beyond(point: _Point, bound: float, direction: float) -> bool:
    return (float(point.place[-1]) - bound) * direction >= 0


@one_blas_thread
def _bifurcations(curve: _Curve, points: list[_Point]) -> tuple[Bifurcation, ...]:
    """Return the bifurcations between neighbouring points."""
    found = []
    for position, (one, other) in enumerate(itertools.pairwise(points), start=1):
        low, high = sorted((one.unstable, other.unstable))
        crossings = [_crossing(curve, one, other, rank) for rank in range(low, high)]
        turns = bool(one.tangent[-1] * other.tangent[-1] < 0)
        happens = [
            (_kind(value, turns, point), value, point)
            for group in _together(sorted(crossings, key=operator.itemgetter(0)))
            for point in [group[0][1]]
            for value in _on_the_circle(point, len(group))
        ]
        if not crossings:
            happens = _touching(curve, one, other, turns)
        found += [
            Bifurcation(kind, float(point.place[-1]), point.place[:-1], value, position)
            for kind, value, point in happens
        ]
    return tuple(found)


def _touching(
    curve: _Curve, one: _Point, other: _Point, turns: bool
) -> list[tuple[str, complex, _Point]]:
    """Return the bifurcations between two neighbours of equal stability, where an eigenvalue may touch 1."""
    if turns:
        test = lambda point: float(point.tangent[-1])  # noqa: E731
    elif one.determinant * other.determinant < 0:
        test = lambda point: point.determinant  # noqa: E731
    else:
        return []
    _, point = _between(curve, one, other, test)
    value = min(map(complex, point.eigenvalues), key=lambda v: abs(v - 1))
    kind = "branch point" if _is_near_circle(value, point) else _COLLISION
    return [(kind, value, point)]


def _together(crossings: list[tuple[float, _Point]]) -> list[list[tuple[float, _Point]]]:
    """Group crossings at the same place to rounding, as all crossings of an orthogonal matrix are."""
    groups: list[list[tuple[float, _Point]]] = []
    for length, point in crossings:
        tolerance = float(np.finfo(point.place.dtype).eps) ** 0.5
        if groups and length - groups[-1][0][0] <= tolerance:
            groups[-1].append((length, point))
        else:
            groups.append([(length, point)])
    return groups


def _on_the_circle(point: _Point, count: int) -> list[complex]:
    """Return the `count` eigenvalues nearest to the circle; of each complex pair, only the upper one."""
    nearest = sorted(map(complex, point.eigenvalues), key=lambda v: abs(abs(v) - 1))[:count]
    above = [value for value in nearest if value.imag > 0]
    below = [value.conjugate() for value in nearest if value.imag < 0]
    real = [value for value in nearest if not value.imag]
    return [*max(above, below, key=len), *real]


def _crossing(curve: _Curve, one: _Point, other: _Point, rank: int) -> tuple[float, _Point]:
    """Find where between two neighbours the `rank`-th eigenvalue by modulus is on the circle."""
    return _between(curve, one, other, lambda point: float(np.abs(point.eigenvalues[rank])) - 1)


def _between(
    curve: _Curve, one: _Point, other: _Point, test: Callable[[_Point], float]
) -> tuple[float, _Point]:
    """Find where a function of the point, with opposite signs at two neighbours, is zero or jumps."""
    whole = float(one.tangent @ (other.place - one.place))
    # Near a branch point Newton's method needs a close guess to stay on its branch: keep every point found.
    known = {0.0: one, whole: other}

    def at(length):
        if length not in known:
            low = max(place for place in known if place < length)
            high = min(place for place in known if place > length)
            known[length] = curve.between(
                one.tangent, known[low], known[high], (length - low) / (high - low)
            )
        return test(known[length])

    rounding = 4 * float(np.finfo(one.place.dtype).eps)
    found = root_scalar(
        at, bracket=(0.0, whole), method="brentq", xtol=rounding * whole, rtol=rounding
    )
    length = float(found.root)
    at(length)
    return length, known[length]


def _is_near_circle(value: complex, point: _Point) -> bool:
    """Tell whether an eigenvalue is on the circle, to the accuracy that a Jordan block of size 3 allows."""
    return abs(abs(value) - 1) <= float(np.finfo(point.place.dtype).eps) ** (1 / 3)


def _kind(value: complex, turns: bool, point: _Point) -> str:
    if not _is_near_circle(value, point):
        return _COLLISION
    if value.imag:
        return "Neimark–Sacker"
    if value.real < 0:
        return "flip"
    return "fold" if turns else "branch point"
