"""The orthogonal cell: its recurrent matrix is orthogonal by construction, and preserves norms.

    h' = modReLU(exp(A) h + W x, b)          A = −Aᵀ
    y  = h'

Lezcano-Casado & Martínez-Rubio, "Cheap Orthogonal Constraints in Neural Networks", ICML 2019 (expRNN). The
exponential of a skew-symmetric matrix is orthogonal for any entries, so plain gradient descent on these never
leaves the orthogonal matrices. At the start b = 0, where modReLU is the identity (`modrelu`): the network is
linear, and every singular value of its propagator is 1 at every lag. The same holds for b > 0, since the
slope of a real modReLU is 1 except for its jump at zero. With b < 0 some units are dead at some steps, and
their content is lost. Gradients never grow.

Weakness: exp(A) has determinant 1, so reflections cannot be represented. A state that never forgets fills up:
with noisy inputs, a state of constant norm has no room for new content.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import SplitStep, everywhere, product
from jaxrnn.cells.modrelu import modrelu
from jaxrnn.cells.weights import Orthogonal
from jaxrnn.typing import Initializer


class OrthogonalCell(SplitStep):
    """Orthogonal cell by the exponential map; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      kernel_init: initialiser of the input weights [F, H].
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      kernel: input weights [F, H].
      recurrent_kernel: `weights.Orthogonal`, computed from H (H − 1) / 2 parameters.
      threshold: b [H], starts at 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import OrthogonalCell
      >>> cell = OrthogonalCell(3, 8, rngs=nnx.Rngs(0))
      >>> matrix = cell.recurrent_kernel[...]
      >>> bool(jnp.allclose(matrix @ matrix.T, jnp.eye(8), atol=1e-5))
      True
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Initializer = initializers.glorot(),
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        super().__init__(in_features, hidden_features, rngs=rngs)
        shape = (in_features, hidden_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.recurrent_kernel = Orthogonal(
            hidden_features, param_dtype=param_dtype, key=rngs.params()
        )
        self.threshold = nnx.Param(jnp.zeros((hidden_features,), param_dtype))

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B H"]:
        """Return W x."""
        return product(x, self.kernel[...])

    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B P"]:
        """Return exp(A) h and b, concatenated."""
        turned = carry @ self.recurrent_kernel[...]
        return jnp.concatenate([turned, everywhere(self.threshold[...], carry)], axis=-1)

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B P"]
    ) -> Float[Array, "*B H"]:
        """Return modReLU(pull + drive)."""
        del carry  # enters through the pull alone
        turned, threshold = jnp.split(pull, 2, axis=-1)
        (moved,) = modrelu((turned + drive,), threshold)
        return moved
