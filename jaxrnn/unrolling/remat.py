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
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.unrolling.blocks import even
from jaxrnn.unrolling.nested import Nested


@checked
@dataclasses.dataclass(frozen=True)
class Remat(Nested):
    """Keep the carries at block edges only, and run each block again in the backward pass.

    Args:
      block: steps in a block; by default about √T.
      inside: the method inside a block, as in `Nested`.
    """

    block: int | None = None

    def __post_init__(self):
        """Refuse a block without steps, and methods that do not nest."""
        super().__post_init__()
        if self.block is not None:
            checks.count("block", self.block)

    def block_size(self, length: int) -> int:
        """Return the steps in a block: as asked for, or about √T."""
        return even(length, math.isqrt(length)) if self.block is None else min(self.block, length)

    def treat(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Keep nothing of a block but the carry it starts from."""
        return jax.checkpoint(run)
