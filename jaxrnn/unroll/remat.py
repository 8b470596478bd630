"""Little memory for long sequences: only the carries at the edges of blocks are kept.

The backward pass of every other method needs arrays of all T steps. Here time is cut into blocks of about
√T steps; forward keeps the carry at each edge and nothing between, and the backward pass runs a block again
before it goes back through it (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"):

    memory   √T carries at the edges + √T steps of one block
    time     one more forward pass

What is asked for (outputs of all steps, or carries) is kept of course, whatever the method: outside
``jax.jit``, which drops what nobody uses, that is all of it.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.blocked import default_method
from jaxrnn.unroll.blocks import even, joined, segments
from jaxrnn.unroll.record import Frames, Method, Unrolled


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
        """Refuse a block without steps, and methods that do not nest."""
        if self.block is not None:
            checks.count("block", self.block)
        if self.inside is not None and not self.inside.nests:
            checks.refuse("inside", self.inside, "Blocked(), Scan() or Associative()")

    @property
    def forward_mode(self) -> bool:
        """As the method inside, where one is named."""
        return self.inside is not None and self.inside.forward_mode

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        inside = self.inside or default_method(cell, carry, frames)
        block = even(length, math.isqrt(length)) if self.block is None else self.block
        stretches = []
        for segment in segments(length, min(block, length)):

            @jax.checkpoint
            def run(carry, frames, size=segment.size):
                done = inside(cell, carry, frames, initial=initial, length=size)
                return done.carry, (done.outputs, done.carries)

            carry, stretch = segment.scan(run, carry, segment.cut(frames))
            stretches.append(stretch)
        outputs, carries = joined(stretches)
        return Unrolled(outputs, carry, carries, method=Remat(block, inside))
