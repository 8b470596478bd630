"""The maps of the order parameters of a random network, defined and cited in `jaxrnn.analysis.mean_field`.

Each is a mean over one Gaussian pre-activation, or over the pair of two copies. If the variance is 0, a slope
is evaluated next to 0, because φ' may jump there; it is 0 if it decays on the way to 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq, minimize_scalar

from jaxrnn.analysis.bounds import Activation, slope_bound, slopes, values
from jaxrnn.analysis.gaussian import mean, pair_mean

_FARTHEST = 128.0  # |ln q| beyond which a variance counts as infinite, or as 0
_STILL = 1e-150  # a deviation that stands for 0 from above, because φ' may jump at 0 itself
_ROUNDING = 2e-14  # relative to a variance: a smaller change by the weights may be rounding


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The ensemble of networks h' = φ(W h + V x + b), W_ij ~ N(0, g²/N), as N → ∞.

    Attributes:
      activation: φ.
      gain: g.
      bias_variance: σ_b².
      input_variance: σ_x².
      input_correlation: ρ, the correlation of the inputs of two copies.
    """

    activation: Activation
    gain: float
    bias_variance: float
    input_variance: float
    input_correlation: float

    def variance(self) -> float:
        """Return q*, a fixed point of the variance, searched from 1 in the direction in which it moves.

        Strides double in ln q, and only the signs at their ends are compared. Two fixed points within one
        stride are missed, and of three any may be found.
        """
        at_one = self._growth(0.0)
        if at_one == 0:
            return 1.0
        direction = math.copysign(1.0, at_one)
        here, there = 0.0, direction
        while not (growth := direction * self._growth(there)) < 0:
            here, there = there if growth > 0 else here, 2 * there
            if abs(there) > _FARTHEST:
                return math.inf if direction > 0 else 0.0
        return math.exp(root(self._growth, here, there))

    def _growth(self, log: float) -> float:
        """Return the relative growth in one step of a variance, which is given by its logarithm."""
        variance = math.exp(log)
        by_weights = self.gain**2 * self.mean_square(variance) / variance - 1
        # Even a small contribution of biases and inputs must not drown in the rounding of a critical ReLU.
        added = (self.bias_variance + self.input_variance) / variance
        return added if abs(by_weights) < _ROUNDING else by_weights + added

    def chi(self, variance: float) -> float:
        """Return χ at a variance."""
        deviation = _deviation(variance)
        return self.gain**2 * mean(lambda z: _slopes_at(self.activation, deviation, z) ** 2)

    def map_correlation(self, correlation: float, variance: float) -> float:
        """Return c'."""
        pair = pair_mean(
            functools.partial(values, self.activation), math.sqrt(variance), correlation
        )
        shared = self.bias_variance + self.input_correlation * self.input_variance
        return min((self.gain**2 * pair + shared) / variance, 1.0)

    def correlation(self, variance: float, chi: float) -> float:
        """Return c*, the stable fixed point.

        The map is a power series in c whose coefficients are not negative, except for the inputs' part of the
        constant term. It is convex on [0, 1] and crosses the diagonal there at most once below 1.
        """
        if variance == 0:
            return 1.0 if chi <= 1 + _ROUNDING else math.nan
        if self.input_correlation == 1 and chi <= 1:
            return 1.0
        change = lambda c: self.map_correlation(c, variance) - c  # noqa: E731
        at_zero = change(0.0)
        if abs(at_zero) < 1e-13:
            return 0.0
        side = math.copysign(1.0, at_zero)
        gap = 0.5
        while side * change(side * (1 - gap)) >= 0:
            gap /= 2
            if gap < 1e-12:
                return side
        return root(change, 0.0, side * (1 - gap))

    def mean_square(self, variance: float) -> float:
        """Return E φ²."""
        deviation = math.sqrt(variance)
        return mean(lambda z: values(self.activation, deviation * z) ** 2)

    def fourth(self, variance: float) -> float:
        """Return g⁴ E φ'⁴."""
        deviation = _deviation(variance)
        return self.gain**4 * mean(lambda z: _slopes_at(self.activation, deviation, z) ** 4)

    def norm(self, variance: float) -> float:
        """Return the largest singular value of a step Jacobian."""
        return self.gain * _largest_singular_value(self.activation, _deviation(variance))

    def mean_exponent(self, variance: float) -> float:
        """Return (1/N) ln |det J|."""
        return math.log(self.gain) - 0.5 + _mean_log_slope(self.activation, _deviation(variance))

    def correlation_slope(self, correlation: float, variance: float) -> float:
        """Return ∂c'/∂c."""
        slope = functools.partial(slopes, self.activation)
        return self.gain**2 * pair_mean(slope, math.sqrt(variance), correlation)


def _deviation(variance: float) -> float:
    return math.sqrt(variance) or _STILL


def _slopes_at(activation: Activation, deviation: float, z: Any) -> Any:
    """Return φ' at `deviation` times z, or 0 where it vanishes as the deviation goes to 0."""
    found = slopes(activation, deviation * z)
    if deviation > _STILL:
        return found
    farther = slopes(activation, math.sqrt(deviation) * z)
    return np.where(np.abs(found) > np.abs(farther) / 2, found, 0.0)


def _largest_singular_value(activation: Activation, deviation: float) -> float:
    """Return ‖diag(φ') W‖ for g = 1: the edge of a generalised Marchenko–Pastur law.

    σ² = min over 0 < u < 1/γ² of 1/u + E φ'²/(1 − u φ'²) (Silverstein & Choi 1995, for a square W), where γ
    is the largest slope that occurs.
    """
    if deviation > _STILL:
        steepest = slope_bound(activation)
    else:
        steepest = float(np.abs(_slopes_at(activation, _STILL, np.asarray([-1.0, 1.0]))).max())
    if steepest == 0 or not math.isfinite(steepest):
        return steepest

    def square(share: float) -> float:
        relative = lambda z: (_slopes_at(activation, deviation, z) / steepest) ** 2  # noqa: E731
        return 1 / share + mean(lambda z: relative(z) / (1 - share * relative(z)))

    found: Any = minimize_scalar(
        square, bounds=(1e-6, 1 - 1e-9), method="bounded", options={"xatol": 1e-9}
    )
    return steepest * math.sqrt(float(found.fun))


# E ln |φ'|: where φ saturates, φ' = 1 − φ² and φ (1 − φ) lose their digits and then become 0.

_LOG_SLOPES: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda a: math.log(4.0) - 2 * np.abs(a) - 2 * np.log1p(np.exp(-2 * np.abs(a))),
    "logistic": lambda a: -np.abs(a) - 2 * np.log1p(np.exp(-np.abs(a))),
}


def _mean_log_slope(activation: Activation, deviation: float) -> float:
    exact = _LOG_SLOPES.get(_only_operation(activation))
    if exact is not None:
        return mean(lambda z: exact(deviation * z))
    sizes = np.abs(_slopes_at(activation, deviation, np.linspace(-7.0, 7.0, 20001)))
    if (sizes == 0).mean() > 1e-4:  # more than a single crossing of zero
        fades = ((sizes > 0) & (sizes < 1e-9 * sizes.max())).any()
        return math.nan if fades else -math.inf
    least = np.finfo(np.float64).tiny
    return mean(lambda z: np.log(np.maximum(np.abs(slopes(activation, deviation * z)), least)))


def _only_operation(activation: Activation) -> str:
    """Return the name of the primitive that φ consists of, or "" if there is not exactly one."""
    program = jax.make_jaxpr(activation)(jnp.float32(1)).jaxpr
    while len(program.eqns) == 1 and hasattr(program.eqns[0].params.get("jaxpr"), "jaxpr"):
        program = program.eqns[0].params["jaxpr"].jaxpr
    if len(program.eqns) != 1 or program.eqns[0].invars != program.invars:
        return ""
    return program.eqns[0].primitive.name


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return a zero of a function between two numbers at which its signs differ."""
    found: Any = brentq(function, low, high, xtol=1e-13, maxiter=500)
    return float(found)
