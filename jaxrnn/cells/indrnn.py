"""IndRNN: every unit receives recurrent input only from itself.

    h' = φ(W x + u h + b)          u a vector, one number per unit
    y  = h'

Li, Li, Cook, Zhu & Gao, "Independently Recurrent Neural Network", CVPR 2018. The step Jacobian is diagonal,
φ' u. With ReLU the gradient over T steps of a unit that stays active is therefore exactly u to the power T.
It is at most 2 where |u| ≤ 2^(1/T), a bound on the weights that is easy to enforce. Units are combined only
in the layer above, so two layers are needed for what one Elman layer does.

Choices: u starts uniform in (0, 1), the paper's initialisation for tasks in which all lags matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep, everywhere
from jaxrnn.typing import Initializer


class IndRNNCell(InputWeights, SplitStep):
    """Independently recurrent cell; carry h [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      activation_fn: φ, elementwise.
      recurrent_init: initialiser of u [H].
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      recurrent_weight: u [H].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import IndRNNCell
      >>> cell = IndRNNCell(3, 8, rngs=nnx.Rngs(0))
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
        activation_fn: Callable[[Any], Any] = jax.nn.relu,
        recurrent_init: Initializer = jax.nn.initializers.uniform(1.0),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        key = options["rngs"].params()
        self.recurrent_weight = nnx.Param(recurrent_init(key, (hidden_features,), self.dtype))
        checks.function("activation_fn", activation_fn)
        self.activation_fn = activation_fn

    def mix(self, carry: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
        """Return u h."""
        return carry * everywhere(self.recurrent_weight[...], carry)

    def update(
        self, carry: Float[Array, "*B H"], drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> Float[Array, "*B H"]:
        """Return φ(drive + pull)."""
        del carry  # enters through the pull alone
        return self.activation_fn(drive + pull)
