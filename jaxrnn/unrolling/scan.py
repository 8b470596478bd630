"""The reference: one step after another, by ``lax.scan``.

Every other method is held to this one, forward and backward. It works for any step, under any
transformation (forward mode and Hessians too), and keeps every carry. Its weakness is speed and
memory: the backward pass stores what each step computed and adds to a weight-shaped gradient at each
of them.
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
    """``lax.scan`` over the steps.

    Args:
      unroll: steps per iteration of the compiled loop; more costs compile time.
    """

    unroll: int = 1

    def __post_init__(self):
        """Refuse a loop of no steps."""
        checks.count("unroll", self.unroll)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: Size
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        step = framed_step(cell, initial)

        def record(carry, frame):
            carry, y = step(carry, frame)
            return carry, (carry, y)

        # A length that ``jax.export`` leaves open is to be read off the frames.
        given = None if jax.tree.leaves(frames) else length
        last, (carries, outputs) = jax.lax.scan(
            record, carry, frames, length=given, unroll=self.unroll
        )
        return Unrolled(outputs=outputs, carry=last, carries=carries, method=self)
