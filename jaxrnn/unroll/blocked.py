"""The default: whatever needs no carry is taken out of the loop, block by block of steps.

A scan over whole steps multiplies by the input weights inside the loop, and its derivative, taken
mechanically, keeps a dozen arrays a step and adds to a weight-shaped gradient at every one of them. Knowing
the parts of a step (`jaxrnn.unroll.parts`) allows better; of a cell that splits (`jaxrnn.typing`) they are

    forward     drive  = project(x)                         one product a block
                signal = drive and mix(carry)               in the loop
                carry' = update(carry, signal)              in the loop
    backward    δcarry = ∂update/∂carryᵀ δ + mixᵀ δsignal   in the loop: cotangents alone, no weights
                δW, δU, δx from every δsignal               one product each a block

and of any other step its traced program shows them, several signals one after the other if need be.

The carries are kept for the backward pass, and what the gates make of their signals is computed again. The
signals themselves are kept where that is cheaper than to compute them again, a block at a time from its
carries: writing to fresh memory has a price too. Where no weights meet the carry, as in a minGRU, and the
signals of one block are all and kept, the gates are kept with them. `jaxrnn.unroll.sweep` does all this; what
sizes decide is here.

Weakness: reverse mode only. The derivative is written by hand, which JAX allows for one mode; forward mode
is `Scan`'s. Derivatives of the gradient are right, by whatever array, and forwards (``jax.jvp`` of a
``jax.grad``) by the arrays that the gradient is by; by others that is `Scan`'s too. So are steps that do
something beside computing, such as to print, that multiply by no weights, that compute with complex numbers
(other than in a loop of their own), or whose carry, input or output is no float.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.steps import in_forward_mode, varying_alike
from jaxrnn.typing import Carry, SplitCell, Step
from jaxrnn.unroll.blocks import at, even
from jaxrnn.unroll.parts import Parts
from jaxrnn.unroll.record import Frames, Method, Unrolled, seen
from jaxrnn.unroll.scan import Scan
from jaxrnn.unroll.signals import signals_of
from jaxrnn.unroll.split import SplitParts
from jaxrnn.unroll.sweep import Plan, carry_through
from jaxrnn.unroll.traced import traced_parts

# Measured on CPU. A block's signals should stay in the cache, yet give the products rows enough; short
# sequences are one block, which compiles faster.
_WHOLE_BYTES = 2**23
_BLOCK_BYTES = 2**21
_BLOCK_ROWS = 512
_LOOP_ROWS = 8
# A step back that reads so many slices, gates and carries, is worth a copy of its signals, fetched ahead.
_AHEAD_SLICES = 8
# Signals are kept if they are few, or if so many weights enter each that fresh memory for it is cheaper.
_KEPT_BYTES = 2**24
_KEPT_INTENSITY = 288

_OTHERS = (
    "without inputs or weights that it multiplies by, with effects such as to print, or with numbers other "
    "than real floats"
)


@checked
@dataclasses.dataclass(frozen=True)
class Blocked(Method):
    """Any step that multiplies by weights, block by block.

    Args:
      block: steps in a block; the last may be shorter. By default so many that their signals fill about
        2 MB, or all, where all fill no more than 8 MB; a size that divides the number of steps is preferred.
      keep_signals: keep the signals of all steps for the backward pass, rather than compute them again from
        the carries; by default whichever is likely to be faster.
    """

    block: int | None = None
    keep_signals: bool | None = None

    @property
    def forward_mode(self) -> bool:
        """Not in forward mode."""
        return False

    @staticmethod
    def takes(cell: Step, carry: Carry, frames: Frames) -> bool:
        """Tell whether a step has parts that this method can treat apart."""
        return _taken_apart(cell, carry, frames) is not None

    def __post_init__(self):
        """Refuse a block without steps."""
        if self.block is not None:
            checks.count("block", self.block)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        found = _taken_apart(cell, carry, frames)
        if found is None:
            checks.refuse("method", self, f"Scan() for a step {_OTHERS}")
        parts, held = found
        if in_forward_mode(held):
            checks.refuse("method", f"{self} in forward mode (jvp)", "Scan()")
        weights = parts.weights(held)
        weights, carry, frames, initial = varying_alike(weights, carry, frames, initial)
        plan = self._plan(parts, weights, length)
        results: Any = carry_through(plan, weights, initial, carry, frames)
        last, carries, ys = results
        outputs = seen(parts.outputs(weights, carries, ys), frames.valid)
        ran = Blocked(plan.block, plan.keep)
        return Unrolled(outputs=outputs, carry=last, carries=carries, method=ran)

    def _plan(self, parts: Parts, weights: Any, length: int) -> Plan:
        if self.block is not None:
            block = min(self.block, length)
        elif parts.bytes * length <= _WHOLE_BYTES:
            block = length
        else:
            block = even(
                length, max(_BLOCK_BYTES // parts.bytes, _BLOCK_ROWS // max(parts.rows, 1), 1)
            )
        keep = self.keep_signals
        if keep is None and parts.drives_alone:  # products over many steps make them again
            keep = block == length
        elif keep is None:
            numbers = sum(leaf.size for leaf in jax.tree.leaves(weights))
            dear = numbers * parts.rows >= _KEPT_INTENSITY * parts.numbers
            keep = parts.bytes * length <= _KEPT_BYTES or dear
        # On a CPU, many rows multiply as fast within the loop as before it, and need no room for drives.
        small = parts.rows < _LOOP_ROWS or parts.features == 1
        hoist = small or jax.default_backend() != "cpu"
        many_gates = parts.widest > parts.width
        many_slices = parts.slices >= _AHEAD_SLICES
        return Plan(parts, length, block, keep, hoist, parts.rows > 1, many_gates, many_slices)


def _taken_apart(cell: Step, carry: Carry, frames: Frames) -> tuple[Parts, Any] | None:
    """Return the parts of a step and what arrays it holds; None where it cannot be taken apart."""
    if frames.x is None:
        return None
    x = at(frames.x, 0)
    signals = signals_of(cell, carry, x)
    if signals is not None:
        assert isinstance(cell, SplitCell)
        return SplitParts(cell, carry, x, signals), cell
    return traced_parts(cell, carry, x)


def default_method(cell: Step, carry: Carry, frames: Frames) -> Method:
    """Return the fastest method that takes a step: `Blocked`, or else `Scan`.

    `Scan` too where weights that a plain function closes over are differentiated forwards.
    """
    found = _taken_apart(cell, carry, frames)
    return Scan() if found is None or in_forward_mode(found[1]) else Blocked()
