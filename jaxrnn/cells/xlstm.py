"""xLSTM: cells with exponential gates; the memory of the mLSTM is a matrix.

sLSTM, with a normaliser n in addition to the cell state c:

    z = tanh(z̃),  i = exp(ĩ),  f = σ(f̃),  o = σ(õ),        (z̃, ĩ, f̃, õ) = W x + R h + b
    c' = f c + i z,   n' = f n + i
    h' = o c' / n'

mLSTM, without recurrent weights, with a matrix C that stores values v under keys k:

    C' = f C + i v kᵀ,   n' = f n + i k,        i = exp(ĩ),  f = σ(f̃)   one number each
    q = W_q x + b_q,   k = (W_k x + b_k) / √H,   v = W_v x + b_v,   õ = W_o x + b_o
    y  = σ(õ) · C' q / max(|n'ᵀ q|, 1)

Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024. An exponential input gate can outweigh everything
stored before, so the memory can be revised. The carry holds c, n and C divided by e^m, where m follows the
largest exponent, so that nothing overflows. m cancels from every output.

Choices: the forget gate is σ, one of the two that the paper allows. The sLSTM's R is block-diagonal with
`heads` blocks. The mLSTM has one head, and √H divides its keys' bias too, which the paper adds afterwards.
Projections and norms are not part of the cells but of the blocks around them.

Weakness: the state of the mLSTM grows with H², and with it the cost of every analysis.
"""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep, affine
from jaxrnn.typing import Initializer, Size

ScalarCarry = tuple[
    Float[Array, "*B H"], Float[Array, "*B H"], Float[Array, "*B H"], Float[Array, "*B H"]
]
MatrixCarry = tuple[Float[Array, "*B H H"], Float[Array, "*B H"], Float[Array, "*B 1"]]


class SLSTMCell(InputWeights, SplitStep):
    """sLSTM cell; carry (c, n, m, h), each [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      heads: number N of blocks of units; a unit receives recurrent input only from its own block.
      recurrent_kernel_init: initialiser of each head's and gate's block [H/N, H/N].
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`; by default the bias
        is 1 for the forget gate and 0 elsewhere.

    Attributes:
      recurrent_kernel: R by head [N, H/N, 4·H/N].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import SLSTMCell
      >>> cell = SLSTMCell(3, 8, heads=2, rngs=nnx.Rngs(0))
      >>> (c, n, m, h), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> c.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("cell", "input", "forget", "output")
    carry_names: ClassVar[tuple[str, ...]] = ("c", "n", "m", "h")
    own_carry: ClassVar[tuple[str, ...]] = ("c", "n", "m")

    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return biases of 1 for the forget gate and 0 elsewhere."""
        return initializers.constant_per_gate((0.0, 0.0, 1.0, 0.0))

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        heads: int = 1,
        recurrent_kernel_init: Initializer = initializers.orthogonal(),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        checks.count("heads", heads)
        if hidden_features % heads:
            checks.refuse("heads", heads, f"a divisor of hidden_features, {hidden_features}")
        self.heads = heads
        size = hidden_features // heads

        def of_head(key):
            return initializers.per_gate(recurrent_kernel_init, key, (size, size), 4, self.dtype)

        keys = jax.random.split(options["rngs"].params(), heads)
        heads_drawn = [of_head(key) for key in keys]
        self.recurrent_kernel = nnx.Param(
            initializers.on_drawn(lambda *blocks: jnp.stack(blocks), *heads_drawn)
        )

    def mix(self, carry: ScalarCarry) -> Float[Array, "*B P"]:
        """Return R h, gates side by side."""
        *_, h = carry
        heads, size = self.heads, self.hidden_features // self.heads
        rows = math.prod(h.shape[:-1])
        by_head = jnp.moveaxis(h.reshape(rows, heads, size), 1, 0)
        pull = (by_head @ self.recurrent_kernel[...]).reshape(heads, rows, 4, size)
        return jnp.moveaxis(pull, 0, 2).reshape(*h.shape[:-1], 4 * heads * size)

    def update(
        self, carry: ScalarCarry, drive: Float[Array, "*B P"], pull: Float[Array, "*B P"]
    ) -> ScalarCarry:
        """Return (c', n', m', h')."""
        c, n, m, _ = carry
        z, log_i, f, o = jnp.split(drive + pull, 4, axis=-1)
        log_f = log_sigmoid(f)
        # Where nothing is stored yet, m = −∞, so that the first input gate sets the scale, however small.
        m = jnp.where(n == 0, jnp.finfo(m.dtype).min, m)
        new_m = jnp.maximum(log_f + m, log_i)
        i, f = jnp.exp(log_i - new_m), jnp.exp(log_f + m - new_m)
        c = f * c + i * jnp.tanh(z)
        n = f * n + i
        return c, n, new_m, sigmoid(o) * c / n


class MLSTMCell(InputWeights):
    """mLSTM cell of one head; carry (C [*B, H, H], n [*B, H], m [*B, 1]), output [*B, H].

    Args:
      in_features: size F of the input.
      hidden_features: size H of keys, values and queries.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`; `bias_init` does not
        apply to the input and forget gates.

    Attributes:
      kernel: weights of query, key, value and output gate [F, 4·H].
      gate_kernel: weights of the input and the forget gate [F, 2].
      gate_bias: their biases [2]; 0 and 1 at the start.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import MLSTMCell
      >>> cell = MLSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> (memory, n, m), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> memory.shape, y.shape
      ((5, 8, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("query", "key", "value", "output")
    carry_names: ClassVar[tuple[str, ...]] = ("C", "n", "m")
    own_carry: ClassVar[tuple[str, ...]] = ("C", "n", "m")

    @checked
    def __init__(self, in_features: int, hidden_features: int, **options: Unpack[InputOptions]):
        super().__init__(in_features, hidden_features, **options)
        init = options.get("kernel_init") or initializers.glorot()
        key = options["rngs"].params()
        self.gate_kernel = nnx.Param(init(key, (in_features, 2), self.dtype))
        self.gate_bias = nnx.Param(jnp.array([0, 1], self.dtype))

    @checked
    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> MatrixCarry:
        """Return the zero carry for inputs of shape [*B, F]; `rngs` is not used."""
        del rngs
        batch, h = input_shape[:-1], self.hidden_features
        memory, n, m = (jnp.zeros((*batch, *shape), self.dtype) for shape in ((h, h), (h,), (1,)))
        return memory, n, m

    def step(
        self, carry: MatrixCarry, x: Float[Array, "*B F"]
    ) -> tuple[MatrixCarry, Float[Array, "*B H"]]:
        """Return ((C', n', m'), y)."""
        memory, n, m = carry
        q, k, v, o = jnp.split(self.project(x), 4, axis=-1)
        k = k * self.hidden_features**-0.5
        log_i, f = jnp.split(affine(x, self.gate_kernel[...], self.gate_bias[...]), 2, axis=-1)
        log_f = log_sigmoid(f)
        new_m = jnp.maximum(log_f + m, log_i)
        i, f = jnp.exp(log_i - new_m), jnp.exp(log_f + m - new_m)
        memory = f[..., None] * memory + (i * v)[..., None] * k[..., None, :]
        n = f * n + i * k
        found = jnp.einsum("...ij,...j->...i", memory, q)
        weight = jnp.abs(jnp.sum(n * q, axis=-1, keepdims=True))
        # C' q e^m / max(|n' q| e^m, 1), both scaled by the same factor so that no exponent is positive.
        scale, one = jnp.exp(jnp.minimum(new_m, 0)), jnp.exp(-jnp.maximum(new_m, 0))
        least = jnp.maximum(one, jnp.finfo(one.dtype).tiny)
        y = sigmoid(o) * found * scale / jnp.maximum(weight * scale, least)
        return (memory, n, new_m), y
