"""A rate with its error: how fast a logarithm changes with the lag.

Each sequence gives one slope, by least squares over its finite points. The sequences are independent, but the
points of one sequence are not (they are sums of the same factors), so the standard error comes from the
spread *between* sequences. With a single sequence it comes from blocks of about √n neighbouring increments,
which is less accurate, and with fewer than five points it is NaN.

Student's t with the given degrees of freedom turns an error into an interval. On random walks of known slope,
95 % intervals then cover 94 to 96 % with two or more sequences. With one sequence they cover 93 to 94 %, but
only 74 % if there are a hundred increments and neighbouring ones have a correlation of 0.9.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rate:
    """A slope and its standard error, in nats a step of lag; negative means vanishing.

    Attributes:
      value: mean slope over the sequences.
      stderr: its standard error; NaN if it cannot be estimated.
      dof: degrees of freedom of the error, for Student's t in a 95 % interval.
      lag: the longest lag in the fit, in steps.
    """

    value: Float[Array, "..."]
    stderr: Float[Array, "..."]
    dof: Float[Array, "..."]
    lag: Float[Array, "..."]


def rate_by_lag(lags: Num[Array, "K"], logs: Float[Array, "K *B"]) -> Rate:
    """Fit logs [K, *B] against lags [K]."""
    lags = jnp.asarray(lags, logs.dtype)
    logs = logs.reshape(len(lags), -1)
    finite = jnp.isfinite(logs)
    slopes = jax.vmap(_slope, in_axes=(None, 1, 1))(lags, jnp.where(finite, logs, 0), finite)
    longest = jnp.where(finite.any(axis=1), lags, 0).max()
    if logs.shape[1] == 1:
        return Rate(slopes[0], *_block_error(lags, logs[:, 0]), lag=longest)
    usable = jnp.isfinite(slopes)
    count = usable.sum().astype(logs.dtype)
    between = jnp.std(slopes, ddof=1, where=usable) / jnp.sqrt(count)
    freedom = jnp.maximum(count - 1, 0)
    return Rate(jnp.mean(slopes, where=usable), between, dof=freedom, lag=longest)


def _slope(
    lags: Float[Array, "K"], logs: Float[Array, "K"], finite: Bool[Array, "K"]
) -> Float[Array, ""]:
    """Return the least-squares slope over the finite points; NaN with fewer than two."""
    weight = finite.astype(logs.dtype)
    count = weight.sum()
    centred = (lags - (lags * weight).sum() / jnp.maximum(count, 1)) * weight
    return jnp.where(count > 1, (centred * logs).sum() / (centred**2).sum(), jnp.nan)


def _block_error(lags: Float[Array, "K"], logs: Float[Array, "K"]) -> tuple[Array, Array]:
    """Return the standard error of one sequence's slope, by blocks of increments, and its freedom."""
    increments = jnp.diff(logs) / jnp.diff(lags)
    blocks = int(len(increments) ** 0.5)
    if blocks < 2:
        return jnp.asarray(jnp.nan, logs.dtype), jnp.asarray(0, logs.dtype)
    size = len(increments) // blocks
    grouped = increments[: blocks * size].reshape(blocks, size)
    means = jnp.mean(grouped, axis=1, where=jnp.isfinite(grouped))
    usable = jnp.isfinite(means)
    count = usable.sum().astype(logs.dtype)
    return jnp.std(means, ddof=1, where=usable) / jnp.sqrt(count), jnp.maximum(count - 1, 0)
