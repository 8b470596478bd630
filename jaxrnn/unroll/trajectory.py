"""A step carried through time, and the derivative of that: one ``jax.custom_jvp``.

Along a trajectory that is known, the tangents obey (`jaxrnn.unroll.dataflow` has the words)

    d carry'  = ∂gates/∂carry · d carry + ∂gates/∂signal · d signal      in the loop
    d signal  = d operand · W + d tap                                    in the loop
    d tap     = operand · dW + d input                                   a block of steps at once

A tap is an extra term of a signal whose value is zero; only its tangent matters. This is all that is written
here. It is linear in the tangents, so JAX transposes it: the loop of the backward pass carries cotangents of
the carry alone. The cotangent of a tap equals that of its signal, and dW is operandᵀ times this cotangent,
one product a block. Forward mode, ``jax.linearize`` and Hessians follow from this rule.

The carries are kept for the backward pass. ``jax.checkpoint`` around each step makes it compute the gates
again instead of reading them from memory, and around each block of steps the signals too, where these are not
kept. A linear recurrence without weights in its loop is left to JAX's own derivative, which saves only the
factors, and these the forward pass has computed anyway.

Weakness: a gradient of a gradient by reverse mode twice differentiates the forward loop as ``lax.scan`` does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from jaxrnn.jaxprs import Atom, Equation, Values, Variable, is_inexact, value_of, variables
from jaxrnn.typing import at_least_float32
from jaxrnn.unroll.blocks import Segment, at, before_each, joined, segments
from jaxrnn.unroll.dataflow import Kind, StepProgram
from jaxrnn.unroll.duals import Dual, linear, multiplies_rows, times_transposed
from jaxrnn.unroll.record import Frames, restarted, seen, where

Leaves = list[Any]
"""The leaves of a tree, in order."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is settled before anything is computed.

    Attributes:
      program: of the step.
      length: number T of steps.
      block: steps in a block.
      keep: whether what gates read is kept for the backward pass, or computed again from the carries.
      hoist: whether drives are computed for a block of steps at once, or step by step.
      ahead: whether the forward loop fetches the drives of a step during the step before.
      transpose: whether weights are transposed once before the loop. XLA's CPU backend multiplies rows by a
        transposed matrix a third more slowly, and the backward loop would do so at every step.
    """

    program: StepProgram
    length: int
    block: int
    keep: bool
    hoist: bool
    ahead: bool
    transpose: bool


class Steps(NamedTuple):
    """What comes of T steps.

    Attributes:
      last: leaves of the last carry.
      carries: leaves of the carry after each step [T, …].
      outputs: leaves of y [T, …], where it is not a function of the carry alone.
      kept: what gates read at each step [T, …] by variable; empty if it is not kept.
    """

    last: Leaves
    carries: Leaves
    outputs: Leaves
    kept: Values


class Tangents(NamedTuple):
    """The tangents of what is perturbed, by variable.

    Attributes:
      weights: in float32 at least, for their cotangents are added up over many steps.
      initial: of the carry that a reset goes back to.
      carry: of the first carry.
      x: of the inputs [T, …].
      perturbed: the variables that have a tangent because of these.
    """

    weights: Values
    initial: Values
    carry: Values
    x: Values
    perturbed: set[Variable]


def carry_through(
    plan: Plan, weights: Leaves, initial: Leaves, carry: Leaves, frames: Frames
) -> tuple[Leaves, Leaves, Leaves]:
    """Return `Steps.last`, `.carries` and `.outputs` of T steps from `carry`; resets go to `initial`."""
    if plan.program.is_linear:
        return _forward(plan, weights, initial, carry, frames)[:3]
    return _carry_through(plan, weights, initial, carry, frames)


def _values_alone(plan: Plan, *arguments: Any) -> tuple[Leaves, Leaves, Leaves]:
    return _forward(dataclasses.replace(plan, keep=False), *arguments)[:3]


_carry_through = jax.custom_jvp(_values_alone, nondiff_argnums=(0,))


@functools.partial(_carry_through.defjvp, symbolic_zeros=True)
def _jvp(plan: Plan, primals: Any, tangents: Any) -> tuple[Any, Any]:
    steps = _forward(plan, *primals)
    moved = _tangents_of(plan.program, primals, tangents)
    return steps[:3], _push(plan, primals, steps, moved)


def _tangents_of(program: StepProgram, primals: Any, tangents: Any) -> Tangents:
    """Sort out what is perturbed: at once, or by what an earlier step makes of it."""
    d_weights, d_initial, d_carry, d_x = (
        {v: d for v, d in zip(of, leaves, strict=True) if not isinstance(d, SymbolicZero)}
        for of, leaves in zip(
            (program.weights, program.carry, program.carry, program.x),
            (*tangents[:3], tangents[3].x),
            strict=True,
        )
    )
    perturbed = program.perturbed({*d_weights, *d_initial, *d_carry, *d_x})

    def every_leaf(given: Values, values: Leaves) -> Values:
        pairs = zip(program.carry, values, strict=True)
        return {v: given.get(v, jnp.zeros_like(a)) for v, a in pairs if v in perturbed}

    return Tangents(
        _widened(d_weights),
        every_leaf(d_initial, primals[1]),
        every_leaf(d_carry, primals[2]),
        d_x,
        perturbed,
    )


def _forward(plan: Plan, weights: Leaves, initial: Leaves, carry: Leaves, frames: Frames) -> Steps:
    """Take T steps."""
    program = plan.program
    shared = dict(zip(program.weights, weights, strict=True))
    read = _widened({v: shared[v] for v in program.read_weights if is_inexact(shared[v])})
    keep = plan.keep and not program.is_linear

    def step(carry: Leaves, now: Any) -> tuple[Leaves, Any]:
        drives, valid, reset = now
        start = carry if reset is None else restarted(reset, initial, carry)
        known = dict(zip(program.carry, start, strict=True))
        dual = Dual({**shared, **_narrowed(read, shared), **known, **drives})
        dual.run(program.loop)
        moved, outputs = (
            [jnp.asarray(value_of(atom, dual.values)) for atom in atoms]
            for atoms in (program.moved, program.loop_outputs)
        )
        if valid is not None:
            moved = where(valid, moved, carry)
        kept = {v: dual.values[v] for v in program.kept} if keep else {}
        return moved, (moved, outputs, kept)

    def drives_of(frame: Frames, many: bool) -> Values:
        x = dict(zip(program.x, seen(frame.x, frame.valid), strict=True))
        dual = Dual({**shared, **x}, many=set(x) if many else set())
        dual.run(program.to_drives)
        return {v: dual.values[v] for v in program.drives}

    def step_from_input(carry: Leaves, frame: Frames) -> tuple[Leaves, Any]:
        return step(carry, (drives_of(frame, many=False), frame.valid, frame.reset))

    def block(carry: Leaves, frames: Frames) -> tuple[Leaves, Any]:
        drives = drives_of(frames, many=True)
        run = _scan_ahead if plan.ahead and drives else jax.lax.scan
        steps = len(frames.x[0])
        return run(step, carry, (drives, frames.valid, frames.reset), length=steps)

    if not plan.hoist:
        last, (carries, outputs, kept) = jax.lax.scan(step_from_input, carry, frames)
        return Steps(last, carries, outputs, kept)
    again = not plan.keep and program.is_linear
    run = jax.checkpoint(block, prevent_cse=False) if again else block
    stretches = []
    for segment in segments(plan.length, plan.block):
        carry, stretch = segment.scan(run, carry, segment.cut(frames))
        stretches.append(stretch)
    return Steps(carry, *joined(stretches))


def _scan_ahead(step: Any, carry: Leaves, frames: Any, length: int) -> tuple[Leaves, Any]:
    """``lax.scan``, with each step's drives fetched one step before, into the loop's state.

    Gates are slices of a drive. Fetched in the step that reads them they are slices of a slice, which XLA's
    CPU backend does not vectorise.
    """
    drives, *rest = frames

    def fetching(state: Any, now: Any) -> tuple[Any, Any]:
        (carry, drive), (t, *rest) = state, now
        carry, results = step(carry, (drive, *rest))
        return (carry, at(drives, jnp.minimum(t + 1, length - 1))), results

    steps = jnp.arange(length, dtype=jnp.int32)
    (carry, _), results = jax.lax.scan(fetching, (carry, at(drives, 0)), (steps, *rest))
    return carry, results


def _push(
    plan: Plan, primals: Any, steps: Steps, moving: Tangents
) -> tuple[Leaves, Leaves, Leaves]:
    """Return the tangents of `Steps.last`, `.carries` and `.outputs`."""
    program, (weights, initial, carry, frames) = plan.program, primals
    shared = dict(zip(program.weights, weights, strict=True))
    step = _step_of_tangents(plan, shared, moving)

    def block(d_carry: Values, now: _Block) -> tuple[Values, Any]:
        known, taps = _values_and_taps(program, shared, initial, moving, now)
        rest = (known, taps, now.frames.valid, now.frames.reset)
        return jax.lax.scan(step, d_carry, rest, length=len(now.frames.x[0]))

    block = jax.checkpoint(block, prevent_cse=False)
    d_carry, stretches = moving.carry, []
    for segment in segments(plan.length, plan.block):
        begins = [_before_blocks(segment, c, a) for c, a in zip(carry, steps.carries, strict=True)]
        rest = segment.cut((steps.carries, steps.kept, frames, moving.x))
        d_carry, stretch = segment.scan(block, d_carry, _Block(begins, *rest))
        stretches.append(stretch)
    d_carries, d_outputs = joined(stretches)
    return (
        _filled(program.carry, d_carry, steps.last),
        _filled(program.carry, d_carries, steps.carries),
        _filled(range(len(steps.outputs)), d_outputs, steps.outputs),
    )


class _Block(NamedTuple):
    """What the derivative of n steps needs.

    Attributes:
      begin: leaves of the carry before the first of them.
      carries: leaves of the carry after each [n, …].
      kept: as in `Steps`.
      frames: inputs and masks.
      d_x: tangents of the inputs [n, …].
    """

    begin: Leaves
    carries: Leaves
    kept: Values
    frames: Frames
    d_x: Values


def _before_blocks(segment: Segment, carry: Any, carries: Any) -> Any:
    """Return the carry before each block of a segment [blocks, …]."""
    last = segment.first + segment.size * (segment.blocks - 1)
    if segment.first:
        return carries[segment.first - 1 : last : segment.size]
    return before_each(carry, carries[segment.size - 1 :: segment.size][: segment.blocks])


def _step_of_tangents(plan: Plan, shared: Values, moving: Tangents) -> Any:
    """Return ``(d_carry, (known, taps, valid, reset)) -> (d_carry, (d_carry, d_outputs))``."""
    program = plan.program
    transposed = {
        product: jax.lax.optimization_barrier(shared[program.factors(product)[1]].T)
        for product in program.products
        if plan.transpose and _multiplies_rows(program, product)
    }
    read = {v: moving.weights[v] for v in program.read_weights if v in moving.weights}
    perturbed_outputs = [
        i
        for i, atom in enumerate(program.loop_outputs)
        if not moving.perturbed.isdisjoint(variables([atom]))
    ]

    def step(d_carry: Values, now: Any) -> tuple[Values, Any]:
        known, taps, valid, reset = now
        d_start = d_carry if reset is None else restarted(reset, moving.initial, d_carry)
        dual = Dual({**shared, **known}, {**d_start, **_narrowed(read, shared), **taps})
        dual.run(program.to_scales)
        for equation in program.loop_of_tangents:
            if equation in program.region:
                dual.tangents.update(_through_region(program, equation, dual, taps, transposed))
            else:
                dual.push([equation])

        def found(atom: Atom) -> Any:
            if not isinstance(atom, Literal) and atom in dual.tangents:
                return dual.tangents[atom]
            form: Any = atom.aval if isinstance(atom, Literal) else program.avals[atom]
            return jnp.zeros(form.shape, form.dtype)

        moved = dict(zip(program.carry, program.moved, strict=True))
        d_moved = {leaf: found(moved[leaf]) for leaf in d_carry}
        if valid is not None:
            d_moved = where(valid, d_moved, d_carry)
        return d_moved, (d_moved, {i: found(program.loop_outputs[i]) for i in perturbed_outputs})

    return jax.checkpoint(step, prevent_cse=False)


def _multiplies_rows(program: StepProgram, product: Equation) -> bool:
    """Tell whether a product is one of rows with a weight from the right."""
    return product.inputs == program.factors(product) and multiplies_rows(product)


def _through_region(
    program: StepProgram, equation: Equation, dual: Dual, taps: Values, transposed: Any
) -> Values:
    """Return what the loop adds to the tangents of an equation's outputs, with the taps that stand there."""
    if equation in program.products:
        operand, weight = program.factors(equation)
        d_operand = None if isinstance(operand, Literal) else dual.tangents.get(operand)
        if d_operand is None:
            found = [None]
        elif equation in transposed:
            found = [times_transposed(equation, d_operand, transposed[equation])]
        else:
            factors = {operand: d_operand, weight: dual.values[weight]}
            found = equation.apply(*(factors[v] for v in equation.inputs))
    else:
        read = variables(equation.inputs)
        in_loop = [v for v in read if program.kind(v) is Kind.CARRY]
        entering = read if program.is_cut_of_drive(equation) else in_loop
        given = {v: dual.tangents[v] for v in entering if v in dual.tangents}
        found = (
            linear(equation, given, program.avals, set())
            if given
            else [None] * len(equation.outputs)
        )
    sums = {}
    for variable, tangent in zip(equation.outputs, found, strict=True):
        terms = [t for t in (tangent, taps.get(variable)) if t is not None]
        if terms:
            sums[variable] = functools.reduce(jnp.add, terms)
    return sums


def _values_and_taps(
    program: StepProgram, shared: Values, initial: Leaves, moving: Tangents, now: _Block
) -> tuple[Values, Values]:
    """Return, of a block of steps, where each starts and what its gates read, and the taps: all [n, …]."""
    frames = now.frames
    starts = before_each(now.begin, now.carries)
    if frames.reset is not None:
        again = [jnp.broadcast_to(i, s.shape) for i, s in zip(initial, starts, strict=True)]
        starts = restarted(frames.reset, again, starts)
    known = dict(zip(program.carry, starts, strict=True))
    x = dict(zip(program.x, seen(frames.x, frames.valid), strict=True))
    tangents = {**_narrowed(moving.weights, shared), **seen(now.d_x, frames.valid)}
    dual = Dual({**shared, **known, **x}, tangents, {*known, *x})
    dual.push(program.to_drives)
    if now.kept:
        dual.values.update(now.kept)
        dual.many.update(now.kept)
    else:
        dual.run(program.to_kept)
    dual.run(program.to_operands)
    known.update((v, dual.values[v]) for v in program.kept)
    return known, _taps(program, dual, len(starts[0]))


def _taps(program: StepProgram, dual: Dual, steps: int) -> Values:
    """Return the taps of a block [n, …], from the tangents of weights and drives."""
    dual.push(program.repeated)
    taps: Values = {}
    many = {
        v for v in dual.tangents if v in dual.many
    }  # a tap may lack the steps that its variable has
    for equation in program.loop:
        if equation not in program.region or program.is_cut_of_drive(equation):
            continue
        read = variables(equation.inputs)
        if equation in program.products:
            _, weight = program.factors(equation)
            if weight not in dual.tangents:
                continue
            given = [dual.tangents[v] if v == weight else dual.values[v] for v in read]
            found = dual.function(equation)(*given)
            many.update(equation.outputs)
        else:
            outside = [v for v in read if program.kind(v) is not Kind.CARRY and v in dual.tangents]
            own = {v: dual.tangents[v] for v in outside}
            own |= {v: taps.pop(v) for v in read if v in taps and v in program.handed_on}
            if not own:
                continue
            found = linear(equation, own, program.avals, many)
            many.update(() if many.isdisjoint(own) else equation.outputs)
        taps.update(zip(equation.outputs, found, strict=True))
    taps.update((v, dual.tangents[v]) for v in program.tapped_drives if v in dual.tangents)
    return {
        v: tap if v in many else jnp.broadcast_to(tap, (steps, *tap.shape))
        for v, tap in taps.items()
    }


def _widened(arrays: Values) -> Values:
    """Return arrays in float32 at least: cotangents of many steps are added up in the dtype of these."""
    return {v: a.astype(at_least_float32(a.dtype)) for v, a in arrays.items()}


def _narrowed(arrays: Values, like: Values) -> Values:
    """Return arrays in the dtypes that they had."""
    return {v: a.astype(like[v].dtype) for v, a in arrays.items()}


def _filled(names: Any, tangents: Values, values: Leaves) -> Leaves:
    """Return the tangents of all leaves, zeros where there are none."""
    return [
        tangents[name] if name in tangents else _zeros(value)
        for name, value in zip(names, values, strict=True)
    ]


def _zeros(value: Any) -> Any:
    """Return the tangent zero of an array; that of an array of integers has JAX's own dtype."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)
