"""The reference method: one step after another, by ``lax.scan``.

Every other method is tested against this one, in the forward and the backward pass. It works for any step,
under any transformation (forward mode and Hessians too), and keeps every carry. Its weakness is speed and
memory: the residuals of the backward pass are all that each step computed, and every step adds to a gradient
of the weights' shape.
"""

from __future__ import annotations

import dataclasses

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Carry, Size, Step
from jaxrnn.unrolling.record import Frames, Method, Unrolled, framed_step


@checked
@dataclasses.dataclass(frozen=True)
class Scan(Method):
    """The method that runs ``lax.scan`` over the steps.

    Args:
      unroll: steps per iteration of the compiled loop; more steps cost compile time.
    """

    unroll: int = 1

    def __post_init__(self):
        """Require at least one step per iteration."""
        checks.count("unroll", self.unroll)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: Size
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        step = framed_step(cell, initial)

        def record(carry, frame):
            carry, y = step(carry, frame)
            return carry, (carry, y)

        # Under ``jax.export`` the length may be symbolic, so ``lax.scan`` has to infer it from the frames.
        given = None if jax.tree.leaves(frames) else length
        last, (carries, outputs) = jax.lax.scan(
            record, carry, frames, length=given, unroll=self.unroll
        )
        return Unrolled(outputs=outputs, carry=last, carries=carries, method=self)
