"""Memory capacity: how well past inputs can be read out linearly from the present state.

The capacity for a target z(t), a function of inputs up to t, is the share of its variance that the best
linear readout of the state explains,

    C[z] = 1 − min_w E (z − w·s − w₀)² / var z        ∈ [0, 1] .

Targets u(t − k) give Jaeger's memory curve MC_k ("Short term memory in echo state networks", 2001); its sum
over all lags k ≥ 0 is the memory capacity. Products of Legendre polynomials of u at several lags give the
information-processing capacity of Dambre, Verstraeten, Schrauwen & Massar 2012. If the input is independent
from step to step, all these targets are orthogonal, and their capacities add up to at most S, the size of the
state. The sum is exactly S for a network with fading memory whose state directions are linearly independent.
In a linear network all of it is in the memory curve, which `linear_memory` computes in closed form (White,
Lee & Sompolinsky 2004).

`jaxrnn.analysis.readout_fit` corrects for the fit to noise, and computes the standard errors.

Weakness: state directions that are tiny but above rounding count in full, though noise would hide them:
capacity is not robustness. If the input is correlated in time, capacities of neighbouring lags overlap and
the sum is not bounded by S. A readout of an LSTM's whole carry (c, h) has access to more than its h.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from numpy.polynomial import legendre
from scipy.special import stdtrit

from jaxrnn import checks
from jaxrnn.analysis.readout_fit import Record, best_readouts, jackknife
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked

_MOST_TARGETS = 20_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Horizon:
    """Lag at which a memory curve falls below a level, with its 95 % interval; in steps, by feature [F].

    Attributes:
      lag: first lag at which the curve is below the level; infinite if it is above at all lags measured.
      low: the same for the curve at the lower ends of its 95 % intervals, by Student's t of the jackknife.
      high: the same at the upper ends.
    """

    lag: Float[np.ndarray, "F"]
    low: Float[np.ndarray, "F"]
    high: Float[np.ndarray, "F"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryCapacity:
    """Jaeger's memory curve.

    Attributes:
      capacities: MC_k, lags 0 … K − 1 of each input feature, [K, F].
      stderr: their standard errors [K, F].
      total: their sum.
      total_stderr: its standard error.
      size: S, which the total does not exceed if inputs are independent.
      rank: number of state directions above rounding.
      samples: number of states in the fit.
      pieces: R, the number of pieces of the jackknife behind the standard errors, which have R − 1 degrees of
        freedom.
    """

    capacities: Float[np.ndarray, "K F"]
    stderr: Float[np.ndarray, "K F"]
    total: float
    total_stderr: float
    size: int
    rank: int
    samples: int
    pieces: int

    @checked
    def horizon(self, level: float = 0.5) -> Horizon:
        """Return the lag at which the curve falls below a level in (0, 1)."""
        if not 0 < level < 1:
            checks.refuse("level", level, "a capacity between 0 and 1")
        margin = stdtrit(self.pieces - 1, 0.975) * self.stderr
        curves = (self.capacities, self.capacities - margin, self.capacities + margin)
        return Horizon(*(_first_below(curve, level) for curve in curves))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProcessingCapacity:
    """Information-processing capacity: how well inputs and their products can be read from the state.

    Attributes:
      degrees: the target n is ∏_k P_{degrees[n, k]}(u(t − k)), [N, K].
      capacities: of each target [N].
      stderr: their standard errors [N].
      by_degree: sum over the targets of total degree 1 … D, [D]; the first is the memory capacity.
      by_degree_stderr: their standard errors [D].
      total: sum over all targets.
      total_stderr: its standard error.
      size: S, which the total does not exceed if inputs are independent.
      rank: number of state directions above rounding.
      samples: number of states in the fit.
    """

    degrees: Int[np.ndarray, "N K"]
    capacities: Float[np.ndarray, "N"]
    stderr: Float[np.ndarray, "N"]
    by_degree: Float[np.ndarray, "D"]
    by_degree_stderr: Float[np.ndarray, "D"]
    total: float
    total_stderr: float
    size: int
    rank: int
    samples: int


@checked
def memory_capacity(trajectory: Trajectory, *, lags: int, washout: int = 0) -> MemoryCapacity:
    """Return how well past inputs can be read out from the state, lag by lag.

    Args:
      trajectory: a path driven by inputs [T, *B, F] that are independent of each other, from `trace`. All
        sequences share one readout.
      lags: K; the lags are 0 … K − 1, and lag 0 is the input that the state has just read.
      washout: number of steps at the beginning to leave out, so that the state forgets its start.

    Raises:
      InputError: no inputs, or a constant feature; values that are not finite; too few steps.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.analysis.memory import memory_capacity
      >>> shift = lambda s, x: (jnp.concatenate([x, s[:-1]]), s)  # a delay line of five units
      >>> xs = jax.random.normal(jax.random.key(0), (1000, 1))
      >>> path = jaxrnn.analysis.trace(shift, xs, carry=jnp.zeros(5))
      >>> round(memory_capacity(path, lags=5, washout=5).total, 6)
      5.0
    """
    checks.count("lags", lags)
    inputs = _checked_inputs(trajectory)
    record = Record.of(trajectory, lags, washout)
    features = inputs.shape[-1]
    targets = np.concatenate([record.delayed(inputs, k) for k in range(lags)], axis=-1)
    fit = best_readouts(record, targets)
    return MemoryCapacity(
        capacities=fit.capacities.reshape(lags, features),
        stderr=jackknife(fit.left_out).reshape(lags, features),
        total=float(fit.capacities.sum()),
        total_stderr=float(jackknife(fit.left_out.sum(axis=1))),
        size=record.states.shape[-1],
        rank=fit.rank,
        samples=fit.samples,
        pieces=len(fit.left_out),
    )


@checked
def processing_capacity(
    trajectory: Trajectory, *, lags: int, degree: int, washout: int = 0
) -> ProcessingCapacity:
    """Return the capacities for all products of Legendre polynomials up to a total degree.

    Args:
      trajectory: a path driven by inputs [T, *B, 1] that are independent and uniform on [−1, 1], from
        `trace`.
      lags: K; the lags are 0 … K − 1.
      degree: D, the largest total degree. There are C(K + D, D) − 1 targets.
      washout: number of steps at the beginning to leave out.

    Raises:
      InputError: as `memory_capacity`; more than one input feature, or inputs outside [−1, 1]; too many
        targets.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.analysis.memory import processing_capacity
      >>> square = lambda s, x: (x**2, s)  # remembers nothing but the square
      >>> xs = jax.random.uniform(jax.random.key(0), (1000, 1), minval=-1, maxval=1)
      >>> path = jaxrnn.analysis.trace(square, xs, carry=jnp.zeros(1))
      >>> found = processing_capacity(path, lags=1, degree=2)
      >>> bool(found.capacities[1] > 0.999), found.degrees[1].tolist()
      (True, [2])
    """
    checks.count("lags", lags)
    checks.count("degree", degree)
    count = math.comb(lags + degree, degree) - 1
    if count > _MOST_TARGETS:
        checks.refuse(
            "lags, degree", f"{lags}, {degree}: {count} targets", f"at most {_MOST_TARGETS} targets"
        )
    inputs = _checked_inputs(trajectory)
    if inputs.shape[-1] != 1:
        checks.refuse("trajectory: its inputs", checks.describe(inputs), "one feature, [T, *B, 1]")
    if np.abs(inputs).max() > 1:
        extremes = f"values from {inputs.min():g} to {inputs.max():g}"
        checks.refuse("trajectory: its inputs", extremes, "values uniform on [-1, 1]")
    record = Record.of(trajectory, lags, washout)
    degrees = np.array(list(_degree_rows(lags, degree)))
    fit = best_readouts(record, _legendre_products(record, inputs, degrees))
    order = degrees.sum(axis=1)[:, None] == np.arange(1, degree + 1)  # [N, D]
    return ProcessingCapacity(
        degrees=degrees,
        capacities=fit.capacities,
        stderr=jackknife(fit.left_out),
        by_degree=fit.capacities @ order,
        by_degree_stderr=jackknife(fit.left_out @ order),
        total=float(fit.capacities.sum()),
        total_stderr=float(jackknife(fit.left_out.sum(axis=1))),
        size=record.states.shape[-1],
        rank=fit.rank,
        samples=fit.samples,
    )


def _degree_rows(lags: int, degree: int) -> Iterator[Any]:
    """Yield every way to distribute 1 … D degrees over K lags, by increasing total."""
    for total in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(lags), total):
            yield np.bincount(chosen, minlength=lags)


def _legendre_products(record: Record, inputs: Any, degrees: Any) -> Any:
    """Return the targets [R, n, N] for the R pieces of the record."""
    highest = int(degrees.max())
    by_lag = [
        legendre.legvander(record.delayed(inputs, k)[..., 0], highest)
        for k in range(degrees.shape[1])
    ]
    products = np.ones((*by_lag[0].shape[:-1], len(degrees)))
    for polynomials, powers in zip(by_lag, degrees.T, strict=True):
        involved = powers > 0
        products[..., involved] *= polynomials[..., powers[involved]]
    return products


def _checked_inputs(trajectory: Trajectory) -> Any:
    """Return the inputs as [B, T, F] in float64."""
    if not isinstance(trajectory, Trajectory):
        checks.refuse(
            "trajectory", checks.describe(trajectory), "a Trajectory, from trace(cell, xs)"
        )
    xs = trajectory.xs
    if getattr(xs, "ndim", 0) != 2 + len(trajectory.batch):
        checks.refuse("trajectory: its inputs", checks.describe(xs), "one array [T, *B, F]")
    checks.finite("trajectory", trajectory)
    inputs = np.asarray(xs, np.float64).reshape(len(xs), -1, xs.shape[-1]).swapaxes(0, 1)
    still = np.ptp(inputs, axis=(0, 1)) == 0
    if still.any():
        got = f"feature {int(still.argmax())} that never changes"
        checks.refuse("trajectory: its inputs", got, "inputs that differ from step to step")
    return inputs


def _first_below(curves: Any, level: float) -> Any:
    below = curves < level
    return np.where(below.any(axis=0), below.argmax(axis=0), np.inf)
