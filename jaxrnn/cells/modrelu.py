"""modReLU: a nonlinearity that keeps the direction of a number and shortens or lengthens it.

    modReLU(z) = z / |z| · ReLU(|z| + b)

Arjovsky, Shah & Bengio 2016, for complex z; for real z, z / |z| is its sign (Helfrich et al. 2018). With b
= 0 it is the identity, and a network around a norm-preserving matrix is linear and keeps every norm. With b
≠ 0 its derivative across the direction of z is 1 + b/|z|, above 1 for b > 0: the state is no longer free of
growth, and units with |z| ≤ −b are dead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def modrelu(
    parts: tuple[Float[Array, "*B H"], ...], bias: Float[Array, "*B H"]
) -> tuple[Float[Array, "*B H"], ...]:
    """Return modReLU of a real number (one part) or a complex one (real and imaginary part).

    At zero, where it has no direction, value and derivative are taken as those of 0 · z.
    """
    square = sum(part * part for part in parts)
    nowhere = square == 0
    size = jnp.sqrt(jnp.where(nowhere, 1, square))
    scale = jnp.where(nowhere, 0, jax.nn.relu(size + bias) / size)
    return tuple(scale * part for part in parts)
