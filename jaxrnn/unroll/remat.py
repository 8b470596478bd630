"""Little memory for long sequences: only the carries at the edges of blocks are kept.

The backward pass of every other method needs arrays of all T steps. Here time is cut into blocks of about
√T steps; forward keeps the carry at each edge and nothing between, and the backward pass runs a block again
before it goes back through it (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"):

    memory   √T carries at the edges + √T steps of one block
    time     one more forward pass

What the loss asks for (outputs of all steps, or carries) is kept of course, whatever the method.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.blocked import Blocked
from jaxrnn.unroll.blocks import even, joined, segments
from jaxrnn.unroll.record import Frames, Method, Unrolled
from jaxrnn.unroll.scan import Scan


@dataclasses.dataclass(frozen=True)
class Remat(Method):
    """Keep the carries at block edges only, and run each block again in the backward pass.

    Args:
      block: steps in a block; by default about √T.
      inside: the method inside a block; by default `Blocked` where it can, otherwise `Scan`. For forward
        mode name `Scan`.
    """

    block: int | None = None
    inside: Method | None = None

    def __post_init__(self):
        """Refuse a block without steps."""
        if self.block is not None:
            checks.count("block", self.block)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        inside = self.inside or (Blocked() if Blocked.takes(cell, carry, frames) else Scan())
        block = even(length, self.block or math.isqrt(length))
        stretches = []
        for segment in segments(length, block):

            @jax.checkpoint
            def run(carry, frames, size=segment.size):
                done = inside(cell, carry, frames, initial=initial, length=size)
                return done.carry, (done.outputs, done.carries)

            carry, blocks = jax.lax.scan(run, carry, segment.cut(frames), length=segment.blocks)
            stretches.append(segment.flat(blocks))
        outputs, carries = joined(stretches)
        return Unrolled(outputs, carry, carries, method=Remat(block, inside))
