"""Rematerialization for long sequences: only the carries at the edges of blocks are kept.

The backward pass of every other method needs arrays of all T steps. Here time is cut into blocks of about √T
steps. The forward pass keeps the carry at each edge and nothing in between, and the backward pass recomputes
each block before it differentiates it (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"):

    memory   √T carries at the edges + √T steps of one block
    time     one more forward pass

Results that the caller uses (outputs of all steps, or carries) are kept with any method. Under ``jax.jit``
unused results are dropped; outside it all results are kept.
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
    """The method that keeps only the carries at block edges, and recomputes blocks in the backward pass.

    Args:
      block: steps in a block; by default about √T.
      inside: the method inside a block, as in `Nested`.
    """

    block: int | None = None

    def __post_init__(self):
        """Require at least one step in a block, and an inner method that can be nested."""
        super().__post_init__()
        if self.block is not None:
            checks.count("block", self.block)

    def block_size(self, length: int) -> int:
        """Return the number of steps in a block: `block`, or about √T by default."""
        return even(length, math.isqrt(length)) if self.block is None else min(self.block, length)

    def treat(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a block so that its only residual is the carry it starts from."""
        return jax.checkpoint(run)
