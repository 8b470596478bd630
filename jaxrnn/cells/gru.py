"""The GRU: one gate interpolates between the old state and a candidate.

    r = σ(W_r x + U_r h + b_r)
    z = σ(W_z x + U_z h + b_z)
    n = tanh(W_n x + b_n + r (U_n h + v))
    h' = z h + (1 − z) n
    y  = h'

Cho et al. 2014, in the form of cuDNN, PyTorch and Keras (``reset_after``): the reset gate acts *after* the
recurrent product, so all three products are computed as one, and the hidden bias v is inside it. Where z ≈ 1
the gradient passes almost unchanged, and a unit with constant z keeps its state for about 1/(1 − z) steps.
Unlike the LSTM, the GRU cannot keep and admit independently, because z and 1 − z share one gate.

`ResetBeforeGRUCell` uses the paper's order, n = tanh(W_n x + U_n (r h) + b_n). In `OGRUCell` the reset gate
also filters the input of the update gate, z = σ(W_z x + U_z (r h) + b_z). This is our reading of the abstract
of Wang et al. 2019, according to which forgotten content should not disturb the update gate. In both cells
the second product depends on the first, so the step does not split.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import CellOptions, DenseCell, DenseWeights, affine
from jaxrnn.typing import Initializer, multiplies_by


class GRUCell(DenseCell):
    """GRU cell, reset after the product; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Attributes:
      recurrent_bias: v [H], the candidate's bias inside the reset product; starts at 0. Flax's
        ``nnx.GRUCell`` has no such bias, and equals this cell with v = 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import GRUCell
      >>> cell = GRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> h, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> h.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("reset", "update", "new")

    @classmethod
    @checked
    def chrono(cls, max_lag: float) -> Initializer:
        """Return an initialiser: update biases log U(1, max_lag − 1), others 0 (Tallec & Ollivier 2018)."""
        return initializers.chrono(max_lag, signs=(0.0, 1.0, 0.0))

    @checked
    def __init__(self, in_features: int, hidden_features: int, **options: Unpack[CellOptions]):
        super().__init__(in_features, hidden_features, **options)
        self.recurrent_bias = nnx.Param(jnp.zeros((hidden_features,), self.kernel.dtype))

    @multiplies_by("recurrent_kernel")
    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B P"]:
        """Return U h, plus v for the candidate."""
        bias = jnp.pad(self.recurrent_bias[...], (2 * self.hidden_features, 0))
        return affine(carry, self.recurrent_kernel[...], bias)

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B P"], pull: Float[Array, "*B P"]
    ) -> Float[Array, "*B H"]:
        """Return z h + (1 − z) n."""
        drive_r, drive_z, drive_n = jnp.split(drive, 3, axis=-1)
        pull_r, pull_z, pull_n = jnp.split(pull, 3, axis=-1)
        r = sigmoid(drive_r + pull_r)
        z = sigmoid(drive_z + pull_z)
        n = jnp.tanh(drive_n + r * pull_n)
        return z * carry + (1 - z) * n


class ResetBeforeGRUCell(DenseWeights):
    """GRU cell, reset before the product; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import ResetBeforeGRUCell
      >>> cell = ResetBeforeGRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> h, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> h.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("reset", "update", "new")

    def step(
        self, carry: Float[Array, "*B H"], x: Float[Array, "*B F"]
    ) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
        """Return h' as carry and output."""
        drive_r, drive_z, drive_n = jnp.split(self.project(x), 3, axis=-1)
        u_r, u_z, u_n = jnp.split(self.recurrent_kernel[...], 3, axis=-1)
        r = sigmoid(drive_r + carry @ u_r)
        z = sigmoid(drive_z + carry @ u_z)
        n = jnp.tanh(drive_n + (r * carry) @ u_n)
        h = z * carry + (1 - z) * n
        return h, h


class OGRUCell(DenseWeights):
    """Optimised GRU cell, as we read the paper's abstract; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import OGRUCell
      >>> cell = OGRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> h, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> h.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("reset", "update", "new")

    def step(
        self, carry: Float[Array, "*B H"], x: Float[Array, "*B F"]
    ) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
        """Return h' as carry and output."""
        drive_r, drive_zn = jnp.split(self.project(x), [self.hidden_features], axis=-1)
        u_r, u_zn = jnp.split(self.recurrent_kernel[...], [self.hidden_features], axis=-1)
        r = sigmoid(drive_r + carry @ u_r)
        z, n = jnp.split(drive_zn + (r * carry) @ u_zn, 2, axis=-1)
        z = sigmoid(z)
        h = z * carry + (1 - z) * jnp.tanh(n)
        return h, h
