"""Truncated BPTT: the gradient goes back to the edge of its window of steps, and no further.

    carry_t+1 = step(carry_t, x_t)               as ever
    ∂carry_t+1 / ∂carry_t := 0                   where t + 1 is the first step of a window

The forward pass is that of every other method; the gradient is another, and biased: no dependence longer
than the window is learnt, and the mean reach is half of it (Williams & Peng 1990; Tallec & Ollivier 2017,
"Unbiasing Truncated Backpropagation Through Time"). `Truncated` cuts within one call; `Stateful` carries
the state of one call on to the next, for sequences that arrive piece by piece.
"""

from __future__ import annotations

import dataclasses

import jax

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.blocked import default_method
from jaxrnn.unroll.blocks import at, joined, segments
from jaxrnn.unroll.record import Frames, Method, Unrolled


@dataclasses.dataclass(frozen=True)
class Truncated(Method):
    """Stop the gradient at the edge of every window.

    The first window's gradient reaches the initial carry; the last window is shorter where `window` does
    not divide the number of steps.

    Args:
      window: steps in a window.
      inside: the method inside a window; by default `Blocked` where it can, otherwise `Scan`. For forward
        mode name `Scan`.
    """

    window: int
    inside: Method | None = None

    def __post_init__(self):
        """Refuse a window without steps, and methods that do not nest."""
        checks.count("window", self.window)
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
        stretches = []
        for segment in segments(length, min(self.window, length)):

            def run(carry, frames, size=segment.size):
                done = inside(cell, carry, frames, initial=initial, length=size)
                return jax.lax.stop_gradient(done.carry), (done.outputs, done.carries)

            carry, stretch = segment.scan(run, carry, segment.cut(frames))
            stretches.append(stretch)
        outputs, carries = joined(stretches)
        # The last carry is a result, whose gradient goes back through its own window.
        method = dataclasses.replace(self, inside=inside)
        return Unrolled(outputs, at(carries, length - 1), carries, method=method)
