"""The LSTM: a cell state c that is added to, not multiplied through a matrix.

    i, f, g, o = W x + U h + b
    c' = σ(f) c + σ(i) tanh(g)
    h' = σ(o) tanh(c')
    y  = h'

Hochreiter & Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al. 2000. Along c
the gradient is multiplied by σ(f) alone: it is kept as long as the forget gate stays open and fades
as ∏ σ(f) otherwise, so the bias of f decides the first memory of a fresh network. It starts at 1
(Jozefowicz et al. 2015); `LSTMCell.chrono` spreads it over a range of lags. The carry is (c, h), as in
Flax, and both are state: a Jacobian over h alone misses the memory.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn.cells import initializers
from jaxrnn.cells.base import DenseCell
from jaxrnn.typing import Initializer

LSTMCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class LSTMCell(DenseCell):
    """LSTM cell; carry (c, h), each [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`; by default the bias
        is 1 for the forget gate and 0 elsewhere.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import LSTMCell
      >>> cell = LSTMCell(3, 8, bias_init=LSTMCell.chrono(784), rngs=nnx.Rngs(0))
      >>> (c, h), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> c.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("input", "forget", "cell", "output")
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")
    default_bias_init: ClassVar[Initializer] = staticmethod(
        initializers.constant_per_gate((0.0, 1.0, 0.0, 0.0))
    )

    @staticmethod
    def forget_bias(value: float) -> Initializer:
        """Biases with `value` for the forget gate and 0 for the others."""
        return initializers.constant_per_gate((0.0, value, 0.0, 0.0))

    @staticmethod
    def chrono(max_lag: float) -> Initializer:
        """Forget biases log U(1, max_lag − 1), input biases their negative (Tallec & Ollivier 2018)."""
        return initializers.chrono(max_lag, signs=(-1.0, 1.0, 0.0, 0.0))

    def update(
        self, carry: LSTMCarry, drive: Float[Array, "*B P"], pull: Float[Array, "*B P"]
    ) -> LSTMCarry:
        """Return (c', h')."""
        c, _ = carry
        i, f, g, o = jnp.split(drive + pull, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return c, sigmoid(o) * jnp.tanh(c)
