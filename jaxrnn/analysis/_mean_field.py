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
The network x' = W φ(x) + … has the same numbers. `jaxrnn.analysis.order_parameters` computes them.

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
import math
import sys
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.analysis.bounds import Activation, check_elementwise
from jaxrnn.analysis.order_parameters import Ensemble, root
from jaxrnn.annotations import checked

CONVERGED = "converged"
DIVERGES = "variance diverges"
NO_EDGE = "no edge within the bracket"
DIVERGES_FIRST = "variance diverges before the edge"

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
# Beyond, slopes of a saturating φ are narrower than any panel of the integrals.
_LARGEST_GAIN = 1e10
_LARGEST_VARIANCE = _LARGEST_GAIN**2
_AT_EDGE = 1e-6  # |ln χ| up to which a gain is at the edge, and not at a jump over it


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

    @checked
    def spread(self, steps: int) -> float:
        """Variance of the squared singular values of T steps' product over the square of their mean.

        It is T E φ'⁴ / (E φ'²)² (Pennington et al. 2017): however χ is chosen, a Gaussian network's product
        becomes ill-conditioned with its length. For T ≪ N.
        """
        checks.count("steps", steps)
        return steps * self.fourth / self.chi**2


@checked
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
      InputError: a gain that is not above 0 or beyond 1e10, a variance below 0 or beyond 1e20, a correlation
        outside [−1, 1], or an activation that is no elementwise function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._mean_field import mean_field
      >>> theory = mean_field(jnp.tanh, 3.0)
      >>> round(theory.lyapunov, 5), round(theory.mean_exponent, 3)
      (0.31025, -2.273)
    """
    net = _checked(activation, gain, bias_variance, input_variance, input_correlation)
    settings = {field: getattr(net, field) for field in _SETTINGS}
    variance = net.variance()
    if not math.isfinite(variance):
        return MeanField(**settings, variance=math.inf, **_UNKNOWN, status=DIVERGES)
    chi = net.chi(variance)
    correlation = net.correlation(variance, chi)
    copies_apart = correlation < 1 and variance > 0
    return MeanField(
        **settings,
        variance=variance,
        mean_square=net.mean_square(variance),
        chi=chi,
        fourth=net.fourth(variance),
        norm=net.norm(variance),
        mean_exponent=net.mean_exponent(variance),
        correlation=correlation,
        correlation_slope=net.correlation_slope(correlation, variance) if copies_apart else chi,
        status=CONVERGED,
    )


@checked
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
      >>> from jaxrnn.analysis._mean_field import correlation_map
      >>> correlation_map(jnp.tanh, 0.5, 2.0) < 0.5  # chaos tears copies apart
      True
    """
    correlation = _checked_correlation("correlation", correlation)
    net = _checked(activation, gain, bias_variance, input_variance, input_correlation)
    variance = net.variance()
    return net.map_correlation(correlation, variance) if 0 < variance < math.inf else math.nan


@checked
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
      >>> from jaxrnn.analysis._mean_field import edge_of_chaos
      >>> round(edge_of_chaos(jnp.tanh).gain, 6)
      1.0
    """
    low, high = checks.interval("bracket", bracket, sys.float_info.min, _LARGEST_GAIN)
    at_low = _checked(activation, low, bias_variance, input_variance, 1.0)

    def log_chi(gain: float) -> float:
        net = dataclasses.replace(at_low, gain=gain)
        variance = net.variance()
        return _log(net.chi(variance)) if math.isfinite(variance) else 1.0

    if not log_chi(low) < 0 < log_chi(high):
        return _no_edge(NO_EDGE)
    gain = root(log_chi, low, high)
    if not abs(log_chi(gain)) < _AT_EDGE:
        return _no_edge(DIVERGES_FIRST)
    return mean_field(activation, gain, bias_variance=bias_variance, input_variance=input_variance)


def _no_edge(status: str) -> MeanField:
    settings = dict.fromkeys(_SETTINGS, math.nan)
    return MeanField(**settings, variance=math.nan, **_UNKNOWN, status=status)


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
) -> Ensemble:
    """Return the ensemble, its settings Python's numbers: NumPy's of low precision would spread theirs."""
    check_elementwise(activation)
    gain = checks.number("gain", gain)
    bias_variance = checks.number("bias_variance", bias_variance)
    input_variance = checks.number("input_variance", input_variance)
    input_correlation = _checked_correlation("input_correlation", input_correlation)
    checks.positive("gain", gain)
    if gain > _LARGEST_GAIN:
        checks.refuse("gain", gain, f"a number above 0 and up to {_LARGEST_GAIN:g}")
    for name, variance in (("bias_variance", bias_variance), ("input_variance", input_variance)):
        checks.not_negative(name, variance)
        if variance > _LARGEST_VARIANCE:
            checks.refuse(name, variance, f"a number from 0 to {_LARGEST_VARIANCE:g}")
    return Ensemble(activation, gain, bias_variance, input_variance, input_correlation)


def _checked_correlation(argument: str, value: Any) -> float:
    correlation = checks.number(argument, value)
    if not -1 <= correlation <= 1:
        checks.refuse(argument, correlation, "a number from -1 to 1")
    return correlation
