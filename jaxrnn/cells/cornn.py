"""coRNN: a network of driven, damped, coupled oscillators.

    y'' = tanh(U y + V y' + W x + b) − γ y − ε y'
    z' = z + Δt (tanh(U y + V z + W x + b) − γ y − ε z)          velocities
    y' = y + Δt z'                                                positions, and the output

Rusch & Mishra, "Coupled Oscillatory Recurrent Neural Network", ICLR 2021. Every unit is a damped oscillator
under a force within ±1. The state is therefore bounded for all inputs and weights if γ Δt² + 2 ε Δt < 4: for
small Δt and γ > ε²/4, |y| ≤ coth(π ε / 4ω) / γ, ω² = γ − ε²/4. The step Jacobian differs from I by at most
C Δt, where C depends on the norms of the weights. Over T steps the gradient thus stays approximately between
e^(−C T Δt) and e^(C T Δt), however small the steps are (the paper's Propositions 2 and 3 are bounds of this
kind). Over long T Δt it may vanish or explode exponentially, as in other cells: det J = (1 − ε Δt)^H where
V = 0, so on average it decays at the rate ε/2. All units have the same frequency √γ; the memory is in their
coupling.

The damping uses the old velocity (explicit), as in the authors' code; this is one of the two forms that the
paper allows.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import CellOptions, DenseCell

OscillatorCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class CoRNNCell(DenseCell):
    """Coupled oscillators; carry (z, y), each [*B, H], output y.

    Args:
      in_features: size F of the input.
      hidden_features: number H of oscillators.
      step_size: Δt.
      frequency: γ, the square of the angular frequency.
      damping: ε.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Attributes:
      recurrent_kernel: U, from positions [H, H].
      velocity_kernel: V, from velocities [H, H].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import CoRNNCell
      >>> cell = CoRNNCell(3, 8, rngs=nnx.Rngs(0))
      >>> (z, y), out = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> z.shape, y.shape, out.shape
      ((5, 8), (5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("force",)
    carry_names: ClassVar[tuple[str, ...]] = ("z", "y")

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        step_size: float = 0.1,
        frequency: float = 1.0,
        damping: float = 1.0,
        **options: Unpack[CellOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        for name, value in (
            ("step_size", step_size),
            ("frequency", frequency),
            ("damping", damping),
        ):
            checks.positive(name, value)
        self.step_size = step_size
        self.frequency = frequency
        self.damping = damping
        init = options.get("recurrent_kernel_init") or self.default_recurrent_kernel_init()
        shape = (hidden_features, hidden_features)
        self.velocity_kernel = nnx.Param(init(options["rngs"].params(), shape, self.dtype))

    def mix(self, carry: OscillatorCarry) -> Float[Array, "*B H"]:
        """Return U y + V z."""
        z, y = carry
        return y @ self.recurrent_kernel[...] + z @ self.velocity_kernel[...]

    def update(
        self, carry: OscillatorCarry, drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> OscillatorCarry:
        """Return (z', y')."""
        z, y = carry
        force = jnp.tanh(drive + pull) - self.frequency * y - self.damping * z
        z = z + self.step_size * force
        return z, y + self.step_size * z
