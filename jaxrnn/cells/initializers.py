"""Initialisers of the weights of a recurrent network.

At initialisation the step Jacobian is diag(φ') W, so the spectrum of W gives a first answer to whether
gradients vanish or explode. Each function here returns an initialiser ``(key, shape, dtype) -> Array`` as in
``jax.nn.initializers``, whose initialisers can be used instead.

- `glorot`: variance 2/(fan in + fan out), Glorot & Bengio 2010. Circular law of radius ≈ 1.
- `orthogonal`: every singular value equals `scale`, Saxe et al. 2014; no direction is lost.
- `identity`: W = scale·I, the IRNN of Le, Jaitly & Hinton 2015.
- `spectral_radius`: Gaussian entries rescaled so that max |λ| is exactly `rho`, as in echo state
  networks (Jaeger 2001). W is non-normal with ‖W‖ ≈ 2ρ, so states grow at first even if ρ < 1.
- `chrono`: gate biases whose time constants spread over 1 … max_lag, Tallec & Ollivier 2018.

A gated cell's recurrent kernel [H, G·H] consists of G square blocks. `per_gate` draws each block separately,
because an orthogonal [H, G·H] matrix would not have orthogonal blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Initializer, Key, at_least_float32


def glorot() -> Initializer:
    """Return an initialiser with uniform entries of variance 2/(fan_in + fan_out) (Glorot & Bengio 2010)."""
    return jax.nn.initializers.glorot_uniform()


@checked
def orthogonal(scale: float = 1.0) -> Initializer:
    """Return an initialiser of orthogonal matrices times `scale`, uniform over the group (Saxe et al. 2014).

    Under ``jax.vmap``, as for an ensemble, the matrices are drawn one after another. Two batches of
    factorisations in one program, such as those of two gates, may deadlock on a CPU (jaxlib 0.10;
    `jaxrnn.analysis.lapack` explains how).
    """
    draw = jax.nn.initializers.orthogonal(scale)

    def init(key: Key, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "N H"]:
        @jax.custom_batching.sequential_vmap
        def drawn(key):
            return draw(key, tuple(shape), at_least_float32(dtype)).astype(dtype)

        return drawn(key)

    return init


@checked
def identity(scale: float = 1.0) -> Initializer:
    """Return an initialiser with the identity matrix times `scale` (Le, Jaitly & Hinton 2015)."""

    def init(key: Key, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "H H"]:
        del key  # nothing is drawn
        _require_square(shape)
        return scale * jnp.eye(shape[0], dtype=dtype)

    return init


@checked
def spectral_radius(rho: float) -> Initializer:
    """Return an initialiser of Gaussian matrices rescaled to the largest |eigenvalue| `rho` (Jaeger 2001).

    The spectral radius is computed by matrix products alone, so this runs on every backend, also on TPU,
    which has no eigenvalue routines, and under every transformation.
    """
    checks.positive("rho", rho)

    def init(key: Key, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "H H"]:
        _require_square(shape)
        entries = jax.random.normal(key, tuple(shape), at_least_float32(dtype))
        return (entries * (rho / _radius(entries))).astype(dtype)

    return init


def constant_per_gate(values: Sequence[float]) -> Initializer:
    """Return an initialiser of biases [G, H] with one constant per gate."""

    def init(key: Key, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "G H"]:
        del key  # nothing is drawn
        return jnp.broadcast_to(jnp.asarray(values, dtype)[:, None], tuple(shape))

    return init


@checked
def chrono(max_lag: float, signs: Sequence[float]) -> Initializer:
    """Return an initialiser of biases that spread memory over 1 … `max_lag` steps (Tallec & Ollivier 2018).

    One b ~ log U(1, max_lag − 1) is drawn per unit, and gate g gets the bias ``signs[g]·b`` in the result
    [G, H]: the sign is +1 for the forget gate, −1 for the input gate, 0 for all others. A gate with the
    constant value σ(b) keeps a unit for about 1 + e^b steps.
    """
    checks.positive("max_lag", max_lag)
    if max_lag <= 2:
        checks.refuse("max_lag", max_lag, "more than 2 steps")

    def init(key: Key, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "G H"]:
        memory = jax.random.uniform(key, (shape[1],), dtype, 1.0, max_lag - 1.0)
        return jnp.asarray(signs, dtype)[:, None] * jnp.log(memory)[None, :]

    return init


def per_gate(
    init: Initializer, key: Key, shape: Sequence[int], gates: int, dtype
) -> Float[Array, "N P"] | Any:
    """Draw `gates` blocks of `shape` [N, H], each with its own key, and concatenate them to [N, G·H]."""
    blocks = [init(k, tuple(shape), dtype) for k in jax.random.split(key, gates)]
    return on_drawn(lambda *blocks: jnp.concatenate(blocks, axis=-1), *blocks)


def on_drawn(function: Callable[..., Array], *drawn: Any) -> Any:
    """Apply a function to arrays that an initialiser drew.

    Initialisers made by ``nnx.with_partitioning`` and ``nnx.with_metadata`` return arrays with metadata. The
    result gets the metadata of the first array. If it has fewer axes than there are sharding names, it keeps
    the last names; if it has more, its first axes are not sharded.
    """
    first = drawn[0]
    if not isinstance(first, nnx.VariableMetadata):
        return function(*drawn)
    array = function(*(each.raw_value for each in drawn))
    metadata = dict(first.metadata)
    names = metadata.get("out_sharding")
    if names is not None:
        names = (None,) * (array.ndim - len(names)) + tuple(names)
        metadata["out_sharding"] = names[len(names) - array.ndim :]
    return dataclasses.replace(first, raw_value=array, metadata=metadata)


@jax.jit
def _radius(matrix: Float[Array, "H H"]) -> Float[Array, ""]:
    """Return max |λ| by Gelfand's formula, ρ = lim ‖Aⁿ‖^(1/n), with n = 2⁶⁴ by repeated squaring."""

    def square(k, state):
        power, log_radius = state
        power = jnp.matmul(power, power, precision=jax.lax.Precision.HIGHEST)
        norm = jnp.linalg.norm(power)
        return power / norm, log_radius + jnp.log(norm) * 0.5 ** (k + 1).astype(matrix.dtype)

    norm = jnp.linalg.norm(matrix)
    _, log_radius = jax.lax.fori_loop(0, 64, square, (matrix / norm, jnp.log(norm)))
    return jnp.exp(log_radius)


def _require_square(shape: Sequence[int]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        checks.refuse("shape", list(shape), "a square matrix [H, H]: this is for recurrent kernels")
