"""minGRU and minLSTM: the gates read only the input, so that the step is linear in its state.

    minGRU     h' = (1 − z) h + z n,    z = σ(W_z x + b_z)
    minLSTM    h' = (f h + i n) / (f + i),    f = σ(W_f x + b_f),  i = σ(W_i x + b_i)

    n = W_n x + b_n,   y = h'

Feng, Tung, Ahmed, Bengio & Hajimirsadegh, "Were RNNs All We Needed?", 2024. As the gates do not depend on h,
all steps can be computed at once (`jaxrnn.Associative`). The state is a weighted mean of the initial state
and of candidates, so it cannot leave their range. The step Jacobian is the diagonal 1 − z or f / (f + i), at
most 1. The gradient of a unit over a lag is only the product of its gates, so it may vanish but never
explodes.

In return the cell cannot compute on its state within a layer: it cannot count modulo two, however wide it is
(Merrill, Petty & Sabharwal 2024, "The Illusion of State in State-Space Models"), unless its gates can be
negative.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from jaxrnn.cells.base import InputWeights, SplitStep, affine


class InputGatedCell(InputWeights, SplitStep):
    """A split cell without recurrent weights, linear in its state: h' = a(x) h + b(x).

    The gates depend on the input alone, so a and b are the drive, which is computed for all steps at once.
    """

    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B 0"]:
        """Return an empty pull."""
        return carry[..., :0]

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B D"], pull: Float[Array, "*B 0"]
    ) -> Float[Array, "*B H"]:
        """Return a h + b, where (a, b) is the drive."""
        del pull
        decay, gained = jnp.split(drive, 2, axis=-1)
        return decay * carry + gained

    def gate_inputs(self, x: Float[Array, "*B F"]) -> list[Float[Array, "*B H"]]:
        """Return W x + b of each gate."""
        inputs = affine(x, self.kernel[...], self.bias[...])
        return jnp.split(inputs, len(self.gates), axis=-1)


class MinGRUCell(InputGatedCell):
    """Minimal GRU; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.MinGRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.unroll(cell, jnp.ones((20, 5, 3)), method=jaxrnn.Associative()).outputs.shape
      (20, 5, 8)
    """

    gates: ClassVar[tuple[str, ...]] = ("update", "new")

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        """Return 1 − z and z n."""
        z, n = self.gate_inputs(x)
        return jnp.concatenate([sigmoid(-z), sigmoid(z) * n], axis=-1)


class MinLSTMCell(InputGatedCell):
    """Minimal LSTM; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.MinLSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.unroll(cell, jnp.ones((20, 5, 3)), method=jaxrnn.Associative()).outputs.shape
      (20, 5, 8)
    """

    gates: ClassVar[tuple[str, ...]] = ("forget", "input", "new")

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        """Return f / (f + i) and i n / (f + i)."""
        f, i, n = self.gate_inputs(x)
        # Computed from the logarithms, because both gates may be far below the smallest float.
        excess = log_sigmoid(f) - log_sigmoid(i)
        return jnp.concatenate([sigmoid(excess), sigmoid(-excess) * n], axis=-1)
