"""A diagnosis: all the analyses of one cell on one set of sequences, and what they say in a sentence.

The verdict is about the change that the gradient has suffered by the longest lag measured, rate × lag, with
its 95 % interval. More than a factor of 10 either way, beyond doubt, is *vanishing* or *exploding*; within a
factor of 10, beyond doubt, is *balanced*; anything else is *undecided*, and says so.

The horizon is the lag at which the gradient has faded to 1 %: ln 100 / −rate. It is an extrapolation of one
fitted rate, not a measurement of memory.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from jaxrnn.analysis.gradient_flow import GradientFlow, flow_along
from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.propagator import Propagator, propagator_of
from jaxrnn.analysis.spectrum import Spectrum, spectrum_of
from jaxrnn.analysis.trajectory import trace
from jaxrnn.typing import Carry, Loss, Step

_FADED = 100.0
_NOTICEABLE = math.log(10.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rate means for the gradient over a number of steps.

    Attributes:
      word: vanishing, exploding, balanced or undecided.
      rate: nats a step of lag; negative means vanishing.
      margin: half the width of its 95 % interval.
      lag: the lag at which it is judged, in steps.
    """

    word: str
    rate: float
    margin: float
    lag: int

    @property
    def horizon(self) -> float:
        """Lag at which the gradient has faded to 1 %, in steps; infinite where it does not fade."""
        return math.log(_FADED) / -self.rate if self.rate < 0 else math.inf

    @property
    def sentence(self) -> str:
        """The verdict in words, with its numbers."""
        change, error = (x * self.lag / math.log(10.0) for x in (self.rate, self.margin))
        factor = f"10^({change:+.1f} ± {error:.1f})"
        return f"{self.word}: the gradient's norm changes by {factor} over {self.lag} steps"


def judge(rate: float, stderr: float, dof: float, lag: int) -> Verdict:
    """Return the verdict on a rate (nats a step) at a lag (steps).

    Args:
      rate: growth of the gradient's norm per step of lag.
      stderr: standard error of the rate.
      dof: degrees of freedom of that error (Student's t).
      lag: the lag over which the change is judged.
    """
    margin = float(stdtrit(dof, 0.975)) * stderr if dof > 0 else math.nan
    low, high = lag * (rate - margin), lag * (rate + margin)
    if high < -_NOTICEABLE:
        word = "vanishing"
    elif low > _NOTICEABLE:
        word = "exploding"
    elif max(abs(low), abs(high)) <= _NOTICEABLE:
        word = "balanced"
    else:  # the interval straddles a bound, or there is none
        word = "undecided"
    return Verdict(word=word, rate=rate, margin=margin, lag=lag)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything measured on one cell.

    Attributes:
      spectrum: eigenvalues and singular values of the step Jacobians.
      propagator: singular values of the BPTT product by lag.
      flow: norms of the loss's gradient by time step.
      length: number of steps T.
    """

    spectrum: Spectrum
    propagator: Propagator
    flow: GradientFlow
    length: int = dataclasses.field(metadata={"static": True})

    @property
    def verdict(self) -> Verdict:
        """What the gradient's rate means over the sequence."""
        fit = self.flow.fit
        return judge(float(fit.value), float(fit.stderr), float(fit.dof), self.length - 1)

    @property
    def text(self) -> str:
        """A short account of the diagnosis."""
        radius = float(np.median(self.spectrum.spectral_radius))
        product = self.propagator.rate
        verdict = self.verdict
        return "\n".join(
            [
                verdict.sentence,
                f"gradient rate       {verdict.rate:+.4f} ± {float(self.flow.rate_stderr):.4f} nats a step",
                f"horizon             {verdict.horizon:.0f} steps to fade to 1 %",
                f"product's rate      {float(product.value):+.4f} ± {float(product.stderr):.4f} nats a step",
                f"spectral radius     {radius:.4f}, median over steps and sequences",
                f"norm of a step      {float(np.median(self.spectrum.norm)):.4f}, median",
            ]
        )


def diagnose(
    cell: Step, xs: Any, loss: Loss | None = None, *, carry: Carry | None = None, lags: Any = None
) -> Diagnosis:
    """Measure spectra, BPTT product and gradient flow of a cell on given sequences.

    Args:
      cell: a cell, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F].
      loss: maps the outputs [T, *B, Y] to a scalar or one value per sequence; by default the projection of
        the last output on a fixed random direction.
      carry: initial carry; by default the cell's own.
      lags: lags of the propagator, in steps; by default about 32 from 1 to T.

    Raises:
      InputError: inputs that are not finite, or arguments that do not fit.

    Example:
      >>> from flax import nnx
      >>> import jax, jaxrnn
      >>> xs = jax.random.normal(jax.random.key(0), (100, 8, 3))
      >>> cell = jaxrnn.make_cell("elman-sigmoid", 3, 16, rngs=nnx.Rngs(0))
      >>> jaxrnn.analysis.diagnose(cell, xs).verdict.word
      'vanishing'
    """
    trajectory = trace(cell, xs, carry=carry)
    steps = jacobians(cell, trajectory)
    return Diagnosis(
        spectrum=spectrum_of(steps),
        propagator=propagator_of(steps, lags),
        flow=flow_along(cell, trajectory, loss or _random_projection),
        length=trajectory.length,
    )


def _random_projection(outputs: Any) -> Any:
    last = outputs[-1]
    direction = jax.random.normal(jax.random.key(0), last.shape[-1:], last.dtype)
    return jnp.sum(last @ direction)
