"""Diagnosis: run all analyses of one cell on one set of sequences, and summarise them in one sentence.

The verdict describes how the loss's gradient changes between the last step that has one and the first step of
the sequence. The change is measured in nats on every sequence. If the 95 % interval of the mean change lies
wholly beyond a factor of 10, the gradient is *vanishing* or *exploding*. If it lies wholly within, the
gradient is *balanced*. Anything else, including a single step, is *undecided*. A gradient that becomes
exactly zero (−inf) is vanishing; if this happens in some sequences only, the verdict says in how many. (ReLU
units at exactly 0, as at the start in a network without biases, have this effect.) If the gradient in between
is larger than at both ends by more than a factor of 10, it shows *transient growth*. Non-normal Jacobians can
cause it even if all their eigenvalues lie inside the unit circle.

The horizon is the lag at which the measured gradient has decayed to 1 %. It is the median over sequences, and
infinite if the sequences are too short to show it.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import stdtrit

from jaxrnn import checks
from jaxrnn.analysis._fixed_points import candidates_from, fixed_points
from jaxrnn.analysis._gradient_flow import GradientFlow, flow_along
from jaxrnn.analysis._input_sensitivity import InputSensitivity, input_sensitivity_of
from jaxrnn.analysis._jacobians import input_jacobians, jacobians
from jaxrnn.analysis._lag_contributions import (
    LagContributions,
    ParameterGradient,
    contributions_along,
    has_parameters,
)
from jaxrnn.analysis._lyapunov import lyapunov
from jaxrnn.analysis._propagator import Propagator, propagator_of
from jaxrnn.analysis._spectrum import Spectrum, spectrum_of
from jaxrnn.analysis.bounds import TrajectoryBound, trajectory_bound_of
from jaxrnn.analysis.certificates import Certificates, certify
from jaxrnn.analysis.exponents import Lyapunov, PrecisionWarning
from jaxrnn.analysis.stationary_points import FixedPoints
from jaxrnn.analysis.trajectory import Trajectory, trace
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import carry_of, flat_state, step_of
from jaxrnn.typing import Carry, Loss, Step, StepLike, at_least_float32

_FADED = math.log(100.0)  # decay to 1 %, which defines the horizon
_NOTICEABLE = math.log(10.0)  # the factor of 10 of the verdict
_EXPONENTS = 8  # leading Lyapunov exponents to measure
_CANDIDATES = 128  # starts of the search for fixed points
_LONGEST_LAG = 200  # of the parameter gradient by lag


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judgement of how a gradient changes over a lag.

    Attributes:
      word: vanishing, exploding, balanced, transient growth or undecided.
      change: mean change of the gradient's norm over the lag, nats; negative means vanishing.
      margin: half the width of the 95 % interval of the mean, nats; NaN for a single value.
      count: number of values averaged, one a sequence or network.
      lag: the lag over which the change is measured, in steps.
      horizon: lag at which the gradient has decayed to 1 %, in steps; infinite if it exceeds `lag`.
      peak: the gradient's largest log norm minus that at the last step, nats, mean over all sequences.
      lost: number of sequences or networks in which the gradient becomes exactly zero.
    """

    word: str
    change: float
    margin: float
    count: int
    lag: int
    horizon: float
    peak: float
    lost: int = 0

    @property
    def sentence(self) -> str:
        """The verdict in words, with its numbers."""
        if not self.lag:
            return f"{self.word}: a single step has no way back"
        grown = f", after growing by 10^({self.peak / math.log(10):+.1f})"
        path = grown if self.word == "transient growth" else ""
        return (
            f"{self.word}: over {self.lag} steps the gradient's norm changes {self._factor}{path}"
        )

    @property
    def _factor(self) -> str:
        if self.lost == self.count:
            return "to zero"
        if self.lost:
            return f"to zero in {self.lost} of {self.count}"
        change, margin = self.change / math.log(10.0), self.margin / math.log(10.0)
        error = "" if math.isnan(margin) else f" ± {margin:.1f}"
        return f"by 10^({change:+.1f}{error})"

    @property
    def horizon_text(self) -> str:
        """The horizon in steps, or a lower bound if it exceeds the steps measured."""
        return f"{self.horizon:.0f}" if math.isfinite(self.horizon) else f"> {self.lag}"


@checked
def judge(changes: Any, log_transported: Any) -> Verdict:
    """Return the verdict on measured changes of a gradient's norm.

    Args:
      changes: independent changes over the whole lag, nats [N]: one a sequence or a network.
      log_transported: log norm by step [T, ...], nats, from which the horizon and the peak are read; NaN
        where there is no gradient.

    Raises:
      InputError: no changes, or a NaN among them. −∞ stands for a gradient that becomes exactly zero.
    """
    changes = np.asarray(changes, np.float64).reshape(-1)
    if not len(changes) or np.isnan(changes).any():
        got = f"{int(np.isnan(changes).sum())} NaN of {len(changes)}"
        expected = "one or more numbers of nats, −inf for a gradient that is lost"
        checks.refuse("changes", got, expected)
    mean, margin = float(np.mean(changes)), math.nan
    if len(changes) > 1 and np.isfinite(changes).all():
        error = float(np.std(changes, ddof=1)) / math.sqrt(len(changes))
        margin = float(stdtrit(len(changes) - 1, 0.975)) * error
    slack = 0.0 if math.isnan(margin) else margin
    low, high = mean - slack, mean + slack
    if not np.isfinite(changes).all():  # exactly zero in some: vanishing only if small in all
        word = "vanishing" if (changes < -_NOTICEABLE).all() else "undecided"
    elif high < -_NOTICEABLE:
        word = "vanishing"
    elif low > _NOTICEABLE:
        word = "exploding"
    elif max(abs(low), abs(high)) <= _NOTICEABLE:
        word = "balanced"
    else:
        word = "undecided"
    log_transported = np.asarray(log_transported, np.float64)
    peak, certain = _peak(log_transported)
    if certain and word != "exploding" and peak - max(mean, 0.0) > _NOTICEABLE:
        word = "transient growth"
    lag, horizon = _lag_and_horizon(log_transported)
    word = word if lag else "undecided"
    lost = int((changes == -np.inf).sum())
    return Verdict(word, mean, margin, len(changes), lag, horizon, peak, lost)


def _peak(log_transported: Any) -> tuple[float, bool]:
    """Return the mean height of the gradients' peaks, and whether its interval lies beyond a factor of 10."""
    columns = log_transported.reshape(len(log_transported), -1)
    heights = np.max(np.where(np.isnan(columns), -np.inf, columns), axis=0)
    mean = float(np.mean(heights))
    if len(heights) == 1:
        return mean, mean > _NOTICEABLE
    error = float(np.std(heights, ddof=1)) / math.sqrt(len(heights))
    return mean, mean - float(stdtrit(len(heights) - 1, 0.975)) * error > _NOTICEABLE


def _lag_and_horizon(log_transported: Any) -> tuple[int, float]:
    backwards = log_transported.reshape(len(log_transported), -1)[::-1]
    waiting = np.isnan(backwards).sum(axis=0)  # steps after the last one with a gradient
    faded = backwards <= -_FADED
    first = np.where(faded.any(axis=0), faded.argmax(axis=0) - waiting, np.inf)
    return int(len(backwards) - 1 - waiting.min()), float(np.median(first))


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All measurements on one cell.

    Attributes:
      spectrum: eigenvalues and singular values of the step Jacobians.
      propagator: singular values of the BPTT product by lag.
      inputs: singular values of the last state's derivative with respect to the inputs, by lag; None if the
        inputs are absent or not floating-point.
      flow: norms of the loss's gradient by time step.
      contributions: the parameter gradient by lag; None if the step exposes no parameters, or if their
        gradient is zero or beyond the range of a float.
      exponents: the leading Lyapunov exponents along the sequences.
      bound: bounds on the gradient from the norms of the step Jacobians.
      fixed_points: fixed points under the mean input; None if inputs are not floating-point.
      certificates: by how much each identity is violated.
    """

    spectrum: Spectrum
    propagator: Propagator
    inputs: InputSensitivity | None
    flow: GradientFlow
    contributions: LagContributions | None
    exponents: Lyapunov
    bound: TrajectoryBound
    fixed_points: FixedPoints | None
    certificates: Certificates

    @property
    def verdict(self) -> Verdict:
        """The verdict on the gradient at the first step."""
        return judge(self.flow.log_transported[0], self.flow.log_transported)

    @property
    def doubts(self) -> list[str]:
        """Descriptions of the certificates that are off by more than rounding; empty if there are none."""
        most = _rounding(self.spectrum.singular_values.dtype)
        named = dataclasses.asdict(self.certificates).items()
        return [
            f"the certificate {name} is off by {difference:.0e}"
            for name, difference in named
            if difference > most
        ]

    @property
    def text(self) -> str:
        """A short summary of the diagnosis, which begins with the failed certificates, if any."""
        verdict = self.verdict
        sample = _sample(verdict.count, is_interval=not verdict.lost and verdict.lag > 0)
        doubt = [("", f"do not trust this: {', '.join(self.doubts)}")] if self.doubts else []
        lines = [*doubt, ("", f"{verdict.sentence} ({sample})"), *self._account()]
        return "\n".join(f"{name:20}{text}" if name else text for name, text in lines)

    def _account(self) -> Iterator[tuple[str, str]]:
        radius, norm = (np.median(x) for x in (self.spectrum.spectral_radius, self.spectrum.norm))
        fit, product = self.flow.fit, self.propagator.rate
        yield "gradient's rate", f"{_measured(fit.value, fit.stderr)} nats a step back"
        yield "horizon", f"{self.verdict.horizon_text} steps to fade to 1 %"
        if self.contributions is not None:
            yield "learnt from", _lags_text(self.contributions)
        yield "product's rate", f"{_measured(product.value, product.stderr)} nats a step of lag"
        largest, error = (float(x[0]) for x in self.exponents.pooled)
        unit = self.exponents.unit
        yield "largest exponent", f"{_measured(largest, error)} nats a {unit}, along the sequences"
        yield (
            "bound",
            f"{self.bound.word}: at most {np.mean(self.bound.rate_bound):+.4f} nats a step",
        )
        yield "spectral radius", f"{radius:.4f}, median over steps and sequences"
        yield "norm of a step", f"{norm:.4f}, median"
        if self.fixed_points is not None:
            yield "at the mean input", self.fixed_points.text.splitlines()[1]
        yield "certificates", str(self.certificates)


def _lags_text(contributions: LagContributions) -> str:
    within = np.asarray(contributions.cumulative) >= 0.9
    settled = len(within) - int(np.argmin(within[::-1])) if not within.all() else 0
    if settled == len(within):
        return f"less than 90 % of the parameter gradient comes from lags up to {len(within) - 1}"
    return f"90 % of the parameter gradient comes from lags up to {settled}"


def _sample(count: int, *, is_interval: bool) -> str:
    if count == 1:
        return "one sequence"
    return f"{'95 % interval of ' if is_interval else ''}{count} sequences"


def _measured(value: Any, stderr: Any) -> str:
    """Format a value, with its standard error if that is known."""
    error = "" if math.isnan(float(stderr)) else f" ± {float(stderr):.4f} (standard error)"
    return f"{float(value):+.4f}{error}"


def at_once(name: str, compute: Callable[[], Any]) -> Any:
    """Compute a part of a diagnosis: the default of `diagnose`'s `part`, which neither stores nor reports."""
    del name
    return compute()


@checked
def diagnose(
    cell: StepLike,
    xs: Any,
    loss: Loss | None = None,
    *,
    carry: Carry | None = None,
    length: int | None = None,
    lags: Any = None,
    part: Callable[[str, Callable[[], Any]], Any] = at_once,
) -> Diagnosis:
    """Run all analyses of a cell on given sequences, and certify them.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar or one value per sequence. By default it is the projection
        of the last output on a fixed random direction, or of all outputs if the last one does not depend on
        earlier states.
      carry: initial carry; by default the cell's own.
      length: number of steps, needed only when `xs` is None.
      lags: lags of the propagator, in steps; by default about 20 from 1 to T.
      part: ``(name, compute) -> compute()``, called for each of `PARTS`. It may report progress, store the
        results, or return a stored result instead of computing it.

    Raises:
      InputError: inputs that are not finite, parameters that are not floating-point, arguments that do not
        fit together, or a step in which one sequence affects another.

    Example:
      >>> from flax import nnx
      >>> import jax, jaxrnn
      >>> xs = jax.random.normal(jax.random.key(0), (100, 8, 3))
      >>> cell = jaxrnn.make_cell("elman-sigmoid", 3, 16, rngs=nnx.Rngs(0))
      >>> jaxrnn.analysis.diagnose(cell, xs).verdict.word
      'vanishing'
    """
    path = trace(cell, xs, carry=carry, length=length)
    cell = step_of(cell)
    if 0 in path.batch:
        checks.refuse("xs", f"batch axes {list(path.batch)}", "at least one sequence")
    loss = loss or default_loss(cell, path)
    start = jax.tree.map(lambda leaf: leaf[0], path.carries)
    steps = jacobians(cell, path)
    flow = part("gradient flow", lambda: flow_along(cell, path, loss))
    product = part("BPTT product", lambda: propagator_of(steps, lags))
    inputs, contributions, points = None, None, None
    if path.xs is not None and _floats(path.xs):
        inputs = part(
            "input sensitivity", lambda: input_sensitivity_of(steps, input_jacobians(cell, path))
        )
    if has_parameters(cell):
        contributions = part("gradient by lag", lambda: _contributions(cell, path, loss))
    exponents = part("Lyapunov exponents", lambda: _exponents(cell, path, start))
    if _floats((path.xs, start)):
        points = part("fixed points", lambda: _fixed_points(cell, path))
    spectra = part("spectra", lambda: spectrum_of(steps))
    bound = part("bounds", lambda: trajectory_bound_of(spectra.singular_values))
    certificates = certify(
        cell,
        path,
        steps,
        spectra,
        product,
        flow,
        loss,
        contributions=contributions,
        exponents=exponents,
    )
    if certificates.jacobian > _rounding(steps.dtype):
        got = f"Jacobians that are off by {certificates.jacobian:.0e}"
        checks.refuse("cell", got, "a step in which no sequence acts on another")
    return Diagnosis(
        spectra, product, inputs, flow, contributions, exponents, bound, points, certificates
    )


PARTS = (
    "gradient flow",
    "BPTT product",
    "input sensitivity",
    "gradient by lag",
    "Lyapunov exponents",
    "fixed points",
    "spectra",
    "bounds",
)
"""Names of the parts, in order; the input and parameter parts are skipped for cells without them."""


def _rounding(dtype: Any) -> float:
    """Return the largest error allowed in a certificate: half the digits, more than rounding takes here."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def _floats(tree: Any) -> bool:
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


def _contributions(cell: nnx.Module, path: Trajectory, loss: Loss) -> LagContributions | None:
    """Decompose the parameter gradient by lag; return None if it is zero or overflows."""
    gradient = ParameterGradient.of(cell, path, loss)
    if not gradient.can_be_taken_apart:
        return None
    return contributions_along(cell, path, gradient, min(path.length - 1, _LONGEST_LAG))


def _exponents(cell: Step, path: Trajectory, start: Carry) -> Lyapunov:
    """Return the leading exponents, or all of them if the state is small."""
    k = min(path.states.shape[-1], _EXPONENTS)
    warmup = path.length // 5
    with warnings.catch_warnings():
        # Singular directions need no warning here: the record stores them as −inf.
        warnings.simplefilter("ignore", PrecisionWarning)
        cell, xs, start = _at_least_single((cell, path.xs, start))
        return lyapunov(cell, xs, carry=start, length=path.length, k=k, warmup=warmup)


def _fixed_points(cell: Step, path: Trajectory) -> FixedPoints:
    """Search for fixed points under the mean input, starting from visited states."""
    axes = tuple(range(1 + len(path.batch)))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=axes), path.xs)
    candidates = candidates_from(path, _CANDIDATES, key=jax.random.key(0), noise=0.1)
    return fixed_points(*_at_least_single((cell, mean, candidates)))


def _at_least_single(tree: Any) -> Any:
    """Return a tree with half-precision arrays raised to float32, which a search needs."""

    def raised(leaf):
        half = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(at_least_float32(leaf.dtype)) if half else leaf

    return jax.tree.map(raised, tree)


def default_loss(cell: Step, path: Trajectory) -> Loss:
    """Return the projection of the last output, or of all outputs if the last does not depend on the past."""
    before, x = (jax.tree.map(lambda leaf: leaf[-1], tree) for tree in (path.before, path.xs))

    step = for_batch(cell, before, x, path.batch)

    def last_only(state: Any) -> Any:
        return _projected(step(carry_of(state, before), x)[1])

    if bool(jnp.any(jax.grad(last_only)(flat_state(before, len(path.batch))) != 0)):
        return lambda outputs: _projected(outputs[-1])
    return _projected


def _projected(outputs: Any) -> Any:
    """Return the sum of outputs [..., Y] projected on a fixed random direction."""
    direction = jax.random.normal(jax.random.key(0), outputs.shape[-1:], outputs.dtype)
    return jnp.sum(outputs @ direction)
