"""A cell's trajectory through state space, stored as data for the analyses.

The state s is the *whole* carry: its leaves flattened and concatenated in pytree order. For an LSTM it is
(c, h), never h alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import begin, compiled, flat_state, shapes_of_one, step_of
from jaxrnn.typing import Carry, Step, StepLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """States visited by a cell, and the inputs that drove it.

    Attributes:
      xs: inputs [T, *B, F], or None for an autonomous system.
      carries: carries, leaves [T + 1, *B, H]; entry 0 is the initial carry, entry t the carry after step t.
      outputs: outputs [T, *B, Y].
      batch: the batch axes *B.
    """

    xs: Any
    carries: Carry
    outputs: Any
    batch: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def length(self) -> int:
        """Number of steps T."""
        return jax.tree.leaves(self.carries)[0].shape[0] - 1

    @property
    def states(self) -> Inexact[Array, "T1 *B S"]:
        """Flattened states s_0 … s_T, [T + 1, *B, S]."""
        return flat_state(self.carries, 1 + len(self.batch))

    @property
    def before(self) -> Carry:
        """Carries before each step, leaves [T, *B, H]."""
        return jax.tree.map(lambda leaf: leaf[:-1], self.carries)


@checked
def trace(
    cell: StepLike, xs: Any, *, carry: Carry | None = None, length: int | None = None
) -> Trajectory:
    """Run a cell and store every state.

    Args:
      cell: a cell of this package or of Flax, or any function ``(carry, x) -> (carry, y)``.
      xs: inputs [T, *B, F], or None with `length` and `carry`, for an autonomous system.
      carry: initial carry, leaves [*B, H]; by default the cell's own ``initialize_carry``.
      length: number of steps, needed only when `xs` is None.

    Returns:
      A `Trajectory` of T + 1 states.

    Raises:
      InputError: arguments that do not fit, or an input, initial carry, weight or state that is not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.analysis.trace(cell, jnp.ones((20, 4, 3))).states.shape
      (21, 4, 16)
    """
    checks.finite("xs", xs)
    carry, steps, batch = begin(cell, xs, carry, length)
    checks.finite("carry", carry)
    cell = step_of(cell)
    carries, outputs = _run(cell, carry, xs, length=steps, batch=batch)
    checks.finite("cell: its states", carries)
    return Trajectory(xs=xs, carries=carries, outputs=outputs, batch=batch)


@compiled
def _run(
    cell: Step, carry: Carry, xs: Any, *, length: int, batch: tuple[int, ...]
) -> tuple[Carry, Any]:
    step = for_batch(cell, carry, shapes_of_one(xs), batch)

    def record(carry, x):
        moved, y = step(carry, x)
        return moved, (moved, y)

    _, (after, outputs) = jax.lax.scan(record, carry, xs, length=length)
    carries = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), carry, after)
    return carries, outputs
