"""The default: whatever needs no carry leaves the loop, block by block of steps.

A scan over whole steps multiplies by the input weights inside the loop, and its derivative, taken
mechanically, keeps a dozen arrays a step and adds to a weight-shaped gradient at every one of them. Here the
step's traced program says what has to wait for the carry (`jaxrnn.unroll.dataflow`), and one derivative rule
keeps the weights' gradients out of the loop (`jaxrnn.unroll.trajectory`). What sizes decide is in this file:
how long a block is, and what is kept for the backward pass.

Weakness: a step whose weights are not in matrix products gains nothing. What a step computes from weights
alone is computed once for all steps, so a ``jax.custom_vjp`` there, such as one that clips cotangents, gets
the sum of all steps' cotangents and not each. Steps that do something beside
computing, such as to print, or whose carry, input or output is no float, are left to `Scan`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.jaxprs import Atom, flat, is_inexact, value_of
from jaxrnn.steps import varying_alike
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.blocks import at, even
from jaxrnn.unroll.dataflow import StepProgram
from jaxrnn.unroll.duals import Dual
from jaxrnn.unroll.record import Frames, Method, Unrolled, seen
from jaxrnn.unroll.scan import Scan
from jaxrnn.unroll.trajectory import Plan, carry_through

# Measured on CPU. A block's signals should stay in the cache, yet give the products rows enough; short
# sequences are one block, which compiles faster.
_WHOLE_BYTES = 2**23
_BLOCK_BYTES = 2**21
_BLOCK_ROWS = 512
_LOOP_ROWS = 8
# What gates read is kept if it is little, or if so many weights enter each number of it that fresh memory
# is cheaper than another product.
_KEPT_BYTES = 2**24
_KEPT_INTENSITY = 288

_OTHERS = (
    "without inputs or weights that it multiplies by, with effects such as to print, or with numbers other "
    "than floats"
)


@checked
@dataclasses.dataclass(frozen=True)
class Blocked(Method):
    """Any step that multiplies by weights, block by block.

    Args:
      block: steps in a block; the last may be shorter. By default so many that what their gates read fills
        about 2 MB, or all, where all fill no more than 8 MB; a size that divides the number of steps is
        preferred.
      keep_signals: keep what the gates of all steps read for the backward pass, rather than compute it again
        from the carries, a block at a time; by default whichever is likely to be faster. Not to keep it saves
        memory where there are several blocks.
    """

    block: int | None = None
    keep_signals: bool | None = None

    @staticmethod
    def takes(cell: Step, carry: Carry, frames: Frames) -> bool:
        """Tell whether this method takes a step."""
        return _traced(cell, carry, frames) is not None

    def __post_init__(self):
        """Refuse a block without steps."""
        if self.block is not None:
            checks.count("block", self.block)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        traced = _traced(cell, carry, frames)
        if traced is None:
            checks.refuse("method", self, f"Scan() for a step {_OTHERS}")
        return self._carry(traced, carry, frames, initial, length)

    def _carry(
        self, traced: _Traced, carry: Carry, frames: Frames, initial: Carry, length: int
    ) -> Unrolled:
        program = traced.program
        closed_over = Dual(dict(zip(program.constants, traced.constants, strict=True)))
        closed_over.run(program.to_weights)
        weights = [closed_over.values[v] for v in program.weights]
        weights, carry, frames, initial = varying_alike(weights, carry, frames, initial)
        plan = self._plan(program, length)
        leaves, tree = jax.tree.flatten(carry)
        frames = frames._replace(x=jax.tree.leaves(frames.x))
        last, carries, outputs = carry_through(
            plan, weights, jax.tree.leaves(initial), leaves, frames
        )
        if program.reads_carry_alone:
            outputs = _outputs(program, weights, carries, length)
        return Unrolled(
            outputs=seen(jax.tree.unflatten(traced.outputs, outputs), frames.valid),
            carry=jax.tree.unflatten(tree, last),
            carries=jax.tree.unflatten(tree, carries),
            method=Blocked(plan.block, plan.keep),
        )

    def _plan(self, program: StepProgram, length: int) -> Plan:
        size = _Size.of(program)
        if self.block is not None:
            block = min(self.block, length)
        elif size.bytes * length <= _WHOLE_BYTES:
            block = length
        else:
            rows = _BLOCK_ROWS // max(size.rows, 1)
            block = even(length, max(_BLOCK_BYTES // max(size.bytes, 1), rows, 1))
        keep = self.keep_signals
        if keep is None and program.is_linear:
            keep = block == length
        elif keep is None:
            dear = size.weights * size.rows >= _KEPT_INTENSITY * size.numbers
            keep = size.bytes * length <= _KEPT_BYTES or dear
        # On a CPU, many rows multiply as fast within the loop as before it, and need no room for drives.
        small = size.rows < _LOOP_ROWS or size.features == 1 or program.is_linear
        hoist = small or jax.default_backend() != "cpu"
        return Plan(
            program,
            length=length,
            block=block,
            keep=keep,
            hoist=hoist,
            ahead=size.widest > size.width,
            transpose=size.rows > 1,
        )


@dataclasses.dataclass(frozen=True)
class _Size:
    """How large a step is.

    Attributes:
      rows: rows of the products of one step.
      numbers: numbers that its gates read beside the carry.
      bytes: of these or of the drives, whichever are more: a block holds both, one after the other.
      weights: numbers in its weights.
      widest: the longest row of a drive or signal, of which gates are slices.
      width: the longest row of a leaf of the carry.
      features: the longest row of an input.
    """

    rows: int
    numbers: int
    bytes: int
    weights: int
    widest: int
    width: int
    features: int

    @classmethod
    def of(cls, program: StepProgram) -> _Size:
        """Measure a step."""

        def widest(of: Any) -> int:
            return max(
                (program.avals[v].shape[-1] for v in of if program.avals[v].shape), default=1
            )

        kept = [program.avals[v] for v in program.kept]
        # Without weights in the loop most of the work is in the drives; a block holds all that makes them.
        made = [v for equation in program.to_drives for v in equation.outputs]
        drives = [program.avals[v] for v in (made if program.is_linear else program.drives)]
        return cls(
            rows=max((math.prod(aval.shape[:-1]) for aval in kept), default=1),
            numbers=sum(aval.size for aval in kept),
            bytes=max(
                sum(aval.size * aval.dtype.itemsize for aval in avals) for avals in (kept, drives)
            ),
            weights=sum(program.avals[v].size for v in program.weights),
            widest=widest([*program.kept, *program.drives]),
            width=widest(program.carry),
            features=widest(program.x),
        )


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A step's program, the arrays that it closes over, and the tree of its y."""

    program: StepProgram
    constants: list[Any]
    outputs: Any


def _traced(cell: Step, carry: Carry, frames: Frames) -> _Traced | None:
    """Trace a step; None where it is left to `Scan`."""
    inputs = jax.tree.leaves(frames.x)
    if not inputs or not all(map(is_inexact, [*jax.tree.leaves(carry), *inputs])):
        return None
    read, (_, y) = flat(cell, carry, at(frames.x, 0))
    if read.has_effects or not all(map(is_inexact, jax.tree.leaves(y))):
        return None
    is_masked = frames.valid is not None
    program = StepProgram(read, len(jax.tree.leaves(carry)), is_masked=is_masked)
    return _Traced(program, read.constants, jax.tree.structure(y)) if program.multiplies else None


def _outputs(
    program: StepProgram, weights: list[Any], carries: list[Any], length: int
) -> list[Any]:
    """Return y of all steps [T, …] as a function of all carries."""
    pairs = zip(program.moved, carries, strict=True)
    moved = {atom: array for atom, array in pairs if not isinstance(atom, Literal)}
    dual = Dual({**dict(zip(program.weights, weights, strict=True)), **moved}, many=set(moved))
    dual.run(program.to_outputs)

    def of_all(atom: Atom) -> Any:
        y = jnp.asarray(value_of(atom, dual.values))
        every = not isinstance(atom, Literal) and atom in dual.many
        return y if every else jnp.broadcast_to(y, (length, *y.shape))

    return list(map(of_all, program.outputs))


def by_default(
    cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
) -> Unrolled:
    """Carry a step through time by the fastest method that takes it: `Blocked`, or else `Scan`."""
    traced = _traced(cell, carry, frames)
    if traced is None:
        return Scan()(cell, carry, frames, initial=initial, length=length)
    return Blocked()._carry(traced, carry, frames, initial, length)
