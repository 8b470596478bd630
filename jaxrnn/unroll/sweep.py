"""A step's parts carried forward through all steps, and the cotangents back: the derivative of `Blocked`.

Forward only what waits for the carry is in the loop. Back, a sweep through each block of steps, the last
first, carries cotangents alone, and the weights get theirs from the whole block when it is through.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from jaxrnn.steps import varying_alike
from jaxrnn.typing import Carry, at_least_float32
from jaxrnn.unroll.blocks import at, joined, segments, window
from jaxrnn.unroll.parts import Parts, Results
from jaxrnn.unroll.record import Frames, restarted, seen, where

_BITS = 16  # flags that a dimension of an array's shape holds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is settled before anything is computed.

    Attributes:
      parts: of the step.
      length: number T of steps.
      block: steps in a block.
      keep: whether signals are kept for the way back, or else computed again.
      hoist: whether drives are computed for a block at once, or else in the loop.
      many_rows: whether products of one step have more than one row.
      many_gates: whether gates are slices of one row.
      many_slices: whether a step back reads so many arrays that a copy of its signals pays.
    """

    parts: Parts
    length: int
    block: int
    keep: bool
    hoist: bool
    many_rows: bool
    many_gates: bool
    many_slices: bool

    @property
    def is_whole_drive(self) -> bool:
        """Whether all signals are drives, and all are kept at once."""
        return self.parts.drives_alone and self.keep and self.block == self.length


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights", "initial", "carry", "frames", "carries", "signals", "asked"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class _Kept:
    """What the forward pass leaves for the backward pass.

    Attributes:
      weights: of the step.
      initial: the carry that a reset goes back to.
      carry: before the first step.
      frames: inputs and masks.
      carries: behind every step.
      signals: of every step; None if they are not kept.
      asked: by what is differentiated, as `_marked` has it.
    """

    weights: Any
    initial: Carry
    carry: Carry
    frames: Frames
    carries: Carry
    signals: Any
    asked: jax.Array

    def parts(self, plan: Plan) -> Parts:
        """Return the parts of the step, as far as they are differentiated."""
        return plan.parts.by(*_unmarked(self.asked, (self.weights, self.carry, self.frames.x)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def carry_through(
    plan: Plan, weights: Any, initial: Carry, carry: Carry, frames: Frames
) -> tuple[Carry, Carry, Any]:
    """Return the last carry, all carries, and outputs that are not read from these."""
    results, _ = _forward(dataclasses.replace(plan, keep=False), weights, initial, carry, frames)
    return results


def _asked(weights: Any, initial: Carry, carry: Carry, frames: Frames) -> tuple[Any, Carry, Any]:
    """Tell of the weights, the carry and the input, leaf by leaf, whether cotangents are asked for."""
    by_weights, by_initial, by_carry, by_x = jax.tree.map(
        lambda a: a.perturbed, (weights, initial, carry, frames.x)
    )
    return by_weights, jax.tree.map(operator.or_, by_initial, by_carry), by_x


def _marked(flags: Any) -> jax.Array:
    """Write flags into the shape of an array without numbers.

    The way back has to know them as it is traced. Of what the way there leaves JAX keeps one structure,
    whatever is asked for, the last: flags that were part of it would be those of another derivative.
    """
    bits = jax.tree.leaves(flags)
    words = [bits[i : i + _BITS] for i in range(0, len(bits), _BITS)]
    return jnp.zeros((0, *(sum(bit << i for i, bit in enumerate(word)) for word in words)))


def _unmarked(array: jax.Array, like: Any) -> Any:
    """Read flags from a shape, one for each leaf of a tree."""
    structure = jax.tree.structure(like)
    places = [divmod(i, _BITS) for i in range(structure.num_leaves)]
    return structure.unflatten([bool(array.shape[1 + word] >> i & 1) for word, i in places])


def _forward_rule(plan: Plan, *arguments: Any) -> tuple[Any, Any]:
    values: Any = custom_vjp_primal_tree_values(arguments)
    weights, initial, carry, frames = values
    if plan.is_whole_drive:
        return jax.vjp(functools.partial(_without_weights, plan, frames), *values[:3], frames.x)
    results, signals = _forward(plan, weights, initial, carry, frames)
    asked = _marked(_asked(*arguments))
    return results, _Kept(weights, initial, carry, frames, results[1], signals, asked)


def _backward_rule(plan: Plan, kept: Any, cotangents: Any) -> tuple[Any, Carry, Carry, Frames]:
    if plan.is_whole_drive:
        (cotangents,) = varying_alike(_instantiated(cotangents))
        *d_others, d_x = kept(cotangents)
        return *d_others, Frames(d_x, None, None)
    d_last, d_carries, d_ys = cotangents
    _, d_ys = varying_alike(kept.carry, _instantiated(d_ys))
    # A carry that no loss looks at has no cotangent to add: None rather than an array of zeros.
    d_carries = jax.tree.map(lambda d: None if _is_zero(d) else d, d_carries, is_leaf=_is_zero)
    d_carry = jax.tree.map(
        lambda d, like: jnp.zeros_like(like) if _is_zero(d) else d,
        d_last,
        kept.carry,
        is_leaf=_is_zero,
    )
    state = (d_carry, *jax.tree.map(jnp.zeros_like, (kept.initial, kept.weights)))
    d_xs = []
    for segment in reversed(segments(plan.length, plan.block)):

        def sweep(state, first, size=segment.size):
            return _sweep(plan, kept, d_carries, d_ys, state, first, size)

        state, d_x = segment.scan(sweep, state, segment.starts, reverse=True)
        d_xs.append(d_x)
    d_carry, d_initial, d_weights = state
    return d_weights, d_initial, d_carry, Frames(joined(d_xs[::-1]), None, None)


carry_through.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


def _stepper(plan: Plan, weights: Any, initial: Carry) -> Any:
    """Return the step ``(carry, (drive, valid, reset)) -> (carry, (carry, y, signal or None))``."""

    def step(carry, now):
        drive, valid, reset = now
        start = carry if reset is None else restarted(reset, initial, carry)
        (moved, y), signal = plan.parts.step(weights, start, drive)
        if valid is not None:
            moved = where(valid, moved, carry)
        return moved, (moved, y, signal if plan.keep else None)

    return step


def _without_weights(
    plan: Plan, frames: Frames, weights: Any, initial: Carry, carry: Carry, xs: Any
) -> tuple[Carry, Carry, Any]:
    """Return what `carry_through` does, of a step without weights in its loop.

    Nothing is left there for a derivative by hand to save: JAX's own keeps the gates, and `_sweep` would
    compute them again.
    """
    drives = plan.parts.drives(weights, seen(xs, frames.valid))
    step = _stepper(dataclasses.replace(plan, keep=False), weights, initial)
    last, (carries, ys, _) = jax.lax.scan(step, carry, (drives, frames.valid, frames.reset))
    return last, carries, ys


def _forward(
    plan: Plan, weights: Any, initial: Carry, carry: Carry, frames: Frames
) -> tuple[tuple[Carry, Carry, Any], Any]:
    """Return what `carry_through` does, and the signals if they are to be kept."""
    step = _stepper(plan, weights, initial)

    def step_from_input(carry, frame):
        drive = plan.parts.drive(weights, seen(frame.x, frame.valid))
        return step(carry, (drive, frame.valid, frame.reset))

    if not plan.hoist:
        carry, (carries, ys, signals) = jax.lax.scan(step_from_input, carry, frames)
        return (carry, carries, ys), signals

    def run(carry, block):
        drives = plan.parts.drives(weights, seen(block.x, block.valid))
        rest = (block.valid, block.reset)
        size = len(jax.tree.leaves(block)[0])
        return _over_signals(step, carry, drives, 0, size, rest, ahead=plan.many_gates)

    stretches = []
    for segment in segments(plan.length, plan.block):
        carry, stretch = segment.scan(run, carry, segment.cut(frames))
        stretches.append(stretch)
    carries, ys, signals = joined(stretches)
    return (carry, carries, ys), signals


def _over_signals(
    step: Any,
    state: Any,
    source: Any,
    first: Any,
    size: int,
    rest: tuple[Any, ...],
    *,
    ahead: bool,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Scan ``step(state, (signal, *rest))`` over `size` steps, step t's signal being ``source[first + t]``.

    Several gates are slices of one signal. `ahead` brings it into the loop's own state as one copy, a step
    before it is used: fetched by each gate, it would be a slice of a slice, and XLA's CPU backend vectorises
    none.
    """

    def fetching(state, now):
        t, *rest = now
        return step(state, (at(source, first + t), *rest))

    def fetching_ahead(states, now):
        (state, signal), (t, *rest) = states, now
        state, kept = step(state, (signal, *rest))
        following = jnp.maximum(t - 1, 0) if reverse else jnp.minimum(t + 1, size - 1)
        return (state, at(source, first + following)), kept

    steps = (jnp.arange(size, dtype=jnp.int32), *rest)
    if not ahead:
        return jax.lax.scan(fetching, state, steps, reverse=reverse)
    start = at(source, first + (size - 1 if reverse else 0))
    (state, _), kept = jax.lax.scan(fetching_ahead, (state, start), steps, reverse=reverse)
    return state, kept


def _sweep(
    plan: Plan, kept: _Kept, d_carries: Any, d_ys: Any, state: Any, first: Any, size: int
) -> tuple[Any, Any]:
    """Take the cotangents back through the block of `size` steps that begins at step `first`.

    Args:
      plan: what was settled.
      kept: what the forward pass left, all T steps.
      d_carries: cotangents of all carries; None for a leaf without.
      d_ys: cotangents of outputs that are not read from the carries.
      state: cotangents of the carry behind the block, of the initial carry (from resets) and of the weights.
      first: the block's first step.
      size: its number of steps.

    Returns:
      The state before the block, and the cotangents of the block's inputs.
    """
    weights, parts = kept.weights, kept.parts(plan)
    d_carry, d_initial, d_weights = state
    frames = window(kept.frames, first, size)
    starts = _starts(kept, frames.reset, first, size)
    given = None if kept.signals is None else window(kept.signals, first, size)
    block = parts.block(weights, seen(frames.x, frames.valid), starts, given)
    source, offset = (block.signals, 0) if given is None else (kept.signals, first)
    # XLA's CPU backend multiplies by a transposed matrix a third slower: it is turned once, before the loop.
    turned = jax.lax.optimization_barrier(parts.turned(weights)) if plan.many_rows else None

    def step(state, now):
        (d_carry, d_initial, d_read), (signal, t, start, fixed, valid, reset) = state, now
        d_carry = _sum(d_carry, at(d_carries, first + t))
        nothing = jax.tree.map(jnp.zeros_like, d_carry)
        d_moved = d_carry if valid is None else where(valid, d_carry, nothing)
        cotangents = Results(d_moved, seen(at(d_ys, first + t), valid))
        found = parts.back(weights, turned, start, signal, fixed, cotangents)
        d_start = found.carry
        if reset is not None:
            d_initial = _sum(d_initial, restarted(reset, d_start, nothing))
            d_start = restarted(reset, nothing, d_start)
        if valid is not None:  # where the carry was held, so is its cotangent
            d_start = _sum(d_start, where(valid, nothing, d_carry))
        d_read = jax.tree.map(lambda total, d: total + d.astype(total.dtype), d_read, found.read)
        return (d_start, d_initial, d_read), found.signal

    read = parts.read(weights)
    # Added up step by step, in half precision they would drown.
    d_read = jax.tree.map(lambda a: jnp.zeros_like(a, at_least_float32(a.dtype)), read)
    steps = jnp.arange(size, dtype=jnp.int32)
    rest = (steps, starts, block.fixed, frames.valid, frames.reset)
    ahead = plan.many_rows and plan.many_slices
    state = (d_carry, d_initial, d_read)
    (d_carry, d_initial, d_read), d_signals = _over_signals(
        step, state, source, offset, size, rest, ahead=ahead, reverse=True
    )
    d_read = jax.tree.map(lambda d, a: d.astype(a.dtype), d_read, read)
    d_block, d_x = block.back(d_signals)
    d_weights = _sum(d_weights, parts.with_read(weights, d_block, d_read))
    return (d_carry, d_initial, d_weights), seen(d_x, frames.valid)


def _starts(kept: _Kept, reset: Any, first: Any, size: int) -> Carry:
    """Return the carry that each step of a block starts from, resets applied."""
    starts = jax.lax.cond(
        first > 0,
        lambda: window(kept.carries, first - 1, size),
        lambda: jax.tree.map(
            lambda i, c: jnp.concatenate([i[None], c[: size - 1]]), kept.carry, kept.carries
        ),
    )
    if reset is None:
        return starts
    initial = jax.tree.map(lambda i, s: jnp.broadcast_to(i, s.shape), kept.initial, starts)
    return restarted(reset, initial, starts)


def _sum(a: Any, b: Any) -> Any:
    """Add two trees; None in `b` is nothing."""
    return jax.tree.map(lambda x, y: x if y is None else x + y, a, b)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _instantiated(tree: Any) -> Any:
    """Return zeros where there are none but in thought."""
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x, tree, is_leaf=_is_zero
    )
