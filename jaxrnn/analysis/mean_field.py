"""Mean-field theory of a random Elman network: what its dynamics and gradients are as N → ∞.

For a step h' = φ(W h + V x + b) with W_ij ~ N(0, g²/N), independent biases of variance σ_b² and a drive V x
of variance σ_x², new at every step, the pre-activations of the N units are independent Gaussian processes.
All that is left of the network are a few numbers:

    q  = g² E φ(√q z)² + σ_b² + σ_x²                   variance of a pre-activation, z ~ N(0, 1)
    c' = (g² E φ(u₁) φ(u₂) + σ_b² + ρ σ_x²) / q        correlation of two copies, u₁ and u₂ ~ N(0, q)
    χ  = g² E φ'(√q z)² = ∂c'/∂c at c = 1              mean squared singular value of a step Jacobian

(u₁ and u₂ are correlated by c; the two copies have the same weights and biases, and inputs of correlation ρ).
A small difference grows, and a gradient that flows back grows, by χ a step in its square. So the largest
Lyapunov exponent is ½ ln χ; χ = 1 is the edge of chaos; below it copies converge (c* = 1), above it they
settle at c* < 1. With ρ = 0, and in a network without input, c* is also the autocorrelation at every lag. The
spectrum of one step Jacobian fills a disc of radius √χ; the mean of all exponents is ln g − ½ + E ln |φ'|.
The network x' = W φ(x) + … has the same numbers.

Sompolinsky, Crisanti & Sommers 1988; Molgedey, Schuchhardt & Schuster 1992 (the driven network, discrete
time); Poole et al. 2016 and Schoenholz et al. 2017 (correlation map and depth scales); Pennington, Schoenholz
& Ganguli 2017 (singular values); Chen, Pennington & Schoenholz 2018 (recurrent networks); Engelken, Wolf &
Abbott 2023 (Lyapunov spectra). In discrete time the same W at every step changes none of this: as N → ∞ a
unit's pre-activation does not depend on the unit's own past, and that is all that could tell.

Weakness: N is infinite. At finite N the numbers fluctuate by O(1/√N) from draw to draw, and near the edge the
network may sit at a fixed point or on a cycle where theory sees chaos. Weights that are orthogonal, sparse or
trained are not Gaussian.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq, minimize_scalar

from jaxrnn import checks
from jaxrnn.analysis.bounds import Activation, check_elementwise, slope_bound, slopes, values
from jaxrnn.analysis.gaussian import mean, pair_mean

CONVERGED = "converged"
DIVERGES = "variance diverges"
NO_EDGE = "no edge within the bracket"
DIVERGES_FIRST = "variance diverges before the edge"

_FARTHEST = 128.0  # |ln q| beyond which a variance counts as infinite, or as 0
_SETTINGS = ("gain", "bias_variance", "input_variance", "input_correlation")
_UNKNOWN = dict.fromkeys(
    (
        "mean_square",
        "chi",
        "fourth",
        "norm",
        "mean_exponent",
        "correlation",
        "correlation_slope",
    ),
    math.nan,
)
_AT_EDGE = 1e-6  # |ln χ| up to which a gain is at the edge, and not at a jump over it
_ROUNDING = 2e-14  # of a variance: a smaller change by the weights may be rounding
_STILL = 1e-150  # a deviation that stands for 0 from above: φ' may jump at 0 itself


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanField:
    """What mean-field theory says of a random Elman network; rates in nats a step.

    Attributes:
      gain: g.
      bias_variance: σ_b².
      input_variance: σ_x².
      input_correlation: ρ, of the inputs of the two copies.
      variance: q*, the variance of a pre-activation: a fixed point found by going from 1 the way the variance
        moves there, to e, e², e⁴, … times it; a pair of fixed points between two of these goes unseen.
        Infinite where it diverges, and then all below is NaN. At the edge of a ReLU without bias every
        variance is one, and 1 is given.
      mean_square: E φ², the mean square of a state.
      chi: χ, the growth of a squared gradient a step.
      fourth: g⁴ E φ'⁴, from which the spread of the singular values follows.
      norm: largest singular value of a step Jacobian; 2 g where φ' = 1.
      mean_exponent: (1/N) ln |det J|, the mean of all Lyapunov exponents; −∞ where φ' vanishes on a stretch,
        NaN where rounding takes a slope that fades away. (Of tanh and sigmoid themselves it is taken
        exactly.)
      correlation: c*, to which the correlation of two copies goes.
      correlation_slope: ∂c'/∂c at c*.
      status: "converged", "variance diverges", "no edge within the bracket" or "variance diverges before the
        edge".
    """

    gain: float
    bias_variance: float
    input_variance: float
    input_correlation: float
    variance: float
    mean_square: float
    chi: float
    fourth: float
    norm: float
    mean_exponent: float
    correlation: float
    correlation_slope: float
    status: str = dataclasses.field(metadata={"static": True})

    @property
    def lyapunov(self) -> float:
        """Largest Lyapunov exponent, ½ ln χ: also the rate of every gradient's norm."""
        return 0.5 * _log(self.chi)

    @property
    def spectral_radius(self) -> float:
        """Radius of the disc that the eigenvalues of a step Jacobian fill, √χ."""
        return math.sqrt(self.chi)

    @property
    def gradient_scale(self) -> float:
        """Steps in which a squared gradient changes by a factor e, 1/|ln χ|; infinite at the edge."""
        return _scale(self.chi)

    @property
    def correlation_scale(self) -> float:
        """Steps in which two copies come e times nearer to c*, 1/|ln slope|: how long a start is kept."""
        return _scale(self.correlation_slope)

    def spread(self, steps: int) -> float:
        """Variance of the squared singular values of T steps' product over the square of their mean.

        It is T E φ'⁴ / (E φ'²)² (Pennington et al. 2017): however χ is chosen, a Gaussian network's product
        becomes ill-conditioned with its length. For T ≪ N.
        """
        checks.count("steps", steps)
        return steps * self.fourth / self.chi**2


def mean_field(
    activation: Activation,
    gain: float | Any,
    *,
    bias_variance: float | Any = 0.0,
    input_variance: float | Any = 0.0,
    input_correlation: float | Any = 1.0,
) -> MeanField:
    """Return the order parameters of h' = φ(W h + V x + b) as N → ∞ and what follows from them.

    Args:
      activation: φ, a function of JAX's, elementwise.
      gain: g; W_ij has the variance g²/N.
      bias_variance: σ_b².
      input_variance: σ_x², of V x at one unit.
      input_correlation: ρ in [−1, 1], of the inputs of two copies; 1: the same input.

    Returns:
      A `MeanField`, whose status says whether the variance is finite.

    Raises:
      InputError: a gain that is not above 0, a variance below 0, a correlation outside [−1, 1], or an
        activation that is no elementwise function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis.mean_field import mean_field
      >>> theory = mean_field(jnp.tanh, 3.0)
      >>> round(theory.lyapunov, 5), round(theory.mean_exponent, 3)
      (0.31025, -2.273)
    """
    net = _checked(activation, gain, bias_variance, input_variance, input_correlation)
    settings = {field: getattr(net, field) for field in _SETTINGS}
    variance = net.variance()
    if not math.isfinite(variance):
        return MeanField(**settings, variance=math.inf, **_UNKNOWN, status=DIVERGES)
    deviation = math.sqrt(variance) or _STILL
    chi = net.chi(variance)
    correlation = net.correlation(variance, chi)
    copies_apart = correlation < 1 and variance > 0
    return MeanField(
        **settings,
        variance=variance,
        mean_square=mean(lambda z: values(activation, math.sqrt(variance) * z) ** 2),
        chi=chi,
        fourth=net.gain**4 * mean(lambda z: _slopes_at(activation, deviation, z) ** 4),
        norm=net.gain * _largest_singular_value(activation, deviation),
        mean_exponent=math.log(net.gain) - 0.5 + _mean_log_slope(activation, deviation),
        correlation=correlation,
        correlation_slope=net.gain**2
        * pair_mean(functools.partial(slopes, activation), deviation, correlation)
        if copies_apart
        else chi,
        status=CONVERGED,
    )


def correlation_map(
    activation: Activation,
    correlation: float,
    gain: float,
    *,
    bias_variance: float = 0.0,
    input_variance: float = 0.0,
    input_correlation: float = 1.0,
) -> float:
    """Return c', the correlation of the pre-activations of two copies one step after it was c.

    Args:
      activation: φ.
      correlation: c in [−1, 1].
      gain: g.
      bias_variance: σ_b².
      input_variance: σ_x².
      input_correlation: ρ, as in `mean_field`.

    Returns:
      c'; NaN where the variance diverges or is 0.

    Raises:
      InputError: as `mean_field`, or c outside [−1, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis.mean_field import correlation_map
      >>> correlation_map(jnp.tanh, 0.5, 2.0) < 0.5  # chaos tears copies apart
      True
    """
    correlation = _checked_correlation("correlation", correlation)
    net = _checked(activation, gain, bias_variance, input_variance, input_correlation)
    variance = net.variance()
    return net.map_correlation(correlation, variance) if 0 < variance < math.inf else math.nan


def edge_of_chaos(
    activation: Activation,
    *,
    bias_variance: float = 0.0,
    input_variance: float = 0.0,
    bracket: tuple[float, float] | Any = (0.01, 100.0),
) -> MeanField:
    """Return the theory at the gain where χ = 1, for given bias and input.

    Args:
      activation: φ.
      bias_variance: σ_b².
      input_variance: σ_x².
      bracket: gains between which to look.

    Returns:
      A `MeanField` whose gain is the edge, to about 1e-7 where φ saturates, as χ − 1 rises with the square of
      the distance alone, and to rounding elsewhere. NaN with the status "no edge within the bracket" where
      χ − 1 has the same sign at both ends, or "variance diverges before the edge" where it jumps over 0 to
      where theory ends, as for a GELU: χ < 1 up to the gain beyond which activity grows without bound.

    Raises:
      InputError: as `mean_field`, or a bracket that is no pair of rising gains.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis.mean_field import edge_of_chaos
      >>> round(edge_of_chaos(jnp.tanh).gain, 6)
      1.0
    """
    low, high = checks.interval("bracket", bracket, sys.float_info.min, sys.float_info.max)
    at_low = _checked(activation, low, bias_variance, input_variance, 1.0)

    def log_chi(gain: float) -> float:
        net = dataclasses.replace(at_low, gain=gain)
        variance = net.variance()
        return _log(net.chi(variance)) if math.isfinite(variance) else 1.0

    if not log_chi(low) < 0 < log_chi(high):
        return _no_edge(NO_EDGE)
    gain = _root(log_chi, low, high)
    if not abs(log_chi(gain)) < _AT_EDGE:
        return _no_edge(DIVERGES_FIRST)
    return mean_field(activation, gain, bias_variance=bias_variance, input_variance=input_variance)


def _no_edge(status: str) -> MeanField:
    settings = dict.fromkeys(_SETTINGS, math.nan)
    return MeanField(**settings, variance=math.nan, **_UNKNOWN, status=status)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The maps of one ensemble of networks."""

    activation: Activation
    gain: float
    bias_variance: float
    input_variance: float
    input_correlation: float

    def variance(self) -> float:
        """Return q*: a crossing within the first stride from 1, the way the variance moves, that shows one.

        Strides double in ln q, and only the sign at their ends is looked at: two crossings within one cancel,
        and of three any may be found.
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
        return math.exp(_root(self._growth, here, there))

    def _growth(self, log: float) -> float:
        """Return by how much of itself a variance, given by its logarithm, grows in one step."""
        variance = math.exp(log)
        deviation = math.sqrt(variance)
        square = mean(lambda z: values(self.activation, deviation * z) ** 2)
        by_weights = self.gain**2 * square / variance - 1
        # What biases and inputs add, however little, would drown in the rounding of a critical ReLU's.
        added = (self.bias_variance + self.input_variance) / variance
        return added if abs(by_weights) < _ROUNDING else by_weights + added

    def chi(self, variance: float) -> float:
        """Return χ at a variance."""
        deviation = math.sqrt(variance) or _STILL
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
        constant term. It is convex on [0, 1], and crosses the diagonal there once below 1 at most.
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
        return _root(change, 0.0, side * (1 - gap))


def _slopes_at(activation: Activation, deviation: float, z: Any) -> Any:
    """Return φ' at `deviation` times z; 0 where it vanishes with a deviation that stands for 0."""
    found = slopes(activation, deviation * z)
    if deviation > _STILL:
        return found
    farther = slopes(activation, math.sqrt(deviation) * z)
    return np.where(np.abs(found) > np.abs(farther) / 2, found, 0.0)


def _largest_singular_value(activation: Activation, deviation: float) -> float:
    """Return ‖diag(φ') W‖ for g = 1, the edge of a generalised Marchenko–Pastur law.

    σ² = min over 0 < u < 1/γ² of 1/u + E φ'²/(1 − u φ'²) (Silverstein & Choi 1995, for a square W), with γ
    the largest slope that occurs.
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


# E ln |φ'|: where φ saturates, φ' = 1 − φ² and φ (1 − φ) lose their digits, then vanish.

_LOG_SLOPES: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda a: math.log(4.0) - 2 * np.abs(a) - 2 * np.log1p(np.exp(-2 * np.abs(a))),
    "logistic": lambda a: -np.abs(a) - 2 * np.log1p(np.exp(-np.abs(a))),
}


def _mean_log_slope(activation: Activation, deviation: float) -> float:
    exact = _LOG_SLOPES.get(_only_operation(activation))
    if exact is not None:
        return mean(lambda z: exact(deviation * z))
    sizes = np.abs(_slopes_at(activation, deviation, np.linspace(-7.0, 7.0, 20001)))
    if (sizes == 0).mean() > 1e-4:  # more than a crossing of zero
        fades = ((sizes > 0) & (sizes < 1e-9 * sizes.max())).any()
        return math.nan if fades else -math.inf
    least = np.finfo(np.float64).tiny
    return mean(lambda z: np.log(np.maximum(np.abs(slopes(activation, deviation * z)), least)))


def _only_operation(activation: Activation) -> str:
    """Return the name of the one operation that φ consists of, or nothing."""
    program = jax.make_jaxpr(activation)(jnp.float32(1)).jaxpr
    while len(program.eqns) == 1 and hasattr(program.eqns[0].params.get("jaxpr"), "jaxpr"):
        program = program.eqns[0].params["jaxpr"].jaxpr
    if len(program.eqns) != 1 or program.eqns[0].invars != program.invars:
        return ""
    return program.eqns[0].primitive.name


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    root: Any = brentq(function, low, high, xtol=1e-13, maxiter=500)
    return float(root)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan)


def _scale(factor: float) -> float:
    rate = abs(_log(factor))
    return 1 / rate if rate > 0 else (math.inf if rate == 0 else math.nan)


def _checked(
    activation: Activation,
    gain: Any,
    bias_variance: Any,
    input_variance: Any,
    input_correlation: Any,
) -> _Network:
    """Return the ensemble, its settings Python's numbers: NumPy's of low precision would spread theirs."""
    check_elementwise(activation)
    gain = checks.number("gain", gain)
    bias_variance = checks.number("bias_variance", bias_variance)
    input_variance = checks.number("input_variance", input_variance)
    input_correlation = _checked_correlation("input_correlation", input_correlation)
    checks.positive("gain", gain)
    checks.not_negative("bias_variance", bias_variance)
    checks.not_negative("input_variance", input_variance)
    return _Network(activation, gain, bias_variance, input_variance, input_correlation)


def _checked_correlation(argument: str, value: Any) -> float:
    correlation = checks.number(argument, value)
    if not -1 <= correlation <= 1:
        checks.refuse(argument, correlation, "a number from -1 to 1")
    return correlation
