"""RG-LRU: a linear recurrence whose decay depends on the input at every step.

    r  = σ(W_r x + b_r)                     how much of the decay to apply
    i  = σ(W_i x + b_i)
    a  = σ(Λ)^(c r),   c = 8
    h' = a h + √(1 − a²) (i (W x + b))
    y  = h'

De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention", 2024. Where r is near 0 the unit
neither forgets nor admits, since √(1 − a²) is then small too; the state has the norm of its inputs. The step
is linear in h, so all steps can be computed at once (`jaxrnn.Associative`), and its Jacobian is the diagonal
a, at most 1. In bfloat16 an a above 0.998 rounds to 1, and such a unit sums up its inputs.

Choices: the gates read the cell's input, as in the paper. There the linear map W is applied before the cell
and keeps the number of features; here W is part of the cell, so that F may differ from H.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import InputOptions, everywhere
from jaxrnn.cells.minimal import InputGatedCell

_SHARPNESS = 8.0  # the paper's c


class RGLRUCell(InputGatedCell):
    """Real-gated linear recurrent unit; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      radius: the decay a at r = 1 starts uniform in this range (least, largest), within 0 and 1.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      log_odds: Λ [H].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.RGLRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.unroll(cell, jnp.ones((20, 5, 3)), method=jaxrnn.Associative()).outputs.shape
      (20, 5, 8)
    """

    gates: ClassVar[tuple[str, ...]] = ("recurrence", "input", "new")

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        radius: tuple[float, float] | Any = (0.9, 0.999),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        least, largest = checks.interval("radius", radius, 1e-6, 1 - 1e-6)
        key = options["rngs"].params()
        decay = jax.random.uniform(key, (hidden_features,), jnp.float32, least, largest)
        log = jnp.log(decay) / _SHARPNESS  # log σ(Λ)
        self.log_odds = nnx.Param((log - jnp.log(-jnp.expm1(log))).astype(self.dtype))

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        """Return a and √(1 − a²) i (W x + b)."""
        r, i, new = self.gate_inputs(x)
        log_a = _SHARPNESS * sigmoid(r) * everywhere(jax.nn.log_sigmoid(self.log_odds[...]), r)
        # Where log a rounds to 0 the square root has no finite derivative. The factor of that derivative is
        # zero there, so the root is replaced by 0.
        fades = log_a < 0
        gain = jnp.where(fades, jnp.sqrt(-jnp.expm1(2 * jnp.where(fades, log_a, -1))), 0)
        return jnp.concatenate([jnp.exp(log_a), gain * sigmoid(i) * new], axis=-1)
