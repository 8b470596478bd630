"""The Clockwork RNN: groups of units that tick at periods of their own.

    h'_g = tanh(W_g x + Σ_{k ≥ g} U_gk h_k + b_g)     where t mod T_g = 0, otherwise h'_g = h_g
    y    = h'

Koutník, Greff, Gomez & Schmidhuber, "A Clockwork RNN", ICML 2014. Groups are ordered by period; a group hears
itself and the slower ones. A slow group holds its state between ticks, so over a lag of T its gradient passes
T / T_g Jacobians rather than T. The periods are fixed beforehand, and whatever falls between the ticks of a
slow group it never sees.

Time is part of the state: each unit's clock counts the steps to its next tick. All tick at the first step.
The clock cannot be influenced and has no derivative: its rows and columns of a step Jacobian are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import InputOptions, InputWeights, SplitStep, everywhere
from jaxrnn.cells.weights import BlockTriangular
from jaxrnn.typing import Initializer

ClockworkCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class ClockworkCell(InputWeights, SplitStep):
    """Clockwork cell; carry (clock, h), each [*B, H], output h.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units, dealt to the groups as evenly as it goes.
      periods: T_g in steps, rising; with fewer units than periods the slowest go without.
      recurrent_kernel_init: initialiser of the recurrent matrix [H, H], of which the blocks that a slower
        group would read from a faster one are left out.
      options: initialisers, ``param_dtype`` and ``rngs``, as in `InputWeights`.

    Attributes:
      recurrent_kernel: `weights.BlockTriangular`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import ClockworkCell
      >>> cell = ClockworkCell(3, 8, periods=(1, 4), rngs=nnx.Rngs(0))
      >>> (clock, h), y = cell(cell.initialize_carry((3,)), jnp.ones(3))
      >>> clock.tolist()
      [0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0]
    """

    gates: ClassVar[tuple[str, ...]] = ("hidden",)
    carry_names: ClassVar[tuple[str, ...]] = ("clock", "h")
    own_carry: ClassVar[tuple[str, ...]] = ("clock",)

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        periods: Sequence[int] = (1, 2, 4, 8),
        recurrent_kernel_init: Initializer = initializers.glorot(),
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        periods = tuple(periods)
        for period in periods:
            checks.count("periods", period)
        if not periods or sorted(set(periods)) != list(periods):
            checks.refuse("periods", periods, "rising periods, at least one")
        countable = 2 ** (jnp.finfo(self.dtype).nmant + 1)
        if periods[-1] > countable:
            checks.refuse(
                "periods", periods, f"at most {countable}: {self.dtype} counts no further"
            )
        dealt = np.array_split(np.arange(hidden_features), len(periods))
        group = [g for g, units in enumerate(dealt) for _ in units]
        self.periods = tuple(periods[g] for g in group)
        self.recurrent_kernel = BlockTriangular(
            group,
            init=recurrent_kernel_init,
            param_dtype=self.dtype,
            key=options["rngs"].params(),
        )

    def mix(self, carry: ClockworkCarry) -> Float[Array, "*B H"]:
        """Return U h."""
        _, h = carry
        return h @ self.recurrent_kernel[...]

    def update(
        self, carry: ClockworkCarry, drive: Float[Array, "*B H"], pull: Float[Array, "*B H"]
    ) -> ClockworkCarry:
        """Return the clocks one step on, and h' where they have run down."""
        clock, h = carry
        clock = jax.lax.stop_gradient(clock)
        ticks = clock < 0.5
        wait = everywhere(jnp.asarray(self.periods, clock.dtype) - 1, clock)
        return jnp.where(ticks, wait, clock - 1), jnp.where(ticks, jnp.tanh(drive + pull), h)
