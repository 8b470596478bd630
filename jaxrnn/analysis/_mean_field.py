"""Mean-field theory of a random Elman network: its dynamics and gradients in the limit N → ∞.

For a step h' = φ(W h + V x + b) with W_ij ~ N(0, g²/N), independent biases of variance σ_b² and a drive V x
of variance σ_x², redrawn at every step, the pre-activations of the N units are independent Gaussian
processes. The network is then described by a few numbers:

    q  = g² E φ(√q z)² + σ_b² + σ_x²                   variance of a pre-activation, z ~ N(0, 1)
    c' = (g² E φ(u₁) φ(u₂) + σ_b² + ρ σ_x²) / q        correlation of two copies, u₁ and u₂ ~ N(0, q)
    χ  = g² E φ'(√q z)² = ∂c'/∂c at c = 1              mean squared singular value of a step Jacobian

(u₁ and u₂ have correlation c; the two copies share weights and biases, and their inputs have correlation ρ).
The square of a small difference, and of a gradient in the backward pass, grows by χ a step. So the largest
Lyapunov exponent is ½ ln χ, and χ = 1 is the edge of chaos. Below it copies converge (c* = 1); above it they
settle at c* < 1. With ρ = 0, and in a network without input, c* is also the autocorrelation at every lag. The
spectrum of one step Jacobian fills a disc of radius √χ; the mean of all exponents is ln g − ½ + E ln |φ'|.
The network x' = W φ(x) + … has the same numbers. `jaxrnn.analysis.order_parameters` computes them.

Sompolinsky, Crisanti & Sommers 1988; Molgedey, Schuchhardt & Schuster 1992 (the driven network, discrete
time); Poole et al. 2016 and Schoenholz et al. 2017 (correlation map and depth scales); Pennington, Schoenholz
& Ganguli 2017 (singular values); Chen, Pennington & Schoenholz 2018 (recurrent networks); Engelken, Wolf &
Abbott 2023 (Lyapunov spectra). In discrete time, using the same W at every step changes none of this: as N →
∞ a unit's pre-activation does not depend on the unit's own past, the only place where it could matter.

Weakness: N is infinite. At finite N the numbers fluctuate by O(1/√N) between draws, and near the edge the
network may be at a fixed point or on a cycle where the theory predicts chaos. Orthogonal, sparse or trained
weights are not Gaussian.
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
# Beyond these limits, slopes of a saturating φ are narrower than any panel of the integrals.
_LARGEST_GAIN = 1e10
_LARGEST_VARIANCE = _LARGEST_GAIN**2
_AT_EDGE = 1e-6  # |ln χ| up to which a gain counts as the edge rather than a jump across it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanField:
    """Order parameters of a random Elman network by mean-field theory; rates in nats a step.

    Attributes:
      gain: g.
      bias_variance: σ_b².
      input_variance: σ_x².
      input_correlation: ρ, the correlation of the inputs of the two copies.
      variance: q*, the variance of a pre-activation. This fixed point is searched from 1 in the direction in
        which the variance moves, at e, e², e⁴, … times it; a pair of fixed points between two of these is
        missed. Infinite if it diverges, and then all attributes below are NaN. At the edge of a ReLU without
        bias every variance is a fixed point, and 1 is returned.
      mean_square: E φ², the mean square of a state.
      chi: χ, the growth of a squared gradient a step.
      fourth: g⁴ E φ'⁴, which determines the spread of the singular values.
      norm: largest singular value of a step Jacobian; 2 g where φ' = 1.
      mean_exponent: (1/N) ln |det J|, the mean of all Lyapunov exponents; −∞ where φ' vanishes on an
        interval, NaN where a decaying slope is lost to rounding. (Those of tanh and sigmoid themselves are
        computed exactly.)
      correlation: c*, the limit of the correlation of two copies.
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
        """Largest Lyapunov exponent, ½ ln χ, which is also the growth rate of every gradient's norm."""
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
        """Steps in which two copies come e times closer to c*, 1/|ln slope|: the memory of the start."""
        return _scale(self.correlation_slope)

    @checked
    def spread(self, steps: int) -> float:
        """Return the variance of T steps' squared singular values, over the square of their mean.

        It is T E φ'⁴ / (E φ'²)² (Pennington et al. 2017). Whatever χ is, the product of a Gaussian network's
        Jacobians becomes ill-conditioned as it gets longer. Valid for T ≪ N.
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
    """Return the order parameters of h' = φ(W h + V x + b) as N → ∞, and the numbers derived from them.

    Args:
      activation: φ, an elementwise JAX function.
      gain: g; W_ij has the variance g²/N.
      bias_variance: σ_b².
      input_variance: σ_x², of V x at one unit.
      input_correlation: ρ in [−1, 1], the correlation of the inputs of two copies; 1 means the same input.

    Returns:
      A `MeanField`, whose status says whether the variance is finite.

    Raises:
      InputError: a gain that is not above 0 or exceeds 1e10, a variance below 0 or above 1e20, a correlation
        outside [−1, 1], or an activation that is not an elementwise function.

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
    """Return c', the correlation of the pre-activations of two copies one step after it is c.

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
      bracket: gains between which to search.

    Returns:
      A `MeanField` whose gain is the edge: to about 1e-7 where φ saturates, because there χ − 1 grows with
      the square of the distance, and to rounding elsewhere. Its values are NaN with the status "no edge
      within the bracket" if χ − 1 has the same sign at both ends, or "variance diverges before the edge" if
      the variance diverges while χ < 1, as for a GELU, whose activity grows without bound beyond some gain.

    Raises:
      InputError: as `mean_field`, or a bracket that is not a pair of increasing gains.

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
    """Return the ensemble with Python numbers: NumPy scalars of low precision would lower the precision."""
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
