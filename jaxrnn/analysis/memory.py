"""Memory capacity: how much of past inputs can be read linearly from the present state.

The capacity for a target z(t), a function of inputs up to t, is the share of its variance that the best
linear readout of the state explains,

    C[z] = 1 − min_w E (z − w·s − w₀)² / var z        ∈ [0, 1] .

Targets u(t − k) give Jaeger's memory curve MC_k ("Short term memory in echo state networks", 2001) and,
summed over all lags k ≥ 0, the memory capacity. Products of Legendre polynomials of u at several lags give
the information-processing capacity of Dambre, Verstraeten, Schrauwen & Massar 2012. For input that is
independent from step to step, all these targets are orthogonal, and their capacities add up to S, the size of
the state, at most; to S exactly for a network with fading memory whose state directions are linearly
independent. A linear network has all of it in the memory curve, which `linear_memory` has in closed form
(White, Lee & Sompolinsky 2004).

A least-squares fit explains part of anything: of noise, S/(n − 1) of the variance with n samples, on
average, which summed over thousands of targets passes for memory. It is taken out,

    C = 1 − (1 − R²) (n − 1)/(n − 1 − S) ,

so that shuffled data give 0 on average (single capacities may come out below 0) and no threshold is needed.
Standard errors are a jackknife over pieces of the record, one left out at a time.

The fit is by orthogonal factorisation in float64, on the host. State directions below the rounding of the
state's own precision count as absent, and `rank` says how many are left.

Weakness: directions that are tiny but not rounding count in full, though noise would hide them: capacity is
not robustness. Where the input is correlated in time, capacities of neighbouring lags overlap and the sum is
not bounded by S. A readout of an LSTM's whole carry (c, h) sees more than its h.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from numpy.polynomial import legendre
from scipy.linalg import cholesky, solve_discrete_lyapunov
from scipy.special import stdtrit

from jaxrnn import checks
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.typing import ArrayLike

_PIECES = 10
_MOST_TARGETS = 20_000
_MOST_STEPS = 100_000  # in which an impulse response must fade


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Horizon:
    """Lag at which a memory curve falls below a level, and the 95 % interval; in steps, by feature [F].

    Attributes:
      lag: first lag at which it is below; infinite where all lags measured are above.
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
      rank: state directions above rounding.
      samples: number of states that the fit is over.
      pieces: R of the record, which the standard errors are a jackknife over: they have R − 1 degrees of
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
    """Information-processing capacity: what of the inputs, and of their products, the state holds.

    Attributes:
      degrees: the target n is ∏_k P_{degrees[n, k]}(u(t − k)), [N, K].
      capacities: of each target [N].
      stderr: their standard errors [N].
      by_degree: sum over the targets of total degree 1 … D, [D]; the first is the memory capacity.
      by_degree_stderr: their standard errors [D].
      total: sum over all targets.
      total_stderr: its standard error.
      size: S, which the total does not exceed if inputs are independent.
      rank: state directions above rounding.
      samples: number of states that the fit is over.
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


def memory_capacity(trajectory: Trajectory, *, lags: int, washout: int = 0) -> MemoryCapacity:
    """Return how well past inputs can be read from the state, lag by lag.

    Args:
      trajectory: a path driven by inputs [T, *B, F] that are independent of each other, from `trace`. All
        sequences share one readout.
      lags: K; the lags are 0 … K − 1, and lag 0 is the input that the state has just read.
      washout: steps at the beginning that are left out, for the state to forget its start.

    Raises:
      InputError: no inputs, or a feature that never changes; values that are not finite; too few steps.

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
    record = _Record.of(trajectory, lags, washout)
    features = inputs.shape[-1]
    targets = np.concatenate([record.delayed(inputs, k) for k in range(lags)], axis=-1)
    fit = _fit(record, targets)
    return MemoryCapacity(
        capacities=fit.capacities.reshape(lags, features),
        stderr=_jackknife(fit.left_out).reshape(lags, features),
        total=float(fit.capacities.sum()),
        total_stderr=float(_jackknife(fit.left_out.sum(axis=1))),
        size=record.states.shape[-1],
        rank=fit.rank,
        samples=fit.samples,
        pieces=len(fit.left_out),
    )


def processing_capacity(
    trajectory: Trajectory, *, lags: int, degree: int, washout: int = 0
) -> ProcessingCapacity:
    """Return the capacities for all products of Legendre polynomials up to a total degree.

    Args:
      trajectory: a path driven by inputs [T, *B, 1] that are independent and uniform on [−1, 1], from
        `trace`.
      lags: K; the lags are 0 … K − 1.
      degree: D, the largest total degree. There are C(K + D, D) − 1 targets.
      washout: steps at the beginning that are left out.

    Raises:
      InputError: as `memory_capacity`; inputs of more than one feature or outside [−1, 1]; too many targets.

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
    record = _Record.of(trajectory, lags, washout)
    degrees = np.array(list(_degree_rows(lags, degree)))
    fit = _fit(record, _legendre_products(record, inputs, degrees))
    order = degrees.sum(axis=1)[:, None] == np.arange(1, degree + 1)  # [N, D]
    return ProcessingCapacity(
        degrees=degrees,
        capacities=fit.capacities,
        stderr=_jackknife(fit.left_out),
        by_degree=fit.capacities @ order,
        by_degree_stderr=_jackknife(fit.left_out @ order),
        total=float(fit.capacities.sum()),
        total_stderr=float(_jackknife(fit.left_out.sum(axis=1))),
        size=record.states.shape[-1],
        rank=fit.rank,
        samples=fit.samples,
    )


def _degree_rows(lags: int, degree: int) -> Iterator[Any]:
    """Yield every way to give 1 … D degrees to K lags, by rising total."""
    for total in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(lags), total):
            yield np.bincount(chosen, minlength=lags)


def _legendre_products(record: _Record, inputs: Any, degrees: Any) -> Any:
    """Return the targets, [R, n, N], by pieces of the record."""
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


@one_blas_thread
def linear_memory(
    kernel: ArrayLike, input_kernel: ArrayLike, *, lags: int, noise_variance: float = 0.0
) -> Float[np.ndarray, "K"]:
    """Return the memory curve of s' = W s + v u (+ noise) for independent u of variance 1.

    MC_k = (W^k v)ᵀ C⁻¹ (W^k v), where C = Σ_k W^k (v vᵀ + noise) W^kᵀ is the covariance of the state. Without
    noise the curve sums to the number of directions that v reaches, S for almost all W and v.

    Args:
      kernel: W [S, S], acting from the left; a spectral radius below 1, and so far below that an impulse
        fades to rounding within 100 000 steps: 0.9996 will do for normal matrices.
      input_kernel: v [S].
      lags: K; the lags are 0 … K − 1.
      noise_variance: of independent noise that enters every unit at every step.

    Raises:
      InputError: shapes that do not fit, values that are not finite, a spectral radius of 1 or more or too
        near to it, or a noise below 0.

    Example:
      >>> import numpy as np
      >>> from jaxrnn.analysis.memory import linear_memory
      >>> linear_memory(np.diag([0.5]), np.ones(1), lags=3).round(6).tolist()  # ¾ of 1/4^k
      [0.75, 0.1875, 0.046875]
    """
    checks.count("lags", lags)
    W, v = _checked_network(kernel, input_kernel)
    if not 0 <= noise_variance < math.inf:
        checks.refuse("noise_variance", noise_variance, "a finite number, 0 or above")
    radius = float(np.abs(np.linalg.eigvals(W)).max())
    if not radius < 1:
        checks.refuse(
            "kernel", f"a spectral radius of {radius:g}", "less than 1: memory that fades"
        )
    rows = _impulse_response(W, v, lags)
    if noise_variance > 0:
        covariance = solve_discrete_lyapunov(W, noise_variance * np.eye(len(v)))
        rows = np.concatenate([rows, cholesky(covariance)])
    # vᵀ (AᵀA)⁻¹ v of a row v of A is its leverage; scaling the columns changes nothing but the conditioning.
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=0), np.finfo(np.float64).tiny)
    U, sigma, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = U[:, sigma > max(rows.shape) * np.finfo(np.float64).eps * sigma[0]]
    return (kept[:lags] ** 2).sum(axis=1)


def _impulse_response(W: Any, v: Any, least: int) -> Any:
    """Return v, W v, W² v, … as rows, until nothing is left, and `least` of them at least."""
    rows, size, largest = [v], np.linalg.norm(v), np.linalg.norm(v)
    while len(rows) < least or size > np.finfo(np.float64).eps * largest:
        if len(rows) >= max(least, _MOST_STEPS):
            got = (
                f"an impulse response of which {size / largest:.0e} is left after {len(rows)} steps"
            )
            checks.refuse("kernel", got, "a spectral radius further below 1")
        rows.append(W @ rows[-1])
        size = np.linalg.norm(rows[-1])
        largest = max(largest, size)
    return np.stack(rows)


def _checked_network(kernel: Any, input_kernel: Any) -> tuple[Any, Any]:
    checks.floating("kernel", kernel)
    if np.ndim(kernel) != 2 or kernel.shape[0] != kernel.shape[1]:
        checks.refuse("kernel", checks.describe(kernel), "a square matrix [S, S]")
    checks.floating("input_kernel", input_kernel)
    checks.shape("input_kernel", input_kernel, kernel.shape[:1], "[S]")
    checks.finite("kernel", kernel)
    checks.finite("input_kernel", input_kernel)
    return np.asarray(kernel, np.float64), np.asarray(input_kernel, np.float64)


@dataclasses.dataclass(frozen=True)
class _Record:
    """States cut into R pieces of n steps, and where the pieces begin.

    Attributes:
      states: [R, n, S].
      starts: first step of a piece in its sequence [R].
      sequences: the piece's sequence [R].
      precision: the rounding of the states as they came.
    """

    states: Any
    starts: Any
    sequences: Any
    precision: float

    @classmethod
    def of(cls, trajectory: Trajectory, lags: int, washout: int) -> _Record:
        """Cut what remains of each sequence after the washout into pieces, at least ten in all."""
        if washout < 0:
            checks.refuse("washout", washout, "0 steps or more")
        states = trajectory.states[1:]
        precision = float(jnp.finfo(states.dtype).eps)
        states = np.asarray(states, np.float64)
        steps, size = states.shape[0], states.shape[-1]
        states = states.reshape(steps, -1, size).swapaxes(0, 1)
        skipped = max(washout, lags - 1)
        cuts = -(-_PIECES // len(states))
        length = (steps - skipped) // cuts
        if length * cuts * len(states) < 2 * (size + 1) or length < 2:
            needed = skipped + cuts * max(2, -(-2 * (size + 1) // (cuts * len(states))))
            checks.refuse(
                "trajectory",
                f"{steps} steps of {len(states)} sequences",
                f"at least {needed} steps: {skipped} to begin with, then as many as give twice as many "
                f"samples as the {size} state entries",
            )
        starts = skipped + (steps - skipped) % cuts + length * np.arange(cuts)
        pieces = np.stack([states[:, s : s + length] for s in starts], axis=1)
        return cls(
            states=pieces.reshape(-1, length, size),
            starts=np.tile(starts, len(states)),
            sequences=np.repeat(np.arange(len(states)), cuts),
            precision=precision,
        )

    def delayed(self, inputs: Any, lag: int) -> Any:
        """Return the inputs [B, T, F] of `lag` steps before each state, [R, n, F]."""
        length = self.states.shape[1]
        where = zip(self.sequences, self.starts - lag, strict=True)
        return np.stack([inputs[b, s : s + length] for b, s in where])


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


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Capacities [N], and again with each piece left out [R, N]."""

    capacities: Any
    left_out: Any
    rank: int
    samples: int


@one_blas_thread
def _fit(record: _Record, targets: Any) -> _Fit:
    """Fit targets [R, n, N] linearly to the states.

    Each piece's [1 | states] is reduced to its triangular factor once; a fit to several pieces is one to
    their factors on top of each other, and no normal equations are formed.
    """
    pieces, length, _ = record.states.shape
    centre = record.states.mean(axis=(0, 1))
    centred = record.states - centre
    # The rounding of a state is that of its entries as they were, not of what is left after centring.
    scale = np.maximum(np.abs(record.states).max(axis=(0, 1)), np.finfo(np.float64).tiny)
    ones = np.ones((pieces, length, 1))
    factors, reduced = [], []
    for piece, target in zip(
        np.concatenate([ones, centred / scale], axis=-1), targets, strict=True
    ):
        Q, R = np.linalg.qr(piece)
        factors.append(R)
        reduced.append(Q.T @ target)
    squares = (targets**2).sum(axis=1)
    noise = record.precision

    def fit(kept: list[int]) -> tuple[Any, int]:
        left, right = (np.concatenate([a[r] for r in kept]) for a in (factors, reduced))
        return _capacities(left, right, squares[kept].sum(axis=0), len(kept) * length, noise)

    everything = list(range(pieces))
    capacities, rank = fit(everything)
    left_out = [fit([*everything[:r], *everything[r + 1 :]])[0] for r in everything]
    return _Fit(capacities, np.stack(left_out), rank, pieces * length)


def _capacities(
    factors: Any, reduced: Any, squares: Any, samples: int, noise: float
) -> tuple[Any, int]:
    """Return the capacities [N] and the rank of the states, given [1 | states] and targets turned alike."""
    constant = factors[:, :1] / np.linalg.norm(factors[:, 0])
    states = factors[:, 1:] - constant @ (constant.T @ factors[:, 1:])
    variances = squares - (constant.T @ reduced)[0] ** 2
    U, sigma, _ = np.linalg.svd(states, full_matrices=False)
    kept = U[:, sigma > noise * math.sqrt(samples)]
    explained = ((kept.T @ reduced) ** 2).sum(axis=0) / variances
    rank = kept.shape[1]
    return 1 - (1 - explained) * (samples - 1) / (samples - 1 - rank), rank


def _jackknife(left_out: Any) -> Any:
    """Return the standard error from estimates with each of R pieces left out, [R, …]."""
    pieces = len(left_out)
    return np.sqrt((pieces - 1) * left_out.var(axis=0))


def _first_below(curves: Any, level: float) -> Any:
    below = curves < level
    return np.where(below.any(axis=0), below.argmax(axis=0), np.inf)
