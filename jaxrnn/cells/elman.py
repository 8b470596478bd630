"""The Elman network: one nonlinearity around one recurrent matrix.

    h' = φ(W x + U h + b)          φ = tanh, ReLU or sigmoid
    y  = h'

Elman, "Finding structure in time", Cognitive Science 1990. Its step Jacobian is diag(φ') U. Each step of a
lag multiplies the gradient by one more such matrix, so with tanh (φ' ≤ 1) the gradient shrinks if ‖U‖ < 1,
and with sigmoid (φ' ≤ ¼) if ‖U‖ < 4. With ReLU, φ' is 0 or 1 and the state is unbounded; U = I,
W ~ N(0, 0.001²) and b = 0 at the start give the IRNN of Le, Jaitly & Hinton 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import CellOptions, DenseCell


class ElmanCell(DenseCell):
    """Elman cell; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      activation_fn: φ, elementwise: ``jnp.tanh``, ``jax.nn.relu``, ``jax.nn.sigmoid`` or your own.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import ElmanCell
      >>> cell = ElmanCell(3, 8, rngs=nnx.Rngs(0))
      >>> h, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> h.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("hidden",)

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation_fn: Callable[[Any], Any] = jnp.tanh,
        **options: Unpack[CellOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.function("activation_fn", activation_fn)
        self.activation_fn = activation_fn

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> Float[Array, "*B H"]:
        """Return φ(drive + pull)."""
        del carry  # enters through the pull alone
        return self.activation_fn(drive + pull)
