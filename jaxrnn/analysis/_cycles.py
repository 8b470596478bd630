"""Cycles: orbits that return after p steps, found as fixed points of F^p.

    s_p = F(… F(s_0, x) …, x) = s_0 ,    M = J_p · … · J_1

A network under a constant input may settle on a cycle instead of a point. The eigenvalues of M, the
multipliers, determine its stability. They are the same at every point of the orbit, because the eigenvalues
of a product do not change under a cyclic permutation of its factors. The search is the one for fixed points
(`jaxrnn.analysis.fixed_points`), applied to the p-th power of the step. Each orbit is reported once, wherever
on it a candidate ended. Orbits whose least period is a proper divisor of p are left out and counted.

Weakness: F^p becomes more nonlinear as p grows, so the search only succeeds from candidates near the orbit.
It is meant for periods up to some tens of steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from jaxtyping import Array, Bool, Complex, Float

from jaxrnn import checks
from jaxrnn.analysis._fixed_points import Settings, periodic_points
from jaxrnn.analysis.least_squares import LevenbergMarquardt, Search
from jaxrnn.analysis.stationary_points import FixedPoints
from jaxrnn.annotations import checked
from jaxrnn.typing import Carry, StepLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cycles:
    """Distinct cycles of one least period, and the outcomes of the candidates.

    Attributes:
      points: the first point of each cycle, as a fixed point of F^p, whose Jacobian is the product M.
      states: the orbits as flat states, ordered by time [N, p, S].
      shorter: number of candidates that ended in a cycle of shorter period, which is not listed.
    """

    points: FixedPoints
    states: Float[Array, "N p S"]
    shorter: int

    def __len__(self) -> int:
        return len(self.points)

    @property
    def multipliers(self) -> Complex[Array, "N S"]:
        """Eigenvalues of the product of Jacobians around the cycle, by decreasing modulus [N, S]."""
        return self.points.eigenvalues

    @property
    def stable(self) -> Bool[Array, "N"]:
        """Whether all multipliers lie inside the unit circle [N]."""
        return self.points.stable

    @property
    def text(self) -> str:
        """A short summary, in which a point stands for its orbit."""
        period = self.states.shape[1]
        return f"period {period}: {self.shorter} candidates in shorter cycles\n{self.points.text}"

    def __str__(self) -> str:
        return self.text


@checked
def cycles(
    cell: StepLike,
    x: Any,
    candidates: Carry,
    period: int,
    *,
    x_axis: Literal[0] | None = None,
    method: Search | None = None,
    tolerance: float | None = None,
    distinct: float | None = None,
    outlier: float = 10.0,
    batch: int | None = None,
) -> Cycles:
    """Find the cycles of least period p that candidates converge to.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)`` of one sequence.
      x: the constant input [F], or None for an autonomous system; with ``x_axis=0`` one input a candidate
        [C, F].
      candidates: carries from which to start, leaves [C, H].
      period: p, in steps.
      x_axis: as in `fixed_points`, like all following arguments.
      method: the method of minimisation.
      tolerance: tolerance of F^p(s) − s.
      distinct: distance above which points of two orbits, or of one orbit at different steps, are distinct.
      outlier: limit of the distance to the candidates, for the point of an orbit in which a candidate ended.
      batch: number of candidates that advance at once.

    Raises:
      InputError: a period below 1, or anything that `fixed_points` refuses.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._cycles import cycles
      >>> step = lambda s, x: (jnp.tanh(-2.0 * s), s)
      >>> found = cycles(step, None, jnp.array([[-2.0], [0.1], [0.8], [2.0]]), period=2)
      >>> len(found), bool(found.stable[0]), found.states.shape
      (1, True, (1, 2, 1))
    """
    checks.count("period", period)
    settings = Settings(method or LevenbergMarquardt(), tolerance, None, distinct, outlier, batch)
    return Cycles(*periodic_points(cell, x, candidates, period, settings, x_axis))
