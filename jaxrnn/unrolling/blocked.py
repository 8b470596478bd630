"""The default method: computes what does not depend on the carry outside the loop, for blocks of steps.

A scan over whole steps multiplies by the input weights inside the loop. JAX's derivative of such a scan keeps
a dozen arrays per step, and at every step adds to a gradient of the weights' shape. `Blocked` finds in the
traced step what depends on the carry (`jaxrnn.unrolling.dataflow`), and uses one derivative rule that takes
the weights' gradients out of the loop (`jaxrnn.unrolling.trajectory`). This file decides what depends on
sizes: how long a block is, and which residuals are kept.

Weakness: a step whose weights are not in matrix products gains nothing. What a step computes from weights
alone is computed once for all steps. A ``jax.custom_vjp`` there, such as one that clips cotangents, therefore
receives the sum of the cotangents over all steps, and not one cotangent per step. Steps with side effects,
such as printing, and steps whose carry, input or output has leaves that are not floats run as `Scan`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.jaxprs import Variable, flat, is_inexact, value_of
from jaxrnn.steps import varying_alike
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.blocks import at, even
from jaxrnn.unrolling.dataflow import StepProgram
from jaxrnn.unrolling.duals import Dual
from jaxrnn.unrolling.record import Frames, Method, Unrolled, seen
from jaxrnn.unrolling.scan import Scan
from jaxrnn.unrolling.trajectory import Arguments, Leaves, Plan, carry_through

# Measured by `python -m benchmarks.constants` on 1 December 2026, on one core of an AMD EPYC with AVX-512,
# which had other work too: differences below 5 % mean nothing. The numbers without a unit are run times,
# relative to the run time with the value set here; above 1 is slower.
_WHOLE_BYTES = 2**23
"""All steps form one block if their gates read no more bytes than this; one block compiles faster. Cut into
blocks, an LSTM's 6.5 MB take 0.96 to 1.00 and an Elman network's 8.2 MB 1.5 to 1.7; in one block, a GRU's
33 MB take 1.8. The optimum is flat up to 16 MB."""

_WHOLE_LINEAR_BYTES = 2**26
"""The same limit for programs without weights in the loop (minGRU, minLSTM, RG-LRU). It counts everything
from which the drives are computed. By `python -m benchmarks.revisions`, one block of 79 to 185 MB takes 1.3
to 1.6, and blocks of 10 to 31 MB take 1.1 to 1.5."""

_BLOCK_BYTES = 2**21
"""Bytes of signals in a block, chosen so that they stay in the cache. Half as many take 0.99 to 1.05, twice
as many 0.96 to 1.35, 8 times as many 1.6."""

_BLOCK_ROWS = 512
"""Least number of rows of a block's products, so that they are large enough to be efficient. The optimum is
flat: 0.86 to 1.04 from 128 to 2048 rows, without a trend."""

_LOOP_ROWS = 8
"""On a CPU, the inputs' products stay in the loop if they have at least this many rows: they are as fast
there as before it, and need no memory for drives. The optimum is flat below: 4 rows in the loop take 0.98 to
1.00; 16 rows before the loop take 1.04 to 1.06."""

_KEPT_BYTES = 2**24
"""What gates read is kept for the backward pass if it takes no more bytes than this. The optimum is flat in
between: 6.5 MB not kept take 1.2, 33 MB kept take 1.18."""

_KEPT_INTENSITY = 288
"""What gates read is also kept if at least this many weights enter each of its numbers: fresh memory is then
cheaper than a second product. Kept at 192 takes 1.16, kept at 256 1.07, not kept at 512 1.14."""

_OTHERS = (
    "without inputs or weights that it multiplies by, with effects such as to print, or with numbers other "
    "than floats"
)


@checked
@dataclasses.dataclass(frozen=True)
class Blocked(Method):
    """The method for any step that multiplies by weights: it works block by block.

    Args:
      block: steps in a block; the last block may be shorter. By default, what the gates of a block read
        fills about 2 MB, or all steps form one block where they fill no more than 8 MB. A size that divides
        the number of steps is preferred.
      keep_signals: whether to keep for the backward pass what the gates of all steps read. Otherwise it is
        recomputed from the carries, one block at a time, which saves memory where there are several blocks.
        By default, whichever is likely to be faster.
    """

    block: int | None = None
    keep_signals: bool | None = None

    def __post_init__(self):
        """Require at least one step in a block."""
        if self.block is not None:
            checks.count("block", self.block)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        done = _unrolled(self, cell, carry, frames, initial, length)
        if done is None:
            checks.refuse("method", self, f"Scan() for a step {_OTHERS}")
        return done


def by_default(
    cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
) -> Unrolled:
    """Unroll a step with `Blocked`, or with `Scan` where `Blocked` does not support the step."""
    done = _unrolled(Blocked(), cell, carry, frames, initial, length)
    if done is None:
        return Scan()(cell, carry, frames, initial=initial, length=length)
    return done


def _unrolled(
    method: Blocked, cell: Step, carry: Carry, frames: Frames, initial: Carry, length: int
) -> Unrolled | None:
    """Unroll a step with `Blocked`; return None if it has to run as `Scan`."""
    traced = _traced(cell, carry, frames)
    if traced is None:
        return None
    program, constants, y = traced
    plan = _plan(method, program, length)
    closed_over = Dual(dict(zip(program.flat.constant_variables, constants, strict=True)))
    closed_over.run(program.flat.equations, program.weights)
    weights = [closed_over.values[v] for v in program.weights]
    weights, carry, frames, initial = varying_alike(weights, carry, frames, initial)
    leaves, tree = jax.tree.flatten(carry)
    frames = frames._replace(x=jax.tree.leaves(frames.x))
    steps = carry_through(plan, Arguments(weights, jax.tree.leaves(initial), leaves, frames))
    outputs = steps.outputs
    if program.reads_carry_alone:
        outputs = _outputs(program, weights, steps.carries, length)
    return Unrolled(
        outputs=seen(jax.tree.unflatten(y, outputs), frames.valid),
        carry=jax.tree.unflatten(tree, steps.last),
        carries=jax.tree.unflatten(tree, steps.carries),
        method=Blocked(plan.block, plan.keep),
    )


class _Traced(NamedTuple):
    """A step's program, the arrays that it closes over, and the tree structure of its output y."""

    program: StepProgram
    constants: Leaves
    y: Any


def _traced(cell: Step, carry: Carry, frames: Frames) -> _Traced | None:
    """Trace a step once; return None if it has to run as `Scan`."""
    inputs, leaves = jax.tree.leaves(frames.x), jax.tree.leaves(carry)
    if not inputs or not all(map(is_inexact, [*leaves, *inputs])):
        return None
    read, (_, y) = flat(cell, carry, at(frames.x, 0))
    if read.has_effects or not all(map(is_inexact, jax.tree.leaves(y))):
        return None
    program = StepProgram(read, len(leaves), is_masked=frames.valid is not None)
    return _Traced(program, read.constants, jax.tree.structure(y)) if program.multiplies else None


def _outputs(program: StepProgram, weights: Leaves, carries: Leaves, length: int) -> Leaves:
    """Return y of all steps [T, …] as a function of all carries."""
    pairs = zip((*program.weights, *program.next_carry), (*weights, *carries), strict=True)
    dual = Dual({atom: array for atom, array in pairs if not isinstance(atom, Literal)})
    dual.run(program.flat.equations, program.outputs)
    return [
        jnp.broadcast_to(value_of(atom, dual.values), (length, *program.flat.aval(atom).shape))
        for atom in program.outputs
    ]


def _plan(method: Blocked, program: StepProgram, length: int) -> Plan:
    """Choose the block length and the other settings of a plan from the sizes of the arrays."""
    rows = max((math.prod(aval.shape[:-1]) for aval in _avals(program, program.kept)), default=1)
    bytes_read = _bytes(program, program.kept)
    held = max(bytes_read, _bytes(program, program.drives))  # bytes that a block holds per step
    whole = _WHOLE_BYTES
    # Most of a linear program's work is to compute the drives, and a block holds all intermediate arrays.
    if program.is_linear:
        held = max(held, _bytes(program, [v for e in program.to_drives for v in e.outputs]))
        whole = _WHOLE_LINEAR_BYTES
    block = min(method.block or _block(held, whole, rows, length), length)
    keep = method.keep_signals
    if keep is None and program.is_linear:
        keep = block == length
    elif keep is None:
        numbers = sum(aval.size for aval in _avals(program, program.kept))
        weights = sum(aval.size for aval in _avals(program, program.weights))
        keep = bytes_read * length <= _KEPT_BYTES or weights * rows >= _KEPT_INTENSITY * numbers
    small = rows < _LOOP_ROWS or _width(program, program.x) == 1 or program.is_linear
    return Plan(
        program,
        length=length,
        block=block,
        keep=keep,
        hoist=small or jax.default_backend() != "cpu",
        ahead=_width(program, [*program.kept, *program.drives]) > _width(program, program.carry),
        transpose=rows > 1,
    )


def _block(held: int, whole: int, rows: int, length: int) -> int:
    """Return the number of steps in a block.

    Args:
      held: bytes that a block holds per step.
      whole: bytes up to which all steps form one block.
      rows: rows of the products of one step.
      length: the number of steps.
    """
    if held * length <= whole:
        return length
    return even(length, max(_BLOCK_BYTES // max(held, 1), _BLOCK_ROWS // max(rows, 1), 1))


def _bytes(program: StepProgram, of: Iterable[Variable]) -> int:
    return sum(aval.size * aval.dtype.itemsize for aval in _avals(program, of))


def _avals(program: StepProgram, of: Iterable[Variable]) -> list[Any]:
    return [program.avals[v] for v in of]


def _width(program: StepProgram, of: Iterable[Variable]) -> int:
    """Return the size of the longest last axis."""
    return max((aval.shape[-1] for aval in _avals(program, of) if aval.shape), default=1)
