"""The best linear readouts of a state by least squares, with standard errors.

A least-squares fit explains part of any target, even of noise: S/(n − 1) of its variance with n samples, on
average. Summed over thousands of targets this looks like memory. It is corrected for,

    C = 1 − (1 − R²) (n − 1)/(n − 1 − S) ,

so shuffled data give 0 on average (single capacities may be below 0) and no threshold is needed. Standard
errors come from a jackknife over pieces of the record, one left out at a time.

The fit uses orthogonal factorisation in float64, on the host. State directions below the rounding of the
state's own precision count as absent, and `rank` is the number that remain.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.trajectory import Trajectory

_PIECES = 10  # fewest pieces of the jackknife


@dataclasses.dataclass(frozen=True)
class Record:
    """States divided into R pieces of n steps, with the first step of each piece.

    Attributes:
      states: [R, n, S].
      starts: first step of a piece in its sequence [R].
      sequences: the piece's sequence [R].
      precision: the rounding error of the states in their original dtype.
    """

    states: Any
    starts: Any
    sequences: Any
    precision: float

    @classmethod
    def of(cls, trajectory: Trajectory, lags: int, washout: int) -> Record:
        """Divide the steps of each sequence after the washout into pieces, at least ten in all."""
        checks.within("washout", washout, 0, trajectory.length - 1, ", the steps of the trajectory")
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
        """Return the inputs [B, T, F] from `lag` steps before each state, [R, n, F]."""
        length = self.states.shape[1]
        where = zip(self.sequences, self.starts - lag, strict=True)
        return np.stack([inputs[b, s : s + length] for b, s in where])


@dataclasses.dataclass(frozen=True)
class Fit:
    """Capacities [N], and the same with each piece left out [R, N]."""

    capacities: Any
    left_out: Any
    rank: int
    samples: int


@one_blas_thread
def best_readouts(record: Record, targets: Any) -> Fit:
    """Fit targets [R, n, N] linearly to the states.

    Each piece's [1 | states] is reduced to its triangular factor once. A fit to several pieces is a fit to
    their stacked factors, and no normal equations are formed.
    """
    pieces, length, _ = record.states.shape
    centre = record.states.mean(axis=(0, 1))
    centred = record.states - centre
    # The rounding of a state is that of its original entries, not of what is left after centring.
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
    return Fit(capacities, np.stack(left_out), rank, pieces * length)


def _capacities(
    factors: Any, reduced: Any, squares: Any, samples: int, noise: float
) -> tuple[Any, int]:
    """Return the capacities [N] and the rank of the states, from [1 | states] and targets, both times Qᵀ."""
    constant = factors[:, :1] / np.linalg.norm(factors[:, 0])
    states = factors[:, 1:] - constant @ (constant.T @ factors[:, 1:])
    variances = squares - (constant.T @ reduced)[0] ** 2
    U, sigma, _ = np.linalg.svd(states, full_matrices=False)
    kept = U[:, sigma > noise * math.sqrt(samples)]
    explained = ((kept.T @ reduced) ** 2).sum(axis=0) / variances
    rank = kept.shape[1]
    return 1 - (1 - explained) * (samples - 1) / (samples - 1 - rank), rank


def jackknife(left_out: Any) -> Any:
    """Return the standard error from estimates with each of R pieces left out, [R, …]."""
    pieces = len(left_out)
    return np.sqrt((pieces - 1) * left_out.var(axis=0))
