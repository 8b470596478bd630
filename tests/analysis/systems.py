"""Dynamical systems with known exponents, as steps ``(carry, x) -> (carry, y)``."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def logistic(s, x):
    """s ← 4 s (1 − s)."""
    return 4.0 * s * (1.0 - s), s


A, C = 1.4, 0.3
"""The Hénon map's parameters: bend and contraction."""


def henon(s, x):
    """Hénon 1976: (u, v) ← (1 − A u² + v, C u)."""
    moved = jnp.stack([1.0 - A * s[..., 0] ** 2 + s[..., 1], C * s[..., 0]], axis=-1)
    return moved, moved


def standard(s, x):
    """Chirikov's standard map, k = 1; state (p, θ)."""
    p = s[..., 0] + jnp.sin(s[..., 1])
    moved = jnp.stack([p, jnp.mod(s[..., 1] + p, 2 * jnp.pi)], axis=-1)
    return moved, moved


def cat(s, x):
    """Arnold's cat map."""
    moved = jnp.mod(s @ jnp.array([[2.0, 1.0], [1.0, 1.0]], s.dtype), 1.0)
    return moved, moved


def lorenz(s, x):
    """Lorenz 1963, σ = 10, ρ = 28, β = 8/3: a field, for a `Flow`."""
    a, b, c = s[..., 0], s[..., 1], s[..., 2]
    return jnp.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], axis=-1)


def tanh_map(size, gain, seed=0, dtype=jnp.float64):
    """Return h ← J tanh h with J ~ N(0, g²/N), and a state to start from."""
    weights, start = jax.random.split(jax.random.key(seed))
    coupling = (
        gain * jax.random.normal(weights, (size, size), dtype) / jnp.sqrt(jnp.asarray(size, dtype))
    )

    def step(s, x):
        moved = jnp.tanh(s) @ coupling
        return moved, moved

    return step, jax.random.normal(start, (size,), dtype)
