"""The base class of `Remat` and `Truncated`, which apply another method block by block."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.blocked import by_default
from jaxrnn.unrolling.blocks import joined, segments
from jaxrnn.unrolling.record import Frames, Method, Unrolled


@dataclasses.dataclass(frozen=True)
class Nested(Method, abc.ABC):
    """A method that wraps each block of steps and runs another method inside the block.

    Args:
      inside: the method inside a block; by default `Blocked` where it supports the step, otherwise `Scan`.
    """

    inside: Method | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        """Require an inner method that can be nested."""
        if self.inside is not None and not (isinstance(self.inside, Method) and self.inside.nests):
            got = checks.describe(self.inside)
            checks.refuse("inside", got, "Blocked(), Scan() or Associative()")

    @abc.abstractmethod
    def block_size(self, length: int) -> int:
        """Return the number of steps in a block, 1 to `length`."""

    @abc.abstractmethod
    def treat(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``run(carry, frames) -> (carry, results)``, the function that runs one block."""

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        run_inside = self.inside or by_default
        methods: list[Method] = []  # the methods that ran, known once a block has been traced
        stretches = []
        for segment in segments(length, self.block_size(length)):

            def run(carry, frames, size=segment.size):
                done = run_inside(cell, carry, frames, initial=initial, length=size)
                methods.append(done.method)
                return done.carry, (done.outputs, done.carries)

            carry, stretch = segment.scan(self.treat(run), carry, segment.cut(frames))
            stretches.append(stretch)
        outputs, carries = joined(stretches)
        ran = dataclasses.replace(self, inside=methods[0])
        return Unrolled(outputs, carry, carries, method=ran)
