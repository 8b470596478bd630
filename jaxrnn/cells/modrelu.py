"""modReLU: a nonlinearity that keeps the direction of a number and changes its size.

    modReLU(z) = z / |z| · ReLU(|z| + b)

Arjovsky, Shah & Bengio 2016, for complex z; for real z, z / |z| is its sign (Helfrich et al. 2018). With
b = 0 it is the identity, and a network with a norm-preserving matrix is linear and preserves every
difference. With b < 0 units with |z| ≤ −b are dead: their derivative is 0. For all others the derivative
along z is 1, and for complex z the derivative across z is 1 + b/|z|. That is above 1 for b > 0, so that
gradients may grow. A real z has no direction across it, and its derivative is 1 or 0; b > 0 only adds a jump
from −b to b at zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.annotations import checked


@checked
def modrelu(
    parts: tuple[Float[Array, "*B H"], ...], bias: Float[Array, "*B H"]
) -> tuple[Float[Array, "*B H"], ...]:
    """Return modReLU of a real number (one part) or a complex one (real and imaginary part).

    At zero, where z has no direction, the value for a finite b is 0. The derivative there is that of z, or
    zero where b < 0.
    """
    directions, size = _polar(parts)
    dead = (bias < 0) & (size <= -bias)  # False for NaN, which therefore propagates
    pairs = zip(parts, directions, strict=True)
    return tuple(jnp.where(dead, 0, part + bias * direction) for part, direction in pairs)


def _polar(parts: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """Return the direction z / |z|, which is 0 at zero, and |z|, without overflow or underflow."""
    if len(parts) == 1:  # unlike that of z / |z|, the derivative of sign is zero without rounding
        return [jnp.sign(parts[0])], jnp.abs(parts[0])
    nowhere = jnp.stack([part == 0 for part in parts]).all(axis=0)
    somewhere = [jnp.where(nowhere, 1, part) for part in parts]
    largest = jax.lax.stop_gradient(jnp.stack([jnp.abs(part) for part in somewhere]).max(axis=0))
    scaled = [part / largest for part in somewhere]
    length = jnp.sqrt(sum(part * part for part in scaled))
    directions = [jnp.where(nowhere, 0, part / length) for part in scaled]
    return directions, jnp.where(nowhere, 0, largest * length)
