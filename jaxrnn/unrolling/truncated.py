"""Truncated BPTT: the gradient goes back to the start of its window of steps, and no further.

    carry_t+1 = step(carry_t, x_t)               as in every method
    ∂carry_t+1 / ∂carry_t := 0                   where t + 1 is the first step of a window

The forward pass equals that of every other method. The gradient differs, and is biased: no dependence longer
than the window is learned, and the mean reach is half the window (Williams & Peng 1990; Tallec & Ollivier
2017, "Unbiasing Truncated Backpropagation Through Time"). `Truncated` cuts the gradient within one call;
`Stateful` passes the carry of one call on to the next, for sequences that arrive piece by piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.blocks import at
from jaxrnn.unrolling.nested import Nested
from jaxrnn.unrolling.record import Frames, Unrolled


@checked
@dataclasses.dataclass(frozen=True)
class Truncated(Nested):
    """The method that stops the gradient at the start of every window.

    The gradient of the first window reaches the initial carry. The last window is shorter where `window` does
    not divide the number of steps.

    Args:
      window: steps in a window.
      inside: the method inside a window, as in `Nested`.
    """

    window: int

    def __post_init__(self):
        """Require at least one step in a window, and an inner method that can be nested."""
        super().__post_init__()
        checks.count("window", self.window)

    def block_size(self, length: int) -> int:
        """Return the number of steps in a window."""
        return min(self.window, length)

    def treat(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a block so that it passes its carry on without the gradient."""

        def cut(carry, frames):
            carry, results = run(carry, frames)
            return jax.lax.stop_gradient(carry), results

        return cut

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        done = super().__call__(cell, carry, frames, initial=initial, length=length)
        # The last carry is a result, so its gradient has to go back through the last window.
        return dataclasses.replace(done, carry=at(done.carries, length - 1))
