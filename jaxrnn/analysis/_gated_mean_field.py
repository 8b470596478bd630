"""Mean-field theory of a random gated cell: variance of its state and rate of its gradient as N → ∞.

The Elman theory (`jaxrnn.analysis.mean_field`) reduces to two numbers, because a unit's next state depends on
its pre-activation alone. A gated unit keeps its own state (c' = f c + i g), which is not Gaussian; the pull
of the recurrent weights is. With independent W_k ~ N(0, g_k²/N) for each gate k, the units are independent of
each other. They receive Gaussian processes whose covariance over time is the population's own,

    E pull_k(t) pull_k(s) = g_k² E h(t) h(s) ,        E δpull_k(t) δpull_k(s) = g_k² E δh(t) δh(s) .

`update` is free of weights and works unit by unit, so the cell's own `update` advances a population of
independent units, and its derivative advances a small difference δ. Each pull is drawn conditional on the
pulls of the last steps. E h² is the variance, and the growth of E |δ|² is the rate of the gradient. This
holds for every split cell whose recurrent weights act on its readout, which includes all split cells of this
package.

With `memory` = 0 each pull is drawn independently, as if the weights were redrawn at each step. That is the
theory of Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019. In it one step of this package's GRU,
with p the candidate's pull, has

    χ = E z² + g_z² E ((h − n) z (1 − z))² + g_n² E ((1 − z) n' r)² + g_r² E ((1 − z) n' p r (1 − r))² .

It is within some percent of the variance if there is input, but misses the rate: the part of δ that a unit
keeps is pulled by the same weights again. GRU, gains 1, drive of variance ½ at each gate: −0.532 nats a step
without memory, −0.377 with it, and −0.376 ± 0.001 in networks of 500 units. For the Elman cell nothing is
lost without memory.

Krishnamurthy, Can & Schwab 2022 give the theory with tied weights in continuous time.

Weakness: this is a Monte Carlo solution, with a standard error. Correlations over more than `memory` steps
are cut off. This is harmless with chaos, input or open gates, but not with gates that hold for longer.
Autonomous networks move slowly and approach the theory only for large N: a GRU of gain 3 has 0.061 ± 0.001
nats a step here, 0.047 ± 0.005 with 500 units, 0.058 ± 0.001 with 1500; an LSTM of gain 4 has 0.143 ± 0.002,
and 0.127 ± 0.001 with 500. The populations are computed in float64, on a TPU in float32, which blurs such
slow motion.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.contract import obstacle
from jaxrnn.steps import compiled
from jaxrnn.typing import ArrayLike, Key, SplitCell, StepLike

CONVERGED = "converged"
DRIFTS = "still drifting"

_POPULATIONS = 8
_ALLOWED = 5.0  # standard errors by which the halves may differ; Student's t of 7 degrees: 1 in 600


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GatedMeanField:
    """Order parameters of a random gated cell.

    Attributes:
      mean_square: E h², of the readout.
      mean_square_stderr: its standard error.
      lyapunov: growth of a small difference, and of a gradient, nats a step.
      lyapunov_stderr: its standard error.
      status: "converged", or "still drifting" if more steps are needed.
    """

    mean_square: float
    mean_square_stderr: float
    lyapunov: float
    lyapunov_stderr: float
    status: str = dataclasses.field(metadata={"static": True})


@checked
def gated_mean_field(
    cell: StepLike,
    gains: ArrayLike,
    *,
    drive_mean: ArrayLike,
    drive_variance: ArrayLike,
    key: Key,
    memory: int = 32,
    steps: int = 400,
    units: int = 1000,
) -> GatedMeanField:
    """Solve the theory for a split cell.

    Args:
      cell: any instance of the cell, used for its `update` and `readout`; its weights and size do not matter.
      gains: g_k of each gate [G], in the cell's order; recurrent weights have the variance g_k²/N.
      drive_mean: μ_k, the biases [G].
      drive_variance: σ_k², of the input's part of each gate, drawn anew at every step [G].
      key: random key.
      memory: number of past steps on whose pulls the next pull is conditioned; 0 redraws weights at each
        step.
      steps: number of steps, of which the second half is averaged.
      units: size of each of the 8 populations, whose spread gives the error; the bias is of order 1/units.

    Raises:
      InputError: a step that is not a split cell, settings that do not have one entry a gate or are not
        finite, negative gains or variances, or fewer than 4 steps.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from flax import nnx
      >>> from jaxrnn.analysis._gated_mean_field import gated_mean_field
      >>> cell = jaxrnn.LSTMCell(1, 1, rngs=nnx.Rngs(0))
      >>> off, bias = jnp.zeros(4), jnp.array([0.0, 1.0, 0.0, 0.0])
      >>> theory = gated_mean_field(
      ...     cell, off, drive_mean=bias, drive_variance=off, key=jax.random.key(0), units=10
      ... )
      >>> round(theory.lyapunov, 4)  # ln σ(1)
      -0.3133
    """
    if not isinstance(cell, SplitCell) or not hasattr(cell, "initialize_carry"):
        checks.refuse(
            "cell", checks.describe(cell), "a split cell, as ElmanCell, GRUCell, LSTMCell"
        )
    _check_split(cell)
    checks.count("units", units)
    checks.count("steps", steps)
    if memory != 0:
        checks.count("memory", memory)
    if steps < 4:
        checks.refuse("steps", steps, "at least 4")
    gates = _gate_count(cell)
    settings = {"gains": gains, "drive_mean": drive_mean, "drive_variance": drive_variance}
    for argument, value in settings.items():
        checks.floating(argument, value)
        checks.shape(argument, value, (gates,), "[G], one entry a gate")
        checks.finite(argument, value)
        if argument != "drive_mean" and (np.asarray(value) < 0).any():
            checks.refuse(argument, np.asarray(value).tolist(), "values of 0 or above")
    # Directions that a slow state has just left are small, and float32 would take rounding for new ones.
    wide = jax.default_backend() != "tpu"
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        numbers = [jnp.asarray(np.asarray(value), dtype) for value in settings.values()]
        squares, growths = _populate(cell, key, *numbers, memory=memory, steps=steps, units=units)
    return _average(np.asarray(squares, np.float64), np.asarray(growths, np.float64))


def _check_split(cell: Any) -> None:
    """Refuse a step that computes more than its parts, or whose parts break their contracts."""
    if hasattr(cell, "in_features"):
        x = jax.ShapeDtypeStruct((cell.in_features,), cell.dtype)
        why = obstacle(cell, cell.initialize_carry(x.shape), x)
        if why:
            got = f"a {type(cell).__name__}, which {why}"
            checks.refuse("cell", got, "a split cell, as ElmanCell, GRUCell, LSTMCell")


def _gate_count(cell: Any) -> int:
    carry = jax.eval_shape(lambda: cell.initialize_carry((1,)))
    pull = jax.eval_shape(cell.mix, carry)
    return pull.shape[-1] // jax.tree.leaves(carry)[0].shape[-1]


@compiled
def _populate(
    cell: Any,
    key: Key,
    gains: Float[Array, "G"],
    drive_mean: Float[Array, "G"],
    drive_variance: Float[Array, "G"],
    *,
    memory: int,
    steps: int,
    units: int,
) -> tuple[Any, Any]:
    """Return E h² and the growth of ½ ln E |δ|² of every population and step, [R, T] each."""
    gain, mean = gains[:, None], drive_mean[:, None]
    deviation = jnp.sqrt(drive_variance)[:, None]
    gates, dtype = len(gains), gains.dtype

    def step(state: Any, key: Key) -> tuple[Any, Any]:
        carry, tangent, windows = state
        normal = jax.random.normal(key, (3, gates, units), dtype)
        drive = (mean + deviation * normal[0]).reshape(-1)
        moved = jax.jvp(cell.readout, (carry,), (tangent,))
        pulls, windows = zip(*map(_pulled, windows, moved, normal[1:]), strict=True)
        pull, pushed = ((gain * pull).reshape(-1) for pull in pulls)
        update = lambda carry, pull: cell.update(carry, drive, pull)  # noqa: E731
        carry, tangent = jax.jvp(update, (carry, pull), (tangent, pushed))
        size = jnp.sqrt(sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(tangent)))
        tangent = jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1), tangent)
        return (carry, tangent, windows), (_rms(cell.readout(carry)) ** 2, jnp.log(size))

    def population(key: Key) -> tuple[Any, Any]:
        first, second, rest = jax.random.split(key, 3)
        start = lambda key: jax.random.normal(key, (units,), dtype)  # noqa: E731
        like = cell.initialize_carry((1,))
        carry, tangent = (jax.tree.map(lambda _, k=k: start(k), like) for k in (first, second))
        seen = jnp.zeros((memory, units), dtype)
        window = seen, jnp.zeros((memory, gates, units), dtype)
        state = (carry, tangent, (window, window))
        return jax.lax.scan(step, state, jax.random.split(rest, steps))[1]

    return jax.lax.map(population, jax.random.split(key, _POPULATIONS))


def _pulled(
    window: tuple[Any, Any], vector: Float[Array, "N"], fresh: Float[Array, "G N"]
) -> tuple[Float[Array, "G N"], tuple[Any, Any]]:
    """Return the product of W of gain 1 and a vector, conditional on its products with those in the window.

    The window holds past vectors and their products with W. Its vectors are scaled to root mean square 1,
    because they may have grown or decayed.
    """
    seen, made = window
    size = _rms(vector)
    vector = vector / jnp.where(size > 0, size, 1)
    if len(seen) == 0:
        return size * fresh, window
    resolved = 100 * float(jnp.finfo(vector.dtype).eps)  # of the largest eigenvalue
    overlaps = seen @ vector / len(vector)
    gram = seen @ seen.T / len(vector)
    weights = jnp.linalg.pinv(gram, rtol=resolved, hermitian=True) @ overlaps
    unseen = jnp.sqrt(jnp.maximum(1 - overlaps @ weights, 0))
    pull = jnp.tensordot(weights, made, axes=1) + unseen * fresh
    later = lambda past, now: jnp.concatenate([past[1:], now[None]])  # noqa: E731
    return size * pull, (later(seen, vector), later(made, pull))


def _rms(vector: Float[Array, "N"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(vector**2))


def _average(squares: Any, growths: Any) -> GatedMeanField:
    """Average the second half of each population's run [R, T] and tell whether it has settled."""
    (square, square_error, square_settled), (growth, growth_error, growth_settled) = (
        _mean(series[:, series.shape[1] // 2 :]) for series in (squares, growths)
    )
    settled = square_settled and growth_settled
    return GatedMeanField(
        square, square_error, growth, growth_error, status=CONVERGED if settled else DRIFTS
    )


def _mean(series: Any) -> tuple[float, float, bool]:
    """Return the mean of series [R, T], its standard error, and whether their two halves agree."""
    middle = series.shape[1] // 2
    drift, drift_error = _over_populations(series[:, :middle] - series[:, -middle:])
    mean, error = _over_populations(series)
    rounding = 1e-5 * abs(mean)
    return mean, error, abs(drift) <= _ALLOWED * drift_error + rounding


def _over_populations(series: Any) -> tuple[float, float]:
    means = series.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1)) / math.sqrt(len(means))
