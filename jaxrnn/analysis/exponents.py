"""The record of a run of Lyapunov exponents: rates by block of steps, and quantities derived from them.

A run (`jaxrnn.analysis.benettin`) returns the finite-time exponents of N blocks of steps and its last
position. Their mean, weighted by the steps of a block, is the exponent λ_i. Their scatter gives its standard
error, computed over groups of blocks long enough that neighbouring groups are nearly uncorrelated. The
exponents give

    D_KY = j + Σ_{i≤j} λ_i / |λ_{j+1}| ,    j the last with Σ_{i≤j} λ_i ≥ 0    (Kaplan & Yorke 1979)
    h    ≤ Σ_{λ_i>0} λ_i                                                       (Ruelle 1978)

with equality in the second for SRB measures (Pesin 1977; Ledrappier & Young 1985).

Weakness: a standard error cannot account for what the run has not visited, such as a second attractor, a slow
drift, or a stretch of near-regular motion that is longer than the run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from jaxrnn.typing import Carry

GROUPS = 16
"""Blocks are joined into this number of groups, or up to twice as many, before their scatter is computed."""


class PrecisionWarning(UserWarning):
    """A warning that the rounding error of a result exceeds its useful accuracy."""


class Position(NamedTuple):
    """The position of a run: the data needed to continue it.

    Attributes:
      carry: the carry, leaves [*B, H].
      directions: orthonormal rows [*B, K, S].
      steps: number of steps taken.
    """

    carry: Carry
    directions: Any
    steps: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lyapunov:
    """Lyapunov exponents along one trajectory for each sequence of a batch.

    Rates are in nats a step, or in nats a unit of time for a `Flow`.

    Attributes:
      rates: of each block of steps, in the order of the directions [N, *B, K]; finite-time exponents.
      block_steps: steps in each block [N].
      position: the last position of the run, from which it can continue.
      determinant: largest |Σ λ − ⟨ln|det J|⟩| found, nats a step; NaN unless all exponents were requested, or
        where the Jacobians are singular.
      rounding: estimated error of the least exponent from rounding, nats a step.
      renorm_every: steps between two factorisations, at the end of the run.
      time_step: units of time in a step.
    """

    rates: Float[Any, "N *B K"]
    block_steps: Any
    position: Position
    determinant: Any
    rounding: Any
    renorm_every: Any
    time_step: float = dataclasses.field(metadata={"static": True})

    @property
    def exponents(self) -> Float[Any, "*B K"]:
        """Exponents, decreasing along the last axis."""
        return _in_order(self._means, self._means)

    @property
    def stderr(self) -> Float[Any, "*B K"]:
        """Standard errors of the exponents; NaN with fewer than 8 blocks."""
        return _in_order(self._errors[0], self._means)

    @property
    def interval(self) -> Float[Any, "*B K 2"]:
        """95 % intervals of the exponents, by Student's t."""
        reach = stdtrit(self._errors[1], 0.975) * self.stderr
        return np.stack([self.exponents - reach, self.exponents + reach], axis=-1)

    @property
    def history(self) -> Float[Any, "N *B K"]:
        """Running means of the exponents after each block, in the final order, to show their convergence."""
        weights = per_block(self.block_steps, self.rates)
        running = (self.rates * weights).cumsum(axis=0) / weights.cumsum(axis=0)
        return _in_order(running, np.broadcast_to(self._means, running.shape))

    @property
    def pooled(self) -> tuple[Any, Any]:
        """Mean exponents over the sequences, and their standard errors across sequences, each [K]."""
        each = np.asarray(self.exponents, np.float64).reshape(-1, self.rates.shape[-1])
        if len(each) == 1:
            return each[0], np.asarray(self.stderr).reshape(-1)
        scattered = np.where(np.isfinite(each), each, np.nan)  # −inf has no scatter
        return each.mean(axis=0), scattered.std(axis=0, ddof=1) / math.sqrt(len(each))

    @property
    def kaplan_yorke(self) -> Float[Any, "*B"]:
        """Kaplan–Yorke dimension [*B]; NaN if more exponents are needed to determine it."""
        return np.apply_along_axis(self._dimension, -1, np.asarray(self.exponents, np.float64))

    @property
    def entropy_rate(self) -> Float[Any, "*B"]:
        """Sum of the positive exponents [*B]: an upper bound on the Kolmogorov–Sinai entropy.

        This is Ruelle's inequality; for SRB measures the two are equal (Pesin). NaN if all K exponents are
        positive and K < S, because further exponents may be positive.
        """
        exponents = np.asarray(self.exponents, np.float64)
        unknown = (exponents[..., -1] > 0) & (not self._complete)
        return np.where(unknown, np.nan, np.maximum(exponents, 0).sum(axis=-1))

    @property
    def unit(self) -> str:
        """The denominator of the rates: "step", or "unit of time" for a flow."""
        return "step" if self.time_step == 1 else "unit of time"

    @property
    def text(self) -> str:
        """A short summary."""
        values, errors = self.pooled
        shown = ", ".join(
            f"{v:+.5f} ± {e:.5f}" for v, e in zip(values[:4], errors[:4], strict=True)
        )
        unit = self.unit
        determinant = f"{float(self.determinant):.0e} nats a step"
        if not self._complete:
            determinant = f"known where all {self.position.directions.shape[-1]} are asked for"
        return "\n".join(
            [
                f"exponents           {shown}{', …' if len(values) > 4 else ''} nats a {unit}",
                f"Kaplan–Yorke        {np.mean(self.kaplan_yorke):.3f}",
                f"entropy rate        {np.mean(self.entropy_rate):.4f} nats a {unit}",
                f"steps               {int(np.sum(self.block_steps))}",
                f"Σλ − ⟨ln|det J|⟩    {determinant}",
            ]
        )

    @property
    def _complete(self) -> bool:
        return self.rates.shape[-1] == self.position.directions.shape[-1]

    @property
    def _means(self) -> Any:
        weights = per_block(self.block_steps, self.rates)
        return (self.rates * weights).sum(axis=0) / weights.sum(axis=0)

    @property
    def _errors(self) -> tuple[Any, int]:
        """Standard errors in the order of the directions, and their degrees of freedom."""
        whole = np.asarray(self.block_steps) == np.max(self.block_steps)
        blocks = np.asarray(self.rates, np.float64)[whole]
        size = max(1, len(blocks) // GROUPS)
        count = len(blocks) // size
        if count < GROUPS // 2:
            return np.full(blocks.shape[1:], np.nan), 1
        groups = blocks[: count * size].reshape(count, size, *blocks.shape[1:]).mean(axis=1)
        # −inf has no scatter: make its error NaN.
        groups = np.where(np.isfinite(groups), groups, np.nan)
        return groups.std(axis=0, ddof=1) / math.sqrt(count), count - 1

    def _dimension(self, exponents: Any) -> float:
        sums = np.cumsum(exponents)
        if exponents[0] < 0:
            return 0.0
        if sums[-1] >= 0:
            return float(len(exponents)) if self._complete else math.nan
        last = int(np.argmax(sums < 0))
        return last + float(sums[last - 1] / -exponents[last])


def per_block(block_steps: Any, rates: Any) -> Any:
    """Return the steps of blocks [N], shaped and cast as weights of rates [N, *B, K]."""
    steps = np.asarray(block_steps).astype(rates.dtype)
    return steps.reshape(-1, *[1] * (rates.ndim - 1))


def _in_order(values: Any, exponents: Any) -> Any:
    """Sort values along the last axis by decreasing exponents."""
    module: Any = jnp if isinstance(exponents, jax.Array) else np
    return module.take_along_axis(values, module.argsort(-exponents, axis=-1), axis=-1)
