"""LEM, long expressive memory: two states, each with its own time step that depends on the input.

    Δ  = Δt σ(W₁ x + U₁ y + b₁)
    Δ̄  = Δt σ(W₂ x + U₂ y + b₂)
    z' = (1 − Δ) z + Δ tanh(W_z x + U_z y + b_z)
    y' = (1 − Δ̄) y + Δ̄ tanh(W_y x + U_y z' + b_y)

Rusch, Mishra, Erichson & Mahoney, "Long Expressive Memory for Sequence Modeling", ICLR 2022: an explicit step
of a pair of equations with many time scales. States stay within ±1 for Δt ≤ 1 (their Proposition 1). The step
Jacobian differs from I by at most C Δt, where C depends on the norms of the weights: over T steps the
gradient grows no faster than e^(C T Δt), and small Δt preserve it (Proposition 2 is of this kind). The cell
resembles an LSTM in which the step sizes take the role of the forget gates. The product with U_y depends on
z', so the step does not split.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import CellOptions, DenseWeights

LEMCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class LEMCell(DenseWeights):
    """Long expressive memory; carry (z, y), each [*B, H], output y.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      step_size: Δt, the longest step, above 0 and at most 1.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import LEMCell
      >>> cell = LEMCell(3, 8, rngs=nnx.Rngs(0))
      >>> (z, y), out = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> z.shape, y.shape, out.shape
      ((5, 8), (5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("memory_step", "output_step", "memory", "output")
    carry_names: ClassVar[tuple[str, ...]] = ("z", "y")

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        step_size: float = 1.0,
        **options: Unpack[CellOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.positive("step_size", step_size)
        if step_size > 1:
            checks.refuse("step_size", step_size, "at most 1, or states leave ±1")
        self.step_size = step_size

    def step(
        self, carry: LEMCarry, x: Float[Array, "*B F"]
    ) -> tuple[LEMCarry, Float[Array, "*B H"]]:
        """Return ((z', y'), y')."""
        z, y = carry
        drive, drive_y = jnp.split(self.project(x), [3 * self.hidden_features], axis=-1)
        from_y, u_y = jnp.split(self.recurrent_kernel[...], [3 * self.hidden_features], axis=-1)
        step_z, step_y, new = jnp.split(drive + y @ from_y, 3, axis=-1)
        step_z, step_y = self.step_size * sigmoid(step_z), self.step_size * sigmoid(step_y)
        z = (1 - step_z) * z + step_z * jnp.tanh(new)
        y = (1 - step_y) * y + step_y * jnp.tanh(drive_y + z @ u_y)
        return (z, y), y
