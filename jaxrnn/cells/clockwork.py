"""The Clockwork RNN: groups of units, each of which is updated with its own period.

    h'_g = tanh(W_g x + Σ_{k ≥ g} U_gk h_k + b_g)     where t mod T_g = 0, otherwise h'_g = h_g
    y    = h'

Koutník, Greff, Gomez & Schmidhuber, "A Clockwork RNN", ICML 2014. Groups are ordered by period, and a group
reads itself and the slower groups. A slow group holds its state between updates, so over a lag of T its
gradient is a product of T / T_g Jacobians instead of T. The periods are fixed in advance, and a slow group
does not read inputs between its updates.

Time is part of the state: each unit's clock counts the steps to its next update. All units are updated at the
first step. The clock depends on nothing else and has no derivative: its rows and columns of a step Jacobian
are zero.
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
      hidden_features: number H of units, divided among the groups as evenly as possible.
      periods: T_g in steps, increasing; with fewer units than periods the slowest groups are empty.
      recurrent_kernel_init: initialiser of the recurrent matrix [H, H]; the blocks by which a slower group
        would read a faster one are not used.
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
        """Return the clocks after one step, and h' with the units updated whose clock is at 0."""
        clock, h = carry
        clock = jax.lax.stop_gradient(clock)
        ticks = clock < 0.5
        wait = everywhere(jnp.asarray(self.periods, clock.dtype) - 1, clock)
        return jnp.where(ticks, wait, clock - 1), jnp.where(ticks, jnp.tanh(drive + pull), h)
