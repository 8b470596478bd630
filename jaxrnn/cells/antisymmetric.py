"""AntisymmetricRNN: an Euler step of a differential equation whose linear part neither grows nor decays.

    dh/dt = tanh((A − γ I) h + W x + b),        A = −Aᵀ
    h' = h + ε tanh((A − γ I) h + W x + b)
    y  = h'

Chang, Chen, Haber & Chi, "AntisymmetricRNN: A Dynamical System View on Recurrent Neural Networks", ICLR
2019. The equation's Jacobian is diag(φ')(A − γ I). Without diffusion (γ = 0) it is similar to a
skew-symmetric matrix, so every eigenvalue is imaginary for any weights. The step's Jacobian I + ε diag(φ') A
then has eigenvalues 1 + iεω, just outside the unit circle. The diffusion γ compensates for this: it moves the
real parts to between −γ max φ' and −γ min φ'.

Weakness: imaginary eigenvalues at every step imply nothing about products of different steps, and ε limits
how much one step can write.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep
from jaxrnn.cells.weights import SkewSymmetric
from jaxrnn.typing import Initializer


class AntisymmetricCell(InputWeights, SplitStep):
    """Antisymmetric cell; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      step_size: ε.
      diffusion: γ; 0 for no diffusion.
      recurrent_kernel_init: initialiser of the entries of A above the diagonal.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      recurrent_kernel: A, a `weights.SkewSymmetric` of H (H − 1) / 2 parameters.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import AntisymmetricCell
      >>> cell = AntisymmetricCell(3, 8, rngs=nnx.Rngs(0))
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
        diffusion: float = 0.01,
        recurrent_kernel_init: Initializer = jax.nn.initializers.lecun_normal(),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.positive("step_size", step_size)
        checks.not_negative("diffusion", diffusion)
        self.step_size = step_size
        self.diffusion = diffusion
        self.recurrent_kernel = SkewSymmetric(
            hidden_features,
            init=recurrent_kernel_init,
            param_dtype=self.dtype,
            key=options["rngs"].params(),
        )

    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
        """Return (A − γ I) h."""
        return carry @ self.recurrent_kernel[...] - self.diffusion * carry

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> Float[Array, "*B H"]:
        """Return h + ε tanh(drive + pull)."""
        return carry + self.step_size * jnp.tanh(drive + pull)
