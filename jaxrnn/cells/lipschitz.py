"""Lipschitz RNN: an Euler step of a linear and a nonlinear part, both with constrained spectra.

    dh/dt = A h + tanh(U h + W x + b)
    h' = h + ε (A h + tanh(U h + W x + b))
    A, U = (1 − β)(M + Mᵀ) + β(M − Mᵀ) − γ I          each with its own M
    y  = h'

Erichson, Azencot, Queiruga, Hodgkinson & Mahoney, "Lipschitz Recurrent Neural Networks", ICLR 2021. β blends
a symmetric with a skew-symmetric matrix, and γ moves every eigenvalue to the left. Where A is sufficiently
negative definite compared with the slope of tanh U h, the equation is stable for any input. As with every
Euler method the step is stable only for small ε, and with a small ε a step writes little.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep
from jaxrnn.cells.weights import Blended
from jaxrnn.typing import Initializer


class LipschitzCell(InputWeights, SplitStep):
    """Lipschitz cell; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      step_size: ε.
      blend: β of both matrices, from 0.5 to 1 (skew-symmetric).
      damping: γ of both matrices.
      recurrent_kernel_init: initialiser of each M [H, H].
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      linear: A, a `weights.Blended`.
      recurrent_kernel: U, a `weights.Blended`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import LipschitzCell
      >>> cell = LipschitzCell(3, 8, rngs=nnx.Rngs(0))
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
        step_size: float = 0.1,
        blend: float = 0.75,
        damping: float = 0.001,
        recurrent_kernel_init: Initializer = jax.nn.initializers.normal(0.05),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.positive("step_size", step_size)
        checks.positive("blend", blend)
        if not 0.5 <= blend <= 1:
            checks.refuse("blend", blend, "0.5 to 1")
        checks.not_negative("damping", damping)
        self.step_size = step_size

        def blended():
            return Blended(
                hidden_features,
                blend=blend,
                damping=damping,
                init=recurrent_kernel_init,
                param_dtype=self.dtype,
                key=options["rngs"].params(),
            )

        self.linear = blended()
        self.recurrent_kernel = blended()

    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B P"]:
        """Return A h and U h."""
        both = jnp.concatenate([self.linear[...], self.recurrent_kernel[...]], axis=-1)
        return carry @ both

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B P"]
    ) -> Float[Array, "*B H"]:
        """Return h + ε (A h + tanh(drive + U h))."""
        linear, pull = jnp.split(pull, 2, axis=-1)
        return carry + self.step_size * (linear + jnp.tanh(drive + pull))
