"""The default for cells of ours: whatever needs no carry is taken out of the loop, block by block of steps.

A scan over whole steps multiplies by the input weights inside the loop, and its derivative, taken
mechanically, keeps a dozen arrays a step and adds to a weight-shaped gradient at every one of them. The
split of a cell (`jaxrnn.typing`) allows better:

    forward     drive  = project(x)                         one product a block
                signal = drive and mix(carry)               in the loop
                carry' = update(carry, signal)              in the loop
    backward    δcarry = ∂update/∂carryᵀ δ + mixᵀ δsignal   in the loop: cotangents alone, no weights
                δW, δU, δx from every δsignal               one product each a block

The carries are kept for the backward pass, and what the gates make of their signals is computed again. The
signals themselves are kept where that is cheaper than to compute them again, a block at a time from its
carries: writing to fresh memory has a price too. Where no weights meet the carry, as in a minGRU, and the
signals of one block are all and kept, the gates are kept with them.

Weakness: reverse mode only. The derivative is written by hand, which JAX allows for one mode; forward mode
is `Scan`'s. Derivatives of the gradient, as in a Hessian by forward over reverse, are right.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from jaxrnn import checks
from jaxrnn.steps import varying_alike
from jaxrnn.typing import Carry, SplitCell, Step
from jaxrnn.unroll.blocks import at, even, joined, segments, window
from jaxrnn.unroll.record import Frames, Method, Unrolled, seen, where
from jaxrnn.unroll.scan import Scan
from jaxrnn.unroll.signals import Drive, Signals, signals_of

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
_KEPT_INTENSITY = 384


@dataclasses.dataclass(frozen=True)
class Blocked(Method):
    """Split cells, block by block.

    Args:
      block: steps in a block; the last may be shorter. By default so many that their signals fill about
        2 MB, or all, where all fill no more than 8 MB; a size that divides the number of steps is preferred.
      keep_signals: keep the signals [T, *B, P] for the backward pass, rather than compute them again from
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
        """Tell whether a step is split as this method needs it."""
        return _signals(cell, carry, frames) is not None

    def __post_init__(self):
        """Refuse a block without steps."""
        if self.block is not None:
            checks.count("block", self.block)

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        signals = _signals(cell, carry, frames)
        if signals is None:
            expected = "Scan() for a step that is not a jaxrnn.typing.SplitCell with inputs"
            checks.refuse("method", self, expected)
        assert isinstance(cell, SplitCell)
        plan = self._plan(cell, carry, signals, frames.x, length)
        results: Any = _carry_through(plan, cell, initial, carry, frames)
        last, carries = results
        outputs = seen(cell.readout(carries), frames.valid)
        ran = Blocked(plan.block, plan.keep)
        return Unrolled(outputs=outputs, carry=last, carries=carries, method=ran)

    def _plan(self, cell: SplitCell, carry: Carry, signals: Signals, xs: Any, length: int) -> _Plan:
        drive = jax.eval_shape(cell.project, xs[0])
        rows = math.prod(drive.shape[:-1])
        step_bytes = signals.arrays * drive.size * drive.dtype.itemsize
        if self.block is not None:
            block = min(self.block, length)
        elif step_bytes * length <= _WHOLE_BYTES:
            block = length
        else:
            block = even(length, max(_BLOCK_BYTES // step_bytes, _BLOCK_ROWS // rows, 1))
        keep = self.keep_signals
        if keep is None:
            weights = sum(leaf.size for leaf in jax.tree.leaves(cell))
            intensity = weights / (signals.arrays * drive.shape[-1])
            keep = step_bytes * length <= _KEPT_BYTES or intensity >= _KEPT_INTENSITY
        # On a CPU, many rows multiply as fast within the loop as before it, and need no room for drives.
        small = rows < _LOOP_ROWS or xs.shape[-1] == 1
        hoist = small or jax.default_backend() != "cpu"
        widths = [leaf.shape[-1] for leaf in jax.tree.leaves(carry)]
        gates = drive.shape[-1] // max([1, *widths])
        many_slices = signals.arrays * gates + len(widths) >= _AHEAD_SLICES
        return _Plan(signals, length, block, keep, hoist, rows > 1, gates > 1, many_slices)


def _signals(cell: Step, carry: Carry, frames: Frames) -> Signals | None:
    return None if frames.x is None else signals_of(cell, carry, at(frames.x, 0))


def default_method(cell: Step, carry: Carry, frames: Frames) -> Method:
    """Return the fastest method that takes a step: `Blocked`, or else `Scan`."""
    return Blocked() if Blocked.takes(cell, carry, frames) else Scan()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is settled before anything is computed."""

    signals: Signals
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
        return isinstance(self.signals, Drive) and self.keep and self.block == self.length


class _Kept(NamedTuple):
    """What the forward pass leaves for the backward pass; `signals` is None if they are not kept."""

    cell: Any
    initial: Carry
    carry: Carry
    frames: Frames
    carries: Carry
    signals: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _carry_through(
    plan: _Plan, cell: SplitCell, initial: Carry, carry: Carry, frames: Frames
) -> tuple[Carry, Carry]:
    """Return the last carry and all carries."""
    results, _ = _forward(dataclasses.replace(plan, keep=False), cell, initial, carry, frames)
    return results


def _forward_rule(plan: _Plan, *arguments: Any) -> tuple[Any, Any]:
    values: Any = custom_vjp_primal_tree_values(arguments)
    cell, initial, carry, frames = values
    if plan.is_whole_drive:
        return jax.vjp(functools.partial(_without_weights, plan, frames), *values[:3], frames.x)
    (last, carries), signals = _forward(plan, cell, initial, carry, frames)
    return (last, carries), _Kept(cell, initial, carry, frames, carries, signals)


def _backward_rule(plan: _Plan, kept: Any, cotangents: Any) -> tuple[Any, Carry, Carry, Frames]:
    if plan.is_whole_drive:
        (cotangents,) = varying_alike(jax.tree.map(_instantiated, cotangents, is_leaf=_is_zero))
        *d_others, d_x = kept(cotangents)
        return *d_others, Frames(d_x, None, None)
    d_last, d_carries = cotangents
    d_carry = jax.tree.map(
        lambda d, like: jnp.zeros_like(like) if _is_zero(d) else d,
        d_last,
        kept.carry,
        is_leaf=_is_zero,
    )
    # A carry that no loss looks at has no cotangent to add: None rather than an array of zeros.
    d_carries = jax.tree.map(lambda d: None if _is_zero(d) else d, d_carries, is_leaf=_is_zero)
    state = (d_carry, *jax.tree.map(jnp.zeros_like, (kept.initial, kept.cell)))
    d_xs = []
    for segment in reversed(segments(plan.length, plan.block)):

        def sweep(state, first, size=segment.size):
            return _sweep(plan, kept, d_carries, state, first, size)

        state, d_x = segment.scan(sweep, state, segment.starts, reverse=True)
        d_xs.append(d_x)
    d_carry, d_initial, d_cell = state
    return d_cell, d_initial, d_carry, Frames(joined(d_xs[::-1]), None, None)


_carry_through.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


def _stepper(plan: _Plan, cell: SplitCell, initial: Carry) -> Any:
    """Return the step ``(carry, (drive, valid, reset)) -> (carry, (carry, signal or None))``."""

    def step(carry, now):
        drive, valid, reset = now
        start = carry if reset is None else where(reset, initial, carry)
        signal = plan.signals.join(drive, cell.mix(start))
        moved = plan.signals.update(cell, start, signal)
        if valid is not None:
            moved = where(valid, moved, carry)
        return moved, (moved, signal if plan.keep else None)

    return step


def _without_weights(
    plan: _Plan, frames: Frames, cell: SplitCell, initial: Carry, carry: Carry, xs: Any
) -> tuple[Carry, Carry]:
    """Return the last carry and all carries of a cell without weights in its loop.

    Nothing is left there for a derivative by hand to save: JAX's own keeps the gates, and `_sweep` would
    compute them again.
    """
    xs = seen(xs, frames.valid)
    drives = cell.project(_rows(xs))
    drives = drives.reshape(*xs.shape[:-1], drives.shape[-1])
    step = _stepper(dataclasses.replace(plan, keep=False), cell, initial)
    last, (carries, _) = jax.lax.scan(step, carry, (drives, frames.valid, frames.reset))
    return last, carries


def _forward(
    plan: _Plan, cell: SplitCell, initial: Carry, carry: Carry, frames: Frames
) -> tuple[tuple[Carry, Carry], Any]:
    """Return the last carry and all carries, and the signals if they are to be kept."""
    step = _stepper(plan, cell, initial)

    def step_from_input(carry, frame):
        drive = cell.project(seen(frame.x, frame.valid))
        return step(carry, (drive, frame.valid, frame.reset))

    if not plan.hoist:
        carry, (carries, signals) = jax.lax.scan(step_from_input, carry, frames)
        return (carry, carries), signals

    def run(carry, block):
        drives = cell.project(seen(block.x, block.valid))
        rest = (block.valid, block.reset)
        return _over_signals(step, carry, drives, 0, len(drives), rest, ahead=plan.many_gates)

    stretches = []
    for segment in segments(plan.length, plan.block):
        carry, stretch = segment.scan(run, carry, segment.cut(frames))
        stretches.append(stretch)
    carries, signals = joined(stretches)
    return (carry, carries), signals


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
    plan: _Plan, kept: _Kept, d_carries: Any, state: Any, first: Any, size: int
) -> tuple[Any, Any]:
    """Take the cotangents back through the block of `size` steps that begins at step `first`.

    Args:
      plan: what was settled.
      kept: what the forward pass left, all T steps.
      d_carries: cotangents of all carries; None for a leaf without.
      state: cotangents of the carry behind the block, of the initial carry (from resets) and of the cell.
      first: the block's first step.
      size: its number of steps.

    Returns:
      The state before the block, and the cotangents of the block's inputs.
    """
    cell, signals = kept.cell, plan.signals
    d_carry, d_initial, d_cell = state
    block = window(kept.frames, first, size)
    starts = _starts(kept, block.reset, first, size)
    drives, project_back = jax.vjp(
        lambda cell, x: cell.project(_rows(seen(x, block.valid))), cell, block.x
    )
    pulls, mix_back = jax.vjp(lambda cell: cell.mix(_rows(starts)), cell)
    if kept.signals is None:
        batch = block.x.shape[:-1]
        again = jax.tree.map(lambda a: a.reshape(*batch, a.shape[-1]), signals.join(drives, pulls))
        source, offset = again, 0
    else:
        source, offset = kept.signals, first
    # XLA's CPU backend multiplies by a transposed matrix a third slower: it is turned once, before the loop.
    turned = jax.lax.optimization_barrier(_turned(cell)) if plan.many_rows else None

    def step(state, now):
        (d_carry, d_initial), (signal, t, start, valid, reset) = state, now
        d_carry = _sum(d_carry, at(d_carries, first + t))
        nothing = jax.tree.map(jnp.zeros_like, d_carry)
        d_moved = d_carry if valid is None else where(valid, d_carry, nothing)
        _, update_back = jax.vjp(functools.partial(signals.update, cell), start, signal)
        d_start, d_signal = update_back(d_moved)
        mixing = cell if turned is None else _turned(turned)
        _, pull_back = jax.vjp(mixing.mix, start)
        _, d_pull = signals.parts(d_signal)
        d_start = _sum(d_start, *pull_back(d_pull))
        if reset is not None:
            d_initial = _sum(d_initial, where(reset, d_start, nothing))
            d_start = where(reset, nothing, d_start)
        if valid is not None:  # where the carry was held, so is its cotangent
            d_start = _sum(d_start, where(valid, nothing, d_carry))
        return (d_start, d_initial), d_signal

    rest = (jnp.arange(size, dtype=jnp.int32), starts, block.valid, block.reset)
    ahead = plan.many_rows and plan.many_slices
    state, d_signals = _over_signals(
        step, (d_carry, d_initial), source, offset, size, rest, ahead=ahead, reverse=True
    )
    d_drives, d_pulls = signals.parts(_rows(d_signals))
    d_by_project, d_x = project_back(d_drives)
    (d_by_mix,) = mix_back(d_pulls)
    return (*state, _sum(d_cell, _sum(d_by_project, d_by_mix))), d_x


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
    return where(reset, initial, starts)


def _turned(cell: Any) -> Any:
    """Return the cell with its matrices transposed; twice, and it is itself again."""
    return jax.tree.map(lambda w: jnp.swapaxes(w, -1, -2) if w.ndim > 1 else w, cell)


def _rows(tree: Any) -> Any:
    """Make time and batch one axis: products of two matrices are fast, others may not be."""
    return jax.tree.map(lambda a: a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), tree)


def _sum(a: Any, b: Any) -> Any:
    """Add two trees; None in `b` is nothing."""
    return jax.tree.map(lambda x, y: x if y is None else x + y, a, b)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _instantiated(x: Any) -> Any:
    return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x
