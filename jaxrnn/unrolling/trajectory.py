"""The trajectory of a step and its derivative, as one ``jax.custom_jvp``.

Along a known trajectory the tangents obey (`jaxrnn.unrolling.dataflow` defines the terms)

    d carry'  = ∂gates/∂carry · d carry + ∂gates/∂signal · d signal      in the loop
    d signal  = d operand · W + d tap                                    in the loop
    d tap     = operand · dW + d input                                   a block of steps at once

A tap is an extra term of a signal. Its value is zero, and only its tangent matters. This module implements
these three equations and nothing else. They are linear in the tangents, so JAX transposes them, and the loop
of the backward pass carries cotangents of the carry alone. The cotangent of a tap equals that of its signal,
and the cotangent of W is operandᵀ times it, one product per block. Forward mode, ``jax.linearize`` and
Hessians follow from the same rule.

The residuals are the carries, and the signals if `Plan.keep` is set. A ``jax.checkpoint`` around each step
makes the backward pass recompute the gates instead of reading them from memory. A second one, around each
block of steps, makes it recompute the signals where they are not kept. A linear recurrence without weights in
its loop is left to JAX's own derivative. That derivative saves only the factors of the recurrence, which the
forward pass has computed anyway.

Weakness: reverse mode over reverse mode differentiates the forward loop as ``lax.scan`` does, and is no
faster.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from jaxrnn.jaxprs import Atom, Equation, Value, Values, Variable, is_inexact, leading_to, value_of
from jaxrnn.typing import at_least_float32
from jaxrnn.unrolling.blocks import at, before_blocks, before_each, scan_blocks
from jaxrnn.unrolling.dataflow import StepProgram
from jaxrnn.unrolling.duals import Dual, multiplies_rows, rows_by_matrix
from jaxrnn.unrolling.record import Frames, restarted, seen, where

Leaves = list[Value]
"""The leaves of a tree, in order."""

_Flag = Value | None

_Taken = tuple[Leaves, tuple[Leaves, Leaves, Values]]
"""The next carry, and for each step the carry, the outputs and the values of some variables."""

_Pushed = tuple[Values, tuple[Values, Leaves]]
"""The tangents of the next carry, and for each step those of the carry and the outputs."""

_Step = Callable[[Leaves, tuple[Values, _Flag, _Flag]], _Taken]
"""``(carry, (drives, valid, reset)) -> (carry, results)``, as ``lax.scan`` takes it."""

_TangentStep = Callable[[Values, tuple[Values, Values, _Flag, _Flag]], _Pushed]
"""``(d_carry, (known, taps, valid, reset)) -> (d_carry, results)``."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static decisions about how T steps are computed.

    Attributes:
      program: the program of the step.
      length: number T of steps.
      block: steps in a block.
      keep: whether what gates read is kept as a residual; otherwise it is recomputed from the carries.
      hoist: whether drives are computed for a block of steps at once; otherwise step by step.
      ahead: whether the forward loop fetches the drives of a step during the preceding step.
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


class Arguments(NamedTuple):
    """The arrays from which a trajectory is computed; the rule differentiates with respect to them.

    Attributes:
      weights: the values of `StepProgram.weights`.
      initial: leaves of the carry that a reset goes back to.
      carry: leaves of the first carry.
      frames: masks, and the leaves of the inputs [T, …].
    """

    weights: Leaves
    initial: Leaves
    carry: Leaves
    frames: Frames


class Steps(NamedTuple):
    """The results of T steps.

    Attributes:
      last: leaves of the last carry.
      carries: leaves of the carry after each step [T, …].
      outputs: leaves of y [T, …]; empty where y is a function of the next carry and weights.
    """

    last: Leaves
    carries: Leaves
    outputs: Leaves


class Tangents(NamedTuple):
    """The tangents of the perturbed arguments, by variable.

    Attributes:
      weights: tangents of the weights, at least in float32, as their cotangents are summed over many steps.
      initial: tangents of the carry that a reset goes back to.
      carry: tangents of the first carry; zeros for leaves that are perturbed only at a later step.
      x: tangents of the inputs [T, …].
    """

    weights: Values
    initial: Values
    carry: Values
    x: Values


class _Block(NamedTuple):
    """What the derivative of n steps reads: carries, kept signals, masks and inputs, tangents of inputs."""

    carries: Leaves
    kept: Values
    frames: Frames
    d_x: Values


def carry_through(plan: Plan, given: Arguments) -> Steps:
    """Compute the trajectory of T steps."""
    if plan.program.is_linear:
        return _forward(plan, given, again=not plan.keep)[0]
    return _carry_through(plan, given)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _carry_through(plan: Plan, given: Arguments) -> Steps:
    return _forward(plan, given)[0]


@functools.partial(_carry_through.defjvp, symbolic_zeros=True)
def _jvp(plan: Plan, primals: tuple[Arguments], tangents: tuple[Arguments]) -> tuple[Steps, Steps]:
    (given,), (d_given,) = primals, tangents
    steps, kept = _forward(plan, given, plan.program.kept if plan.keep else [])
    return steps, _push(plan, given, steps, kept, _tangents_of(plan.program, given, d_given))


def _tangents_of(program: StepProgram, given: Arguments, d_given: Arguments) -> Tangents:
    """Return the tangents without symbolic zeros, but with zeros for a carry that a later step perturbs."""
    variables = program.weights, program.carry, program.carry, program.x
    leaves = *d_given[:3], d_given.frames.x
    d_weights, d_initial, d_carry, d_x = (
        {v: d for v, d in _by(of, ds).items() if not isinstance(d, SymbolicZero)}
        for of, ds in zip(variables, leaves, strict=True)
    )
    perturbed = program.perturbed_carry({*d_weights, *d_initial, *d_carry, *d_x})

    def of_perturbed(tangents: Values, values: Leaves) -> Values:
        by_leaf = _by(program.carry, values).items()
        return {v: tangents.get(v, jnp.zeros_like(a)) for v, a in by_leaf if v in perturbed}

    initial, carry = of_perturbed(d_initial, given.initial), of_perturbed(d_carry, given.carry)
    return Tangents(_widened(d_weights), initial, carry, d_x)


# The forward pass.


def _forward(
    plan: Plan, given: Arguments, kept: Sequence[Variable] = (), *, again: bool = False
) -> tuple[Steps, Values]:
    """Return the results of T steps, and the values of some variables at each step [T, …].

    Args:
      plan: how the steps are computed.
      given: the arrays to start from.
      kept: the variables whose values are returned.
      again: recompute each block in the backward pass, where JAX differentiates the loop itself.
    """
    program, weights = plan.program, _by(plan.program.weights, given.weights)
    step = _step(program, weights, given.initial, kept)

    def step_from_input(carry: Leaves, frame: Frames) -> _Taken:
        return step(carry, (_drives(program, weights, frame), frame.valid, frame.reset))

    def block(carry: Leaves, now: tuple[None, Frames]) -> _Taken:
        _, frames = now
        drives = _drives(program, weights, frames)
        run = _scan_ahead if plan.ahead and drives else jax.lax.scan
        return run(step, carry, (drives, frames.valid, frames.reset), length=len(frames.x[0]))

    if plan.hoist:
        run = jax.checkpoint(block, prevent_cse=False) if again else block
        sizes = {"length": plan.length, "block": plan.block}
        last, results = scan_blocks(run, given.carry, given.frames, **sizes)
    else:
        last, results = jax.lax.scan(step_from_input, given.carry, given.frames)
    carries, outputs, found = results
    return Steps(last, carries, outputs), found


def _drives(program: StepProgram, weights: Values, frames: Frames) -> Values:
    """Return the drives, for one step or for many at once."""
    dual = Dual({**weights, **_inputs(program, frames)})
    dual.run(program.flat.equations, program.drives)
    return {v: dual.values[v] for v in program.drives}


def _step(
    program: StepProgram, weights: Values, initial: Leaves, kept: Sequence[Variable]
) -> _Step:
    """Return the step as ``lax.scan`` takes it; it reads its drives and reports the variables `kept`."""
    read = _widened({v: weights[v] for v in program.read_weights if is_inexact(weights[v])})

    def step(carry: Leaves, now: tuple[Values, _Flag, _Flag]) -> _Taken:
        drives, valid, reset = now
        start = carry if reset is None else restarted(reset, initial, carry)
        dual = Dual({**weights, **_narrowed(read, weights), **_by(program.carry, start), **drives})
        dual.run(program.loop, program.results)
        after, outputs = (
            [jnp.asarray(value_of(atom, dual.values)) for atom in atoms]
            for atoms in (program.next_carry, program.loop_outputs)
        )
        if valid is not None:
            after = where(valid, after, carry)
        return after, (after, outputs, {v: dual.values[v] for v in kept})

    return step


def _scan_ahead(
    step: _Step, carry: Leaves, frames: tuple[Values, _Flag, _Flag], length: int
) -> _Taken:
    """Run ``lax.scan`` with each step's drives fetched one step ahead, into the loop's state.

    Gates read slices of a drive. If a drive were fetched in the step that reads it, these would be slices of
    a slice, which XLA's CPU backend does not vectorise.
    """
    drives, valid, reset = frames

    def fetching(state: tuple[Leaves, Values], now: tuple[Value, _Flag, _Flag]) -> Any:
        (carry, drive), (t, valid, reset) = state, now
        carry, results = step(carry, (drive, valid, reset))
        return (carry, at(drives, jnp.minimum(t + 1, length - 1))), results

    steps = jnp.arange(length, dtype=jnp.int32)
    (carry, _), results = jax.lax.scan(fetching, (carry, at(drives, 0)), (steps, valid, reset))
    return carry, results


# The tangents.


def _push(plan: Plan, given: Arguments, steps: Steps, kept: Values, moving: Tangents) -> Steps:
    """Return the tangents of the results of T steps."""
    program, weights = plan.program, _by(plan.program.weights, given.weights)
    step = _step_of_tangents(plan, weights, moving)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(d_carry: Values, now: tuple[Leaves, _Block]) -> _Pushed:
        begin, of_steps = now
        starts, frames = before_each(begin, of_steps.carries), of_steps.frames
        if frames.reset is not None:
            pairs = zip(given.initial, starts, strict=True)
            initial = [jnp.broadcast_to(leaf, start.shape) for leaf, start in pairs]
            starts = restarted(frames.reset, initial, starts)
        known, taps = _known_and_taps(
            program, weights, _by(program.carry, starts), moving, of_steps
        )
        rest = known, taps, frames.valid, frames.reset
        return jax.lax.scan(step, d_carry, rest, length=len(starts[0]))

    d_carry, (d_carries, d_outputs) = scan_blocks(
        block,
        moving.carry,
        _Block(steps.carries, kept, given.frames, moving.x),
        length=plan.length,
        block=plan.block,
        of_blocks=before_blocks(given.carry, steps.carries, plan.block),
    )
    return Steps(
        _every_leaf(program.carry, d_carry, steps.last),
        _every_leaf(program.carry, d_carries, steps.carries),
        d_outputs,
    )


def _known_and_taps(
    program: StepProgram, weights: Values, starts: Values, moving: Tangents, now: _Block
) -> tuple[Values, Values]:
    """Return the values that gates read in a block of steps (signals and first carries), and the taps."""
    tangents = _narrowed(moving.weights, weights) | seen(now.d_x, now.frames.valid)
    dual = Dual({**weights, **_inputs(program, now.frames)}, tangents)
    dual.push(leading_to(program.flat.equations, program.drives, dual.values))
    dual.values.update(starts | now.kept)
    operands = [program.factors(product)[0] for product in program.products]
    dual.run(program.loop, [*program.kept, *operands])
    known = starts | {v: dual.values[v] for v in program.kept}
    shapes = {v: (len(now.carries[0]), *program.avals[v].shape) for v in program.tapped}
    return known, {v: jnp.broadcast_to(tap, shapes[v]) for v, tap in _taps(program, dual).items()}


def _taps(program: StepProgram, dual: Dual) -> Values:
    """Return the taps of a block, given tangents of weights and drives and values of operands."""
    taps: Values = {}

    def stop_at(variables: Sequence[Variable]) -> None:
        stopped = program.tapped.intersection(variables) & dual.tangents.keys()
        taps.update((v, dual.tangents.pop(v)) for v in sorted(stopped))

    stop_at(program.drives)
    dual.push(program.spread)
    for equation in program.loop:
        if equation in program.region:
            dual.tangents.update(dual.jvp(equation)[1])
            stop_at(equation.outputs)
    return taps


def _step_of_tangents(plan: Plan, weights: Values, moving: Tangents) -> _TangentStep:
    """Return the step of the tangents: it maps tangents of the carry to the next, given signals and taps."""
    program = plan.program
    read = {v: moving.weights[v] for v in program.read_weights if v in moving.weights}
    factors = [program.factors(product)[1] for product in program.products]
    once = {v for e in program.spread for v in e.outputs}.union(program.weights)
    transposed = _transposed(program, weights) if plan.transpose else {}

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(d_carry: Values, now: tuple[Values, Values, _Flag, _Flag]) -> _Pushed:
        known, taps, valid, reset = now
        d_start = d_carry if reset is None else restarted(reset, moving.initial, d_carry)
        dual = Dual(weights | known, {**d_start, **_narrowed(read, weights), **taps})
        dual.run(program.spread, factors)
        for equation in program.loop:
            if equation in program.region:
                _, found = dual.jvp(transposed.get(equation, equation), fixed=once)
                dual.tangents.update((v, d + taps[v] if v in taps else d) for v, d in found.items())
            elif equation in program.gates:
                dual.push([equation])

        def tangent_of(atom: Atom) -> Value:
            found = None if isinstance(atom, Literal) else dual.tangents.get(atom)
            aval = program.flat.aval(atom)
            return jnp.zeros(aval.shape, aval.dtype) if found is None else found

        after = _by(program.carry, program.next_carry)
        d_after = {leaf: tangent_of(after[leaf]) for leaf in d_carry}
        if valid is not None:
            d_after = where(valid, d_after, d_carry)
        return d_after, (d_after, list(map(tangent_of, program.loop_outputs)))

    return step


def _transposed(program: StepProgram, weights: Values) -> dict[Equation, Equation]:
    """Return each product of rows with a weight as a product with the weight transposed before the loop."""

    def of(product: Equation) -> Equation:
        operand, weight = program.factors(product)
        # The barrier keeps XLA from folding the transposition back into the products of the loop.
        held = jax.lax.optimization_barrier(weights[weight].T)
        return dataclasses.replace(
            product,
            inputs=(operand,),
            input_avals=(program.avals[operand],),
            apply=lambda rows: [rows_by_matrix(product, rows, held, axis=1)],
        )

    rows = [p for p in program.products if p.inputs == program.factors(p) and multiplies_rows(p)]
    return {product: of(product) for product in rows}


def _inputs(program: StepProgram, frames: Frames) -> Values:
    return _by(program.x, seen(frames.x, frames.valid))


def _by(variables: Sequence[Variable], leaves: Sequence[Value]) -> Values:
    """Map variables to the leaves that they stand for."""
    return dict(zip(variables, leaves, strict=True))


def _widened(arrays: Values) -> Values:
    """Return arrays at least in float32, the dtype in which cotangents are summed over many steps."""
    return {v: a.astype(at_least_float32(a.dtype)) for v, a in arrays.items()}


def _narrowed(arrays: Values, like: Values) -> Values:
    """Return arrays in the dtypes of those of `like`."""
    return {v: a.astype(like[v].dtype) for v, a in arrays.items()}


def _every_leaf(variables: Sequence[Variable], tangents: Values, values: Leaves) -> Leaves:
    """Return the tangents of all leaves, with symbolic zeros materialized."""
    return [tangents.get(v, jnp.zeros_like(a)) for v, a in _by(variables, values).items()]
