"""Linear recurrences in logarithmic depth, by an associative scan.

The method applies where the next carry is an affine map of the carry, separately for each unit:

    carry_t = A_t carry_t−1 + b_t ,        A_t: L × L for each unit, L leaves of the carry.

Two steps compose to one map of the same form, (A₂ A₁, A₂ b₁ + b₂), so an associative scan computes all
prefixes in 2 ⌊log₂ T⌋ rounds (Blelloch 1990; Martin & Cundy 2018, "Parallelizing Linear Recurrent Neural Nets
Over Sequence Length"). In most cells A is diagonal, one decay per leaf. Leaves that depend on each other,
such as the real and the imaginary part of a rotating state, are treated as one group. b_t is the step's value
at the zero carry, and A_t its derivative there. Whether the step is affine is decided from its traced
program, operation by operation.

Weakness: about twice the arithmetic of the loop and log T passes over memory. The method is faster where the
rounds run in parallel, and slower on a CPU. Products of decays above 1 may overflow where the loop does not,
and a reset does not remove such an overflow.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxrnn import checks
from jaxrnn.jaxprs import Atom, Equation, Flat, flat, is_inexact
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.blocks import at
from jaxrnn.unrolling.record import Convergence, Frames, Method, Unrolled, restarted, seen, where


@dataclasses.dataclass(frozen=True)
class Associative(Method):
    """An associative scan over the steps, for a step that is affine in its carry, unit by unit."""

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        feeds, obstacle = _feeds(cell, carry, at(frames.x, 0))
        if obstacle is not None:
            checks.refuse("method", f"Associative() for a cell that {obstacle}", _EXPECTED)
        xs = seen(frames.x, frames.valid)
        starts, tree = jax.tree.flatten(carry)
        before, after = list(starts), list(starts)
        anew = jax.tree.leaves(initial)
        for group in _groups(feeds):
            maps = _maps_of(cell, carry, xs, length, group)
            maps = _with_frames(maps, [anew[i] for i in group], frames)
            states = _recurrence(maps, [starts[i] for i in group])
            for i, all_states in zip(group, states, strict=True):
                start = jnp.concatenate([starts[i][None], all_states[:-1]])
                if frames.reset is not None:
                    again = jnp.broadcast_to(anew[i], start.shape)
                    start = restarted(frames.reset, again, start)
                before[i], after[i] = start, all_states
        carries = jax.tree.unflatten(tree, after)
        _, outputs = jax.vmap(cell, axis_size=length)(jax.tree.unflatten(tree, before), xs)
        last = at(carries, length - 1)
        return Unrolled(seen(outputs, frames.valid), last, carries, method=self)

    def rounds(self, length: int, convergence: Convergence | None) -> int:
        """Return the number of sequentially dependent combinations in the associative scan."""
        del convergence
        return combinations(length)


class _Maps(NamedTuple):
    """Affine maps of L leaves, one per step and unit: matrix [L][L] and gain [L] of arrays [T, *B, H]."""

    matrix: list[list[Any]]
    gain: list[Any]


def _maps_of(cell: Step, carry: Carry, xs: Any, length: int, group: list[int]) -> _Maps:
    """Return the maps of the leaves in `group`, which depend on no other leaf."""
    leaves, tree = jax.tree.flatten(carry)
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]

    def at_zero(x):
        def moved(part):
            state = list(zeros)
            for i, leaf in zip(group, part, strict=True):
                state[i] = leaf
            after = jax.tree.leaves(cell(jax.tree.unflatten(tree, state), x)[0])
            return [after[i] for i in group]

        origin = [zeros[i] for i in group]
        gain, push = jax.linearize(moved, origin)
        one = [
            [jnp.ones_like(o) if i == j else o for i, o in enumerate(origin)]
            for j in range(len(group))
        ]
        columns = map(push, one)
        return _Maps([list(row) for row in zip(*columns, strict=True)], gain)

    return jax.vmap(at_zero, axis_size=length)(xs)


def _with_frames(maps: _Maps, anew: list[Any], frames: Frames) -> _Maps:
    """Return maps that start from `anew` at resets, and are the identity at padded steps."""
    matrix, gain = maps
    zero = jnp.zeros_like(gain[0])
    if frames.reset is not None:
        spread = [jnp.broadcast_to(leaf, zero.shape) for leaf in anew]
        again = _plus(_applied(matrix, spread), gain)
        nothing = [[zero] * len(gain) for _ in gain]
        matrix, gain = restarted(frames.reset, (nothing, again), (matrix, gain))
    if frames.valid is not None:
        identity = [[zero + float(i == j) for j in range(len(gain))] for i in range(len(gain))]
        matrix, gain = where(frames.valid, (matrix, gain), (identity, [zero] * len(gain)))
    return _Maps(matrix, gain)


def _recurrence(maps: _Maps, first: list[Any]) -> list[Any]:
    """Return all states, L arrays [T, *B, H], that follow from `first` under the maps."""

    def then(early, late):
        (a1, b1), (a2, b2) = early, late
        columns = [_applied(a2, list(column)) for column in zip(*a1, strict=True)]
        return _Maps([list(row) for row in zip(*columns, strict=True)], _plus(_applied(a2, b1), b2))

    matrix, gain = maps
    moved = _applied([[entry[0] for entry in row] for row in matrix], first)
    gain = [g.at[0].add(m) for g, m in zip(gain, moved, strict=True)]
    return jax.lax.associative_scan(then, _Maps(matrix, gain))[1]


def _applied(matrix: list[list[Any]], vector: list[Any]) -> list[Any]:
    return [sum(a * v for a, v in zip(row, vector, strict=True)) for row in matrix]


def _plus(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(a, b, strict=True)]


def combinations(length: int) -> int:
    """Return the number of sequentially dependent combinations in `jax.lax.associative_scan`.

    The scan halves `length` elements ⌊log₂ T⌋ times, with one combination on the way up and one on the way
    down each time.
    """
    return 2 * (length.bit_length() - 1)


def diagonal_recurrence(decay: Any, gain: Any, first: Any) -> Any:
    """Return all states [T, *B, H] of state_t = decay_t ⊙ state_t−1 + gain_t."""
    return _recurrence(_Maps([[decay]], [gain]), [first])[0]


# Decide from the traced program whether a step is affine, unit by unit. Variables are tracked in blocks of H
# entries along the last axis, because cells concatenate their gates and split them again.

_EXPECTED = "Scan(), or a cell whose carry is only scaled, unit by unit, and added to"
_ADDING = {"add", "sub", "neg", "copy", "add_any"}

_Enters = set[int | str]
"""What a block depends on: numbers of leaves of the carry, and texts that name non-affine operations."""


def _feeds(cell: Step, carry: Carry, x: Any) -> tuple[list[set[int]], str | None]:
    """Return the leaves that each new leaf depends on, and what in the step is not affine unit by unit."""
    program, _ = flat(lambda carry: cell(carry, x)[0], carry)
    avals = [program.avals[leaf] for leaf in program.inputs]
    if not all(map(is_inexact, avals)):
        return [], "counts in its carry, with numbers that are no floats"
    widths = list(map(_width, avals))
    if len(set(widths)) > 1:
        return [], "has leaves of different sizes"
    found = _follow(program, [[{leaf}] for leaf in range(len(widths))], max(widths[0], 1))
    enters: list[_Enters] = [set().union(*blocks) for blocks in found]
    obstacles = sorted(entry for each in enters for entry in each if isinstance(entry, str))
    feeds = [{entry for entry in each if not isinstance(entry, str)} for each in enters]
    return feeds, obstacles[0] if obstacles else None


def _groups(feeds: list[set[int]]) -> list[list[int]]:
    """Group the leaves that depend on each other, directly or indirectly."""
    groups = [{i} | sources for i, sources in enumerate(feeds)]
    joined: list[set[int]] = []
    for group in groups:
        apart = [other for other in joined if not other & group]
        joined = [*apart, group.union(*(other for other in joined if other & group))]
    return [sorted(group) for group in joined]


def _width(aval: Any) -> int:
    return aval.shape[-1] if aval.shape else 1


def _follow(program: Flat, arguments: list[list[_Enters]], width: int) -> list[list[_Enters]]:
    """Return what each result depends on, block by block.

    Args:
      program: a traced program.
      arguments: what each block of each argument depends on.
      width: H.
    """
    enters: dict[Atom, list[_Enters]] = dict(zip(program.inputs, arguments, strict=True))

    def of(atom: Atom, aval: Any) -> list[_Enters]:
        known = None if isinstance(atom, Literal) else enters.get(atom)
        return [set() for _ in range(-(-_width(aval) // width))] if known is None else known

    for equation in program.equations:
        sources = list(map(of, equation.inputs, equation.input_avals))
        if any(map(any, sources)):
            results = _rearranged(equation, sources, width) or _combined(equation, sources, width)
            enters.update(zip(equation.outputs, results, strict=True))
    return [of(atom, program.aval(atom)) for atom in program.outputs]


def _rearranged(
    equation: Equation, sources: list[list[_Enters]], width: int
) -> list[list[_Enters]] | None:
    """Return the blocks of an operation that joins or cuts whole blocks of the last axis, otherwise None."""
    whole, kept = equation.input_avals, equation.output_avals
    last, params = len(kept[0].shape) - 1, equation.params
    if last < 0 or any(_width(aval) % width for aval in (*whole, *kept)):
        return None
    if equation.name == "concatenate" and params["dimension"] == last:
        return [[block for source in sources for block in source]]
    if equation.name == "split" and params["axis"] == last:
        counts = [_width(aval) // width for aval in kept]
        ends = itertools.accumulate(counts)
        return [sources[0][end - count : end] for count, end in zip(counts, ends, strict=True)]
    if equation.name == "slice" and params["strides"] is None:
        starts = params["start_indices"]
        if kept[0].shape[:-1] == whole[0].shape[:-1] and starts[-1] % width == 0:
            first = starts[-1] // width
            return [sources[0][first : first + _width(kept[0]) // width]]
    return None


def _combined(equation: Equation, sources: list[list[_Enters]], width: int) -> list[list[_Enters]]:
    """Return the blocks of any other operation, elementwise or not affine."""
    if _is_diagonal_and_affine(equation, sources):
        whole = [source for source in sources if any(source)]
        return [[set().union(*blocks) for blocks in zip(*whole, strict=True)]]
    together: _Enters = set().union(*(block for source in sources for block in source))
    together = together | {f"applies {equation.name} to its carry"}
    return [[together] * max(1, -(-_width(aval) // width)) for aval in equation.output_avals]


def _is_diagonal_and_affine(equation: Equation, sources: list[list[_Enters]]) -> bool:
    name, whole = equation.name, equation.input_avals
    (kept, *_) = equation.output_avals
    entered = list(map(any, sources))
    scales = name == "mul" and sum(entered) == 1
    divides = name == "div" and not entered[1]
    chooses = name == "select_n" and not entered[0]
    converts = name == "convert_element_type" and _holds_all_of(kept, whole[0])
    shapes = {aval.shape for aval, there in zip(whole, entered, strict=True) if there}
    stays = shapes == {kept.shape}
    return stays and (name in _ADDING or scales or divides or chooses or converts)


def _holds_all_of(target: Any, source: Any) -> bool:
    """Tell whether one dtype holds every number of another, so that a cast does not round."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(source.dtype, target.dtype) == target.dtype
