"""The largest Lyapunov exponent of a measured series whose equations are unknown.

The state is reconstructed from delays of the one measured quantity (Takens 1981),

    s_t = (x_t, x_{t+τ}, …, x_{t+(m−1)τ}) ,

and pairs of states that happen to be close take the place of a trajectory and its perturbed copy. Their
distance k steps later, averaged over the series, is a curve whose slope is the exponent:

    S(k) = ⟨ln ‖s_{t+k} − s_{n(t)+k}‖⟩                       n(t) the nearest neighbour of t
    S(k) = ⟨ln ⟨|x_{t'+k} − x_{j'+k}|⟩_j⟩                    j all neighbours within a radius

The first is by Rosenstein, Collins & De Luca 1993, the second by Kantz 1994, with x_{t'} the last entry of
s_t. Neighbours in time are excluded: they are close because they belong to one piece of the trajectory
(Theiler 1986).

Weakness: the range of k has to be chosen by eye. For small k a pair still aligns with the growing direction;
for large k its distance is the width of the attractor. In between, S must be a straight line for several
dimensions m. If it is not, the series shows no exponent, and the number returned means nothing, so look at
`divergence` first. Noise hides the line. Only the largest exponent can be estimated.

The result depends on the fit. For Lorenz's system at σ = 16, R = 45.92, b = 4, whose exponent is 1.50 a unit
of time, with the settings of Rosenstein et al. (5000 samples of x, 0.01 apart, τ = 11, m = 3), it is 1.56
from k = 50 … 200, 1.71 from 50 … 150 and 1.45 from 100 … 200, because S is curved everywhere. Delays from 5
to 20 give 1.57 to 1.48, and the window in time hardly matters. Kantz's method with a radius of 0.5 gives 1.60
from 50 … 200, and less with larger radii, for which S starts near the width of the attractor.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeriesExponent:
    """The divergence of neighbours in a series, and the exponent fitted to it.

    Attributes:
      divergence: S(k), nats, for k = 0 … K [K + 1].
      exponent: slope of S within the fitted range, nats a unit of time.
      residual: root mean square of S about the fitted line, nats: large if S is not a line there.
      pairs: number of states that have a neighbour.
    """

    divergence: Float[np.ndarray, "K1"]
    exponent: float
    residual: float
    pairs: int


@checked
def series_exponent(
    series: ArrayLike,
    *,
    dimension: int,
    fit: tuple[int, int],
    delay: int = 1,
    theiler: int | None = None,
    radius: float | None = None,
    time_step: float = 1.0,
    method: Literal["rosenstein", "kantz"] = "rosenstein",
) -> SeriesExponent:
    """Estimate the largest Lyapunov exponent of a series, on the host and in float64.

    Args:
      series: measurements at equal intervals [T].
      dimension: m, number of delays in a state.
      fit: the first and the last k between which a line is fitted to S(k), in samples.
      delay: τ, in samples.
      theiler: neighbours must be further apart in time than this many samples; by default m τ.
      radius: largest difference of an entry between neighbours, in units of the series; required by "kantz".
      time_step: time between two samples.
      method: "rosenstein" or "kantz".

    Raises:
      InputError: a series that is too short or not finite, settings out of range, or no neighbours.

    Example:
      >>> import numpy as np
      >>> from jaxrnn.analysis import series_exponent
      >>> x = [0.3]
      >>> for _ in range(2000):
      ...     x.append(4 * x[-1] * (1 - x[-1]))
      >>> found = series_exponent(np.array(x), dimension=2, fit=(0, 4))
      >>> bool(abs(found.exponent - np.log(2)) < 0.1)
      True
    """
    checks.counts(dimension=dimension, delay=delay)
    checks.positive("time_step", time_step)
    checks.floating("series", series)
    values = np.asarray(series, np.float64)
    if values.ndim != 1:
        checks.refuse("series", checks.describe(series), "one number a sample [T]")
    checks.finite("series", values)
    first, last = fit
    checks.within("fit", first, 0, last - 1, ": the first k, below the last")
    theiler = dimension * delay if theiler is None else theiler
    checks.within("theiler", theiler, 0, len(values))
    states = _embedded(values, dimension, delay, last)
    if method == "kantz":
        if radius is None:
            checks.refuse("radius", None, 'a distance in units of the series, for method="kantz"')
        checks.positive("radius", radius)
        curve, pairs = _kantz(values[(dimension - 1) * delay :], states, theiler, radius, last)
    else:
        curve, pairs = _rosenstein(states, theiler, last)
    steps = np.arange(first, last + 1)
    slope, height = np.polyfit(steps, curve[first:], 1)
    residual = np.sqrt(np.mean((curve[first:] - height - slope * steps) ** 2))
    return SeriesExponent(curve, float(slope) / time_step, float(residual), pairs)


def _embedded(values: Any, dimension: int, delay: int, last: int) -> Any:
    count = len(values) - (dimension - 1) * delay
    if count < last + 2:
        least = (dimension - 1) * delay + last + 2
        checks.refuse("series", f"{len(values)} samples", f"{least} or more, for these settings")
    return np.stack([values[i * delay : i * delay + count] for i in range(dimension)], axis=-1)


def _rosenstein(states: Any, theiler: int, last: int) -> tuple[Any, int]:
    """Return S(k) of nearest neighbours, and the number of pairs of neighbours."""
    usable = len(states) - last
    tree = KDTree(states[:usable])
    # Among this many nearest states, itself included, at least one is outside the window in time.
    count = min(2 * theiler + 2, usable)
    _, found_at = tree.query(states[:usable], k=count)
    nearest = np.reshape(found_at, (usable, count))  # the query drops an axis if count is 1
    here = np.arange(usable)
    outside = np.abs(nearest - here[:, None]) > theiler
    found = outside.any(axis=1)
    there = nearest[here, outside.argmax(axis=1)][found]
    here = here[found]
    _refuse_lonely(len(here), theiler)
    apart = [np.linalg.norm(states[here + k] - states[there + k], axis=-1) for k in range(last + 1)]
    return np.array([_mean_log(distances) for distances in apart]), len(here)


def _kantz(tips: Any, states: Any, theiler: int, radius: float, last: int) -> tuple[Any, int]:
    """Return S(k) of all neighbours within a radius, and the number of states that have neighbours."""
    usable = len(states) - last
    tree = KDTree(states[:usable])
    steps = np.arange(last + 1)
    rows = []
    for i, near in enumerate(tree.query_ball_point(states[:usable], radius, p=np.inf)):
        others: Int[np.ndarray, "N"] = np.asarray(near)
        others = others[np.abs(others - i) > theiler]
        if len(others):
            rows.append(np.abs(tips[others[:, None] + steps] - tips[i + steps]).mean(axis=0))
    _refuse_lonely(len(rows), theiler)
    return np.array([_mean_log(distances) for distances in np.array(rows).T]), len(rows)


def _mean_log(distances: Any) -> float:
    """Return the mean logarithm of distances, without those that round to zero."""
    apart = distances[distances > 0]
    if not len(apart):
        got = "neighbours that do not come apart at all"
        checks.refuse("series", got, "a series that is not periodic")
    return float(np.log(apart).mean())


def _refuse_lonely(count: int, theiler: int) -> None:
    if not count:
        got = f"no pair of neighbours further apart in time than {theiler}"
        checks.refuse("series", got, "a longer one, a larger radius or a smaller theiler")
