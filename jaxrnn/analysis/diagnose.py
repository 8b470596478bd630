"""A diagnosis: all the analyses of one cell on one set of sequences, and what they say in a sentence.

The verdict is about what has become of the loss's gradient between the last step that has one and the first
step of the sequence: its change in nats, measured on every sequence. If the 95 % interval of the mean change
lies wholly beyond a factor of 10 the gradient is *vanishing* or *exploding*; if it lies wholly within, it is
*balanced*; anything else is *undecided*, and says so. A gradient that is lost for good, −inf, is vanishing.

The horizon is the lag at which the gradient has faded to 1 %, read off the measurement: the median over
sequences, and infinite where they are too short to show it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from jaxrnn import checks
from jaxrnn.analysis.certificates import Certificates, certify
from jaxrnn.analysis.gradient_flow import GradientFlow, flow_along
from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.propagator import Propagator, propagator_of
from jaxrnn.analysis.spectrum import Spectrum, spectrum_of
from jaxrnn.analysis.trajectory import trace
from jaxrnn.typing import Carry, Loss, Step

_FADED = math.log(100.0)
_NOTICEABLE = math.log(10.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What has become of a gradient.

    Attributes:
      word: vanishing, exploding, balanced or undecided.
      change: mean change of its norm over the lag, nats; negative means vanishing.
      margin: half the width of the 95 % interval of the mean, nats; NaN for a single value.
      count: number of values, sequences or networks, that the mean is over.
      lag: the lag over which it changed, in steps.
      horizon: lag at which it has faded to 1 %, in steps; infinite where that is beyond `lag`.
    """

    word: str
    change: float
    margin: float
    count: int
    lag: int
    horizon: float

    @property
    def sentence(self) -> str:
        """The verdict in words, with its numbers."""
        return f"{self.word}: over {self.lag} steps the gradient's norm changes {self._factor}"

    @property
    def _factor(self) -> str:
        if not math.isfinite(self.change):
            return "to zero"
        change, margin = self.change / math.log(10.0), self.margin / math.log(10.0)
        error = "" if math.isnan(margin) else f" ± {margin:.1f}"
        return f"by 10^({change:+.1f}{error})"

    @property
    def horizon_text(self) -> str:
        """The horizon in steps, or that it is beyond the steps measured."""
        return f"{self.horizon:.0f}" if math.isfinite(self.horizon) else f"> {self.lag}"


def judge(changes: Any, log_transported: Any) -> Verdict:
    """Return the verdict on measured changes of a gradient.

    Args:
      changes: changes over the whole lag, nats, independent of each other [N]: one a sequence or a network.
      log_transported: by step, [T, ...], nats, NaN where there is no gradient: what the horizon is read from.
    """
    changes = np.asarray(changes, np.float64).reshape(-1)
    mean, margin = float(np.mean(changes)), math.nan
    if len(changes) > 1 and np.isfinite(changes).all():
        error = float(np.std(changes, ddof=1)) / math.sqrt(len(changes))
        margin = float(stdtrit(len(changes) - 1, 0.975)) * error
    slack = 0.0 if math.isnan(margin) else margin
    low, high = mean - slack, mean + slack
    if not np.isfinite(changes).all():  # lost for good in some; is it in all as good as lost?
        word = "vanishing" if (changes < -_NOTICEABLE).all() else "undecided"
    elif high < -_NOTICEABLE:
        word = "vanishing"
    elif low > _NOTICEABLE:
        word = "exploding"
    elif max(abs(low), abs(high)) <= _NOTICEABLE:
        word = "balanced"
    else:
        word = "undecided"
    lag, horizon = _lag_and_horizon(np.asarray(log_transported, np.float64))
    return Verdict(word, mean, margin, len(changes), lag, horizon)


def _lag_and_horizon(log_transported: Any) -> tuple[int, float]:
    backwards = log_transported.reshape(len(log_transported), -1)[::-1]
    waiting = np.isnan(backwards).sum(axis=0)  # steps after the last one with a gradient
    faded = backwards <= -_FADED
    first = np.where(faded.any(axis=0), faded.argmax(axis=0) - waiting, np.inf)
    return int(len(backwards) - 1 - waiting.min()), float(np.median(first))


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything measured on one cell.

    Attributes:
      spectrum: eigenvalues and singular values of the step Jacobians.
      propagator: singular values of the BPTT product by lag.
      flow: norms of the loss's gradient by time step.
      certificates: how far three identities are from holding exactly.
    """

    spectrum: Spectrum
    propagator: Propagator
    flow: GradientFlow
    certificates: Certificates

    @property
    def verdict(self) -> Verdict:
        """What has become of the gradient at the first step."""
        return judge(self.flow.log_transported[0], self.flow.log_transported)

    @property
    def text(self) -> str:
        """A short account of the diagnosis."""
        radius, norm = (np.median(x) for x in (self.spectrum.spectral_radius, self.spectrum.norm))
        fit, product, verdict = self.flow.fit, self.propagator.rate, self.verdict
        return "\n".join(
            [
                f"{verdict.sentence} ({_sample(verdict.count)})",
                f"gradient's rate     {_measured(fit.value, fit.stderr)} nats a step back",
                f"horizon             {verdict.horizon_text} steps to fade to 1 %",
                f"product's rate      {_measured(product.value, product.stderr)} nats a step of lag",
                f"spectral radius     {radius:.4f}, median over steps and sequences",
                f"norm of a step      {norm:.4f}, median",
                f"certificates        {self.certificates}",
            ]
        )


def _sample(count: int) -> str:
    return "one sequence" if count == 1 else f"95 % interval of {count} sequences"


def _measured(value: Any, stderr: Any) -> str:
    """Write a value with its standard error, where there is one."""
    error = "" if math.isnan(float(stderr)) else f" ± {float(stderr):.4f} (standard error)"
    return f"{float(value):+.4f}{error}"


def diagnose(
    cell: Step,
    xs: Any,
    loss: Loss | None = None,
    *,
    carry: Carry | None = None,
    length: int | None = None,
    lags: Any = None,
) -> Diagnosis:
    """Measure spectra, BPTT product and gradient flow of a cell on given sequences, and certify them.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar or one value per sequence; by default the projection of
        the last output on a fixed random direction.
      carry: initial carry; by default the cell's own.
      length: number of steps, needed only when `xs` is None.
      lags: lags of the propagator, in steps; by default about 20 from 1 to T.

    Raises:
      InputError: inputs that are not finite, arguments that do not fit, or a split cell that breaks its
        promise to work unit by unit.

    Example:
      >>> from flax import nnx
      >>> import jax, jaxrnn
      >>> xs = jax.random.normal(jax.random.key(0), (100, 8, 3))
      >>> cell = jaxrnn.make_cell("elman-sigmoid", 3, 16, rngs=nnx.Rngs(0))
      >>> jaxrnn.analysis.diagnose(cell, xs).verdict.word
      'vanishing'
    """
    loss = loss or _random_projection
    trajectory = trace(cell, xs, carry=carry, length=length)
    steps = jacobians(cell, trajectory)
    product, flow = propagator_of(steps, lags), flow_along(cell, trajectory, loss)
    certificates = certify(cell, trajectory, steps, product, flow, loss)
    if certificates.jacobian > float(jnp.finfo(steps.dtype).eps) ** 0.5:
        got = f"Jacobians that are off by {certificates.jacobian:.0e}"
        checks.refuse("cell", got, "an update that works unit by unit, as a SplitCell promises")
    return Diagnosis(spectrum_of(steps), product, flow, certificates)


def _random_projection(outputs: Any) -> Any:
    last = outputs[-1]
    direction = jax.random.normal(jax.random.key(0), last.shape[-1:], last.dtype)
    return jnp.sum(last @ direction)
