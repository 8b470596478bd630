"""The minimal gated unit: one gate both forgets and admits.

    f  = σ(W_f x + U_f h + b_f)
    n  = tanh(W_n x + U_n (f h) + b_n)
    h' = (1 − f) h + f n
    y  = h'

Zhou, Wu, Zhang & Zhou, "Minimal Gated Unit for Recurrent Neural Networks", 2016: a GRU whose reset and update
gates are the same, with two thirds of its weights. A unit that is not overwritten is not read either: where
f ≈ 0 the candidate does not depend on the past. The second product depends on the first, so the step does not
split.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn.cells.base import DenseWeights


class MGUCell(DenseWeights):
    """Minimal gated unit; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import MGUCell
      >>> cell = MGUCell(3, 8, rngs=nnx.Rngs(0))
      >>> h, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> h.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("forget", "new")

    def step(
        self, carry: Float[Array, "*B H"], x: Float[Array, "*B F"]
    ) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
        """Return h' as carry and output."""
        drive_f, drive_n = jnp.split(self.project(x), 2, axis=-1)
        u_f, u_n = jnp.split(self.recurrent_kernel[...], 2, axis=-1)
        f = sigmoid(drive_f + carry @ u_f)
        n = jnp.tanh(drive_n + (f * carry) @ u_n)
        h = (1 - f) * carry + f * n
        return h, h
