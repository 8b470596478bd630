"""The LSTM: the cell state c is updated by addition, and not multiplied by a matrix.

    i, f, g, o = W x + U h + b
    c' = σ(f) c + σ(i) tanh(g)
    h' = σ(o) tanh(c')
    y  = h'

Hochreiter & Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al. 2000. Along c the
gradient is multiplied by σ(f) alone: it is preserved as long as the forget gate stays open, and decays as
∏ σ(f) otherwise. The bias of f therefore determines the initial memory of the network. It starts at 1
(Jozefowicz et al. 2015); `LSTMCell.chrono` spreads it over a range of lags. The carry is (c, h), as in Flax,
and both are state: a Jacobian over h alone misses the memory.

In `PeepholeLSTMCell` the gates also read the cell state, each unit its own entry (Gers & Schmidhuber 2000):
the input and forget gates read c, the output gate reads c'. `ProjectedLSTMCell` has a shorter
h = P (σ(o) tanh(c')), so that many cells need few recurrent weights (Sak, Senior & Beaufays 2014, whose cells
also have peepholes; these have none, as in PyTorch).
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import CellOptions, DenseCell, InputOptions, InputWeights, everywhere
from jaxrnn.typing import Initializer, Size

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

    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return biases of 1 for the forget gate and 0 elsewhere."""
        return cls.forget_bias(1.0)

    @classmethod
    def forget_bias(cls, value: float) -> Initializer:
        """Return an initialiser of biases: `value` for the forget gate and 0 for the others."""
        return initializers.constant_per_gate((0.0, value, 0.0, 0.0))

    @classmethod
    @checked
    def chrono(cls, max_lag: float) -> Initializer:
        """Return an initialiser: forget biases log U(1, max_lag − 1), input biases their negative, others 0.

        Tallec & Ollivier 2018.
        """
        return initializers.chrono(max_lag, signs=(-1.0, 1.0, 0.0, 0.0))

    def update(
        self, carry: LSTMCarry, drive: Float[Array, "*B P"], pull: Float[Array, "*B P"]
    ) -> LSTMCarry:
        """Return (c', h')."""
        c, _ = carry
        i, f, g, o = jnp.split(drive + pull, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return c, sigmoid(o) * jnp.tanh(c)


class PeepholeLSTMCell(DenseCell):
    """LSTM cell whose gates read the cell state; carry (c, h), each [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `DenseWeights`; by default the bias
        is 1 for the forget gate and 0 elsewhere.

    Attributes:
      peepholes: weights from c to input and forget gate and from c' to the output gate [3·H]; start at 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import PeepholeLSTMCell
      >>> cell = PeepholeLSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> (c, h), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> c.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = LSTMCell.gates
    carry_names: ClassVar[tuple[str, ...]] = LSTMCell.carry_names

    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return the biases of `LSTMCell`."""
        return LSTMCell.default_bias_init()

    @checked
    def __init__(self, in_features: int, hidden_features: int, **options: Unpack[CellOptions]):
        super().__init__(in_features, hidden_features, **options)
        self.peepholes = nnx.Param(jnp.zeros((3 * hidden_features,), self.dtype))

    def mix(self, carry: LSTMCarry) -> Float[Array, "*B P"]:
        """Return U h plus the peephole terms of input and forget gate, and the output gate's peepholes."""
        c, h = carry
        p_i, p_f, p_o = (everywhere(p, c) for p in jnp.split(self.peepholes[...], 3))
        seen = jnp.concatenate([p_i * c, p_f * c, jnp.zeros_like(c), jnp.zeros_like(c)], axis=-1)
        return jnp.concatenate([h @ self.recurrent_kernel[...] + seen, p_o], axis=-1)

    def update(
        self, carry: LSTMCarry, drive: Float[Array, "*B D"], pull: Float[Array, "*B P"]
    ) -> LSTMCarry:
        """Return (c', h')."""
        c, _ = carry
        gates, p_o = jnp.split(pull, [4 * self.hidden_features], axis=-1)
        i, f, g, o = jnp.split(drive + gates, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return c, sigmoid(o + p_o * c) * jnp.tanh(c)


class ProjectedLSTMCell(InputWeights):
    """LSTM cell with a projected output; carry (c [*B, H], h [*B, Y]), output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of cells.
      projection_features: size Y of h; by default half of H.
      recurrent_kernel_init: initialiser of each gate's recurrent block [Y, H].
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`; by default the bias
        is 1 for the forget gate and 0 elsewhere.

    Attributes:
      recurrent_kernel: recurrent weights [Y, 4·H].
      projection: P, from H cells to Y features [H, Y].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import ProjectedLSTMCell
      >>> cell = ProjectedLSTMCell(3, 8, projection_features=2, rngs=nnx.Rngs(0))
      >>> (c, h), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> c.shape, y.shape
      ((5, 8), (5, 2))
    """

    gates: ClassVar[tuple[str, ...]] = LSTMCell.gates
    carry_names: ClassVar[tuple[str, ...]] = LSTMCell.carry_names

    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return the biases of `LSTMCell`."""
        return LSTMCell.default_bias_init()

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        projection_features: int | None = None,
        recurrent_kernel_init: Initializer = initializers.glorot(),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        if projection_features is None:
            projection_features = max(1, hidden_features // 2)
        checks.count("projection_features", projection_features)
        self.projection_features = projection_features
        rngs, (y, h) = options["rngs"], (self.projection_features, hidden_features)
        self.recurrent_kernel = nnx.Param(
            initializers.per_gate(recurrent_kernel_init, rngs.params(), (y, h), 4, self.dtype)
        )
        self.projection = nnx.Param(initializers.glorot()(rngs.params(), (h, y), self.dtype))

    @property
    def out_features(self) -> int:
        """Number Y of features of the output."""
        return self.projection_features

    @checked
    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> tuple[Float[Array, "*B H"], Float[Array, "*B Y"]]:
        """Return the zero carry (c [*B, H], h [*B, Y]) for inputs of shape [*B, F]; `rngs` is not used."""
        del rngs
        batch = input_shape[:-1]
        sizes = (self.hidden_features, self.projection_features)
        c, h = (jnp.zeros((*batch, size), self.dtype) for size in sizes)
        return c, h

    def step(
        self,
        carry: tuple[Float[Array, "*B H"], Float[Array, "*B Y"]],
        x: Float[Array, "*B F"],
    ) -> tuple[tuple[Float[Array, "*B H"], Float[Array, "*B Y"]], Float[Array, "*B Y"]]:
        """Return ((c', h'), h')."""
        c, h = carry
        i, f, g, o = jnp.split(self.project(x) + h @ self.recurrent_kernel[...], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = (sigmoid(o) * jnp.tanh(c)) @ self.projection[...]
        return (c, h), h
