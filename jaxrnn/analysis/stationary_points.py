"""The record of a search for fixed and slow points: points, stability, and the outcome of every candidate.

A fixed point of a map is stable if all eigenvalues of J = ∂F/∂s lie inside the unit circle, a saddle if some
lie inside and some outside, and marginal if one is so close to the circle that rounding may decide its side.

Weakness: eigenvalues describe a neighbourhood of the point, but not its size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from jaxrnn.analysis.roots import Outcome
from jaxrnn.steps import flat_state
from jaxrnn.typing import Carry


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedPoints:
    """Distinct fixed points and slow points, and the outcomes of C candidates.

    Fixed points come before slow points, then points with fewer unstable directions come first, and among
    these the points that more candidates reached.

    `Outcome` is in `jaxrnn.analysis.roots`.

    Attributes:
      carries: the points as carries, leaves [N, H].
      xs: the constant input of each point, leaves [N, F]; None for an autonomous system.
      speeds: q at the points [N].
      jacobians: ∂F/∂s at the points [N, S, S].
      eigenvalues: of the Jacobians, by decreasing modulus [N, S].
      slow: which points are slow points rather than fixed points [N].
      multiplicity: number of candidates that ended in each point [N].
      outcomes: how each candidate ended, values of `Outcome` [C].
      ends_in: index of the point in which each candidate ended [C], −1 for none.
      iterations: number of steps that each candidate took [C].
      outliers: number of candidates that ended in points too far away, which are not listed.
    """

    carries: Carry
    xs: Any
    speeds: Float[Array, "N"]
    jacobians: Float[Array, "N S S"]
    eigenvalues: Complex[Array, "N S"]
    slow: Bool[Array, "N"]
    multiplicity: Int[Array, "N"]
    outcomes: Int[Array, "C"]
    ends_in: Int[Array, "C"]
    iterations: Int[Array, "C"]
    outliers: Int[Array, ""]

    def __len__(self) -> int:
        return len(self.speeds)

    @property
    def states(self) -> Float[Array, "N S"]:
        """The points as flat states [N, S]."""
        return jax.vmap(lambda carry: flat_state(carry, 0))(self.carries)

    @property
    def stable(self) -> Bool[Array, "N"]:
        """Whether all eigenvalues lie inside the unit circle [N]."""
        return jnp.all(jnp.abs(self.eigenvalues) < 1, axis=-1)

    @property
    def unstable_dimension(self) -> Int[Array, "N"]:
        """Number of eigenvalues outside the unit circle [N]."""
        return jnp.sum(jnp.abs(self.eigenvalues) > 1, axis=-1)

    @property
    def saddle(self) -> Bool[Array, "N"]:
        """Whether there are both stable and unstable directions [N]."""
        unstable = self.unstable_dimension
        return (unstable > 0) & (unstable < self.eigenvalues.shape[-1])

    @property
    def marginal(self) -> Bool[Array, "N"]:
        """Whether an eigenvalue is within √ε of the circle, so that rounding may decide its side [N]."""
        distance = jnp.min(jnp.abs(jnp.abs(self.eigenvalues) - 1), axis=-1)
        return distance < float(jnp.finfo(distance.dtype).eps) ** 0.5

    @property
    def converged(self) -> Bool[Array, "C"]:
        """Which candidates ended in a fixed point [C]."""
        return self.outcomes == int(Outcome.FIXED_POINT)

    @property
    def text(self) -> str:
        """A short summary of the candidates' outcomes and of the points."""
        return "\n".join([self._candidates_text, self._points_text, self._steps_text])

    def __str__(self) -> str:
        return self.text

    @property
    def _candidates_text(self) -> str:
        outcomes = np.asarray(self.outcomes)
        parts = [f"{np.sum(outcomes == o)} {_WORDS[o]}" for o in Outcome if np.any(outcomes == o)]
        return (
            f"{len(outcomes)} candidates: {', '.join(parts)}; {int(self.outliers)} of them outliers"
        )

    @property
    def _points_text(self) -> str:
        if not len(self):
            return "0 distinct points"
        slow, unstable = np.asarray(self.slow), np.asarray(self.unstable_dimension)
        stable = np.asarray(self.stable)
        free = unstable[~slow & (unstable > 0)]
        neutral = int(np.sum(~slow & ~stable & (unstable == 0)))
        kinds = [f"{np.sum(~slow & stable)} stable"]
        if len(free):
            kinds.append(f"{len(free)} unstable in {_range_text(int(free.min()), int(free.max()))}")
        kinds += [f"{neutral} neutral"] if neutral else []
        kinds += [f"{slow.sum()} slow"] if slow.any() else []
        marginal = int(np.sum(self.marginal))
        kinds += [f"{marginal} of them marginal"] if marginal else []
        return f"{len(self)} distinct point{'s' * (len(self) > 1)}: {', '.join(kinds)}"

    @property
    def _steps_text(self) -> str:
        steps = np.asarray(self.iterations)
        return f"{np.median(steps):.0f} iterations in the median, {steps.max()} at most"


def _range_text(low: int, high: int) -> str:
    if low < high:
        return f"{low} to {high} directions"
    return f"{low} direction{'s' * (low > 1)}"


_WORDS = {
    Outcome.FIXED_POINT: "reached a fixed point",
    Outcome.SLOW_POINT: "a slow point",
    Outcome.MINIMUM: "a minimum of q above the tolerance",
    Outcome.UNFINISHED: "ran out of iterations",
    Outcome.NON_FINITE: "left the range of floats",
    Outcome.NO_POINT_NEAR: "in a flat region with no fixed point near",
}
