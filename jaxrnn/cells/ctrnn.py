"""The continuous-time network: a leaky integrator of the update of an Elman network.

    τ dh/dt = −h + φ(W x + U h + b)
    h' = (1 − α) h + α φ(W x + U h + b),        α = Δt / τ
    y  = h'

Funahashi & Nakamura, "Approximation of dynamical systems by continuous time recurrent neural networks",
1993, by Euler's method, in the form of rates (Wilson & Cowan 1972). The form of currents, with φ inside the
recurrent sum, is the same system in other coordinates (Miller & Fumarola 2012). Without input a unit decays
with the time constant τ. The step Jacobian is (1 − α) I + α diag(φ') U: it starts near the identity, and a
small α keeps it there. A small α slows every change of the state, including its response to inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import CellOptions, DenseCell


class CTRNNCell(DenseCell):
    """Continuous-time cell by Euler's method; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      time_constant: τ / Δt, in steps, at least 1.
      activation_fn: φ, elementwise.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import CTRNNCell
      >>> cell = CTRNNCell(3, 8, time_constant=10.0, rngs=nnx.Rngs(0))
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
        time_constant: float = 5.0,
        activation_fn: Callable[[Any], Any] = jnp.tanh,
        **options: Unpack[CellOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.positive("time_constant", time_constant)
        if time_constant < 1:
            checks.refuse("time_constant", time_constant, "at least 1 step, or Euler overshoots")
        self.time_constant = time_constant
        checks.function("activation_fn", activation_fn)
        self.activation_fn = activation_fn

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> Float[Array, "*B H"]:
        """Return (1 − α) h + α φ(drive + pull)."""
        alpha = 1 / self.time_constant
        return (1 - alpha) * carry + alpha * self.activation_fn(drive + pull)
