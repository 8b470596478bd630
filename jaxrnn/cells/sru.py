"""SRU: an elementwise recurrence with a highway connection around it.

    f  = σ(W_f x + v_f c + b_f)
    c' = f c + (1 − f)(W x + b)
    r  = σ(W_r x + v_r c + b_r)
    h' = r c' + (1 − r)(W_s x + b_s)
    y  = h'

Lei, Zhang, Wang, Dai & Artzi, "Simple Recurrent Units for Highly Parallelizable Recurrence", EMNLP 2018. All
products read the input, so they are computed as one product for the whole sequence, and the operations left
in the loop are elementwise. The peepholes v_f, v_r make the step nonlinear in c, so it is cheap but not
parallel in time.

Choices: the highway uses W_s x where the paper uses x, as the authors' code does where sizes differ. The
paper's constant α is omitted, since W_s can contain it. Candidate and highway have biases too, which start at
0. The carry is (c, h), where h is only read out: no gate reads it.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn.annotations import checked
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep, everywhere

SRUCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class SRUCell(InputWeights, SplitStep):
    """Simple recurrent unit; carry (c, h), each [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      peepholes: v_f and v_r [2·H]; start at 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import SRUCell
      >>> cell = SRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> (c, h), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> c.shape, y.shape
      ((5, 8), (5, 8))
    """

    gates: ClassVar[tuple[str, ...]] = ("forget", "reset", "new", "highway")
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")

    @checked
    def __init__(self, in_features: int, hidden_features: int, **options: Unpack[InputOptions]):
        super().__init__(in_features, hidden_features, **options)
        self.peepholes = nnx.Param(jnp.zeros((2 * hidden_features,), self.dtype))

    def mix(self, carry: SRUCarry) -> Float[Array, "*B P"]:
        """Return v_f c and v_r c."""
        c, _ = carry
        return jnp.concatenate([c, c], axis=-1) * everywhere(self.peepholes[...], c)

    def update(
        self, carry: SRUCarry, drive: Float[Array, "*B D"], pull: Float[Array, "*B P"]
    ) -> SRUCarry:
        """Return (c', h')."""
        c, _ = carry
        drive_f, drive_r, new, highway = jnp.split(drive, 4, axis=-1)
        pull_f, pull_r = jnp.split(pull, 2, axis=-1)
        f, r = sigmoid(drive_f + pull_f), sigmoid(drive_r + pull_r)
        c = f * c + (1 - f) * new
        return c, r * c + (1 - r) * highway
