"""modReLU: a nonlinearity that keeps the direction of a number and shortens or lengthens it.

    modReLU(z) = z / |z| · ReLU(|z| + b)

Arjovsky, Shah & Bengio 2016, for complex z; for real z, z / |z| is its sign (Helfrich et al. 2018). With b
= 0 it is the identity, and a network around a norm-preserving matrix is linear and keeps every difference.
With b < 0 units with |z| ≤ −b are dead, their derivative 0. Of the others it is 1 along z, and across it,
where z is complex, 1 + b/|z|: above 1 for b > 0, so that gradients may grow. A real z has no across, and
its derivative is 1 or 0; what b > 0 adds is a jump from −b to b at zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def modrelu(
    parts: tuple[Float[Array, "*B H"], ...], bias: Float[Array, "*B H"]
) -> tuple[Float[Array, "*B H"], ...]:
    """Return modReLU of a real number (one part) or a complex one (real and imaginary part).

    At zero, where z has no direction, the value is 0 and the derivative that of z, or of 0 · z where b < 0.
    """
    square = sum(part * part for part in parts)
    nowhere = square == 0
    size = jnp.sqrt(jnp.where(nowhere, 1, square))
    at_zero = (bias >= 0).astype(bias.dtype)
    scale = jnp.where(nowhere, at_zero, jax.nn.relu(size + bias) / size)
    return tuple(scale * part for part in parts)
