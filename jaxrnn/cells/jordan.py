"""The Jordan network: the output is fed back, not the hidden layer.

    h' = tanh(W x + U y + b)
    y' = φ(V h' + d)

Jordan 1986, "Serial order: a parallel distributed processing approach", with the output of the preceding step
as the only context. In the paper the state units also decay, s' = α s + y; this is left out here, as in most
textbooks. The carry is the output y [*B, Y]: the network remembers its last output and nothing else. With as
many outputs as units it is an Elman network over y whose recurrent map has a hidden layer.

Weakness: the network cannot keep anything that is not part of its output. It cannot represent a state that
needs more than Y numbers, or that differs in form from the targets, however large H is. Its Jacobian,
∂y'/∂y = diag(φ') V diag(1 − h'²) U, has two matrices per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import InputOptions, InputWeights, affine
from jaxrnn.typing import Initializer, Size


class JordanCell(InputWeights):
    """Jordan cell; carry y [*B, Y], output y.

    Args:
      in_features: size F of the input.
      hidden_features: number H of hidden units.
      out_features: size Y of the output, which is fed back; by default H.
      activation_fn: φ, elementwise; tanh by default.
      recurrent_kernel_init: initialiser of U [Y, H]; by default orthogonal.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      recurrent_kernel: U, from the last output to the hidden units [Y, H].
      output_kernel: V, from the hidden units to the output [H, Y]; initialised as in Glorot & Bengio 2010.
      output_bias: d [Y]; starts at 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import JordanCell
      >>> cell = JordanCell(3, 8, out_features=2, rngs=nnx.Rngs(0))
      >>> carry, y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> carry.shape, y.shape
      ((5, 2), (5, 2))
    """

    gates: ClassVar[tuple[str, ...]] = ("hidden",)
    carry_names: ClassVar[tuple[str, ...]] = ("y",)

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        out_features: int | None = None,
        activation_fn: Callable[[Any], Any] = jnp.tanh,
        recurrent_kernel_init: Initializer | None = None,
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        outputs = hidden_features if out_features is None else out_features
        checks.count("out_features", outputs)
        checks.function("activation_fn", activation_fn)
        self.fed_back = outputs
        self.activation_fn = activation_fn
        rngs, h = options["rngs"], hidden_features
        init = recurrent_kernel_init or initializers.orthogonal()
        self.recurrent_kernel = nnx.Param(
            initializers.per_gate(init, rngs.params(), (outputs, h), 1, self.dtype)
        )
        self.output_kernel = nnx.Param(
            initializers.glorot()(rngs.params(), (h, outputs), self.dtype)
        )
        self.output_bias = nnx.Param(jnp.zeros((outputs,), self.dtype))

    @property
    def out_features(self) -> int:
        """Number Y of features of the output."""
        return self.fed_back

    @checked
    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> Float[Array, "*B Y"]:
        """Return the zero carry y [*B, Y] for inputs of shape [*B, F]; `rngs` is not used."""
        del rngs
        return jnp.zeros((*input_shape[:-1], self.fed_back), self.dtype)

    def step(
        self, carry: Float[Array, "*B Y"], x: Float[Array, "*B F"]
    ) -> tuple[Float[Array, "*B Y"], Float[Array, "*B Y"]]:
        """Return (y', y')."""
        hidden = jnp.tanh(self.project(x) + carry @ self.recurrent_kernel[...])
        y = self.activation_fn(affine(hidden, self.output_kernel[...], self.output_bias[...]))
        return y, y
