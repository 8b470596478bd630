"""`unroll`, the entry point to all methods of unrolling a cell over time.

`unroll` converts its arguments (lengths, masks, resets, a missing carry) to one canonical form, `Frames` and
an initial carry, and passes that to a method. Methods therefore need not handle these options.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import (
    beginning,
    compiled,
    is_plain_function,
    is_varying,
    own_carry,
    shapes_of_one,
    varying_alike,
)
from jaxrnn.typing import Carry, Lengths, Size, Step
from jaxrnn.unrolling.blocked import by_default
from jaxrnn.unrolling.functions import compiled_for, program_of
from jaxrnn.unrolling.record import Frames, Method, Unrolled
from jaxrnn.unrolling.scan import Scan
from jaxrnn.unrolling.variables import WithoutEffects, has_variables


@checked
def unroll(
    cell: Step,
    xs: Any,
    *,
    carry: Carry | None = None,
    length: int | None = None,
    seq_lengths: Lengths | Any = None,
    mask: Bool[Array, "T *B"] | Any = None,
    resets: Bool[Array, "T *B"] | Any = None,
    reverse: bool = False,
    method: Method | Any = None,
    reset_carry: Carry | None = None,
) -> Unrolled:
    """Unroll `cell` over time: apply its step to one input after the other, and pass the carry on.

    Args:
      cell: a cell of this package or of Flax, or any function ``(carry, x) -> (carry, y)``, of one sequence
        or of a batch (`jaxrnn.batching`).
      xs: inputs [T, *B, F], time first; or None with `length`, for an autonomous system.
      carry: initial carry, leaves [*B, H]; by default the cell's own ``initialize_carry``.
      length: number of steps; needed only when `xs` is None.
      seq_lengths: valid steps of each sequence [*B], 0 to T; the rest is padding on the right.
      mask: False where a step is padding, anywhere in the sequence [T, *B].
      resets: True where a new episode begins [T, *B]: its first step starts from `reset_carry`. With
        `reverse` an episode is read from its last step, which then starts from `reset_carry`. A reset at a
        padded step takes effect at the next valid step, in the order of reading.
      reverse: read from the last step to the first; results stay in the order of `xs`.
      method: the method to use; by default `Blocked` for steps that multiply by weights, and `Scan` for all
        others. ``Unrolled.method`` says which one ran.
      reset_carry: the carry that a reset goes back to, leaves [*B, H]. By default it is the cell's own
        ``initialize_carry``, whatever `carry` is, because `carry` may be the end of an earlier piece. A step
        without ``initialize_carry`` goes back to `carry`.

    Returns:
      An `Unrolled` with outputs [T, *B, Y], the last carry and all carries [T, *B, H]. At padded steps the
      carry is held and the output is zero; a sequence of length 0 returns its initial carry. Values in the
      padding, NaN included, change neither results nor gradients: the cell receives zeros there, and must be
      differentiable at zero. Leaves of inputs, carry or outputs that do not begin with the batch axes, such
      as a time step [T] or a counter without axes, are shared by all sequences, and lengths, masks and resets
      do not apply to them.

    Raises:
      InputError: an argument whose shape, dtype or range does not fit; the message names it.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> done = jaxrnn.unroll(cell, jnp.ones((20, 4, 3)), seq_lengths=jnp.array([20, 7, 1, 0]))
      >>> done.outputs.shape, done.carry.shape
      ((20, 4, 8), (4, 8))
    """
    if method is not None and not isinstance(method, Method):
        checks.refuse("method", checks.describe(method), "a method such as jaxrnn.Scan()")
    if isinstance(method, Method) and not method.any_mask:
        _refuse_masks(method, seq_lengths, mask, resets, reverse)
    if isinstance(cell, nnx.Module) and has_variables(cell):
        cell = WithoutEffects(cell)
    carry, steps, batch, for_all = beginning(cell, xs, carry, length)
    found = batch
    if isinstance(cell, WithoutEffects):
        cell = cell.settled(carry, xs)
    if not (hasattr(cell, "num_feature_axes") and hasattr(xs, "shape")):
        batch = _batch_of_flags(batch, carry, seq_lengths, mask, resets)
    valid = padding_mask(seq_lengths, mask, steps, batch)
    fresh = _flags("resets", resets, steps, batch)
    if reverse and fresh is not None:  # in reverse, an episode starts at its last step
        fresh = jnp.concatenate([fresh[1:], jnp.zeros_like(fresh[:1])])
    if valid is not None and fresh is not None:
        fresh = _at_valid_steps(fresh, valid, reverse)
    frames = Frames(xs, valid, fresh)
    initial = carry if reset_carry is None else reset_carry
    if reset_carry is None and resets is not None and hasattr(cell, "initialize_carry"):
        initial = own_carry(cell, xs, "reset_carry")
    checks.alike("reset_carry", initial, carry, "leaves as those of the carry")
    if isinstance(cell, nnx.Module):
        cell, carry, frames, initial = varying_alike(cell, carry, frames, initial)
    length = None if jax.tree.leaves(frames) else steps
    settings = {"method": method, "length": length, "reverse": reverse}
    if not isinstance(cell, WithoutEffects):
        if is_plain_function(cell):  # `for_batch` traces it, so call that only once
            one = shapes_of_one(frames.x)
            cell = for_all if batch == found else for_batch(cell, carry, one, batch)
            batch = ()
        return _compiled_run(cell, (carry, frames, initial), {**settings, "batch": batch})
    step, start = cell.threaded(initial), cell.start(carry)
    arrays = start, Frames(frames, None, None), start
    return cell.finish(_compiled_run(step, arrays, {**settings, "batch": ()}))


def _compiled_run(
    cell: Step, arrays: tuple[Carry, Frames, Carry], settings: dict[str, Any]
) -> Unrolled:
    """Call `_run`, compiled once for all cells of one structure and all functions with the same program.

    Args:
      cell: the step; a plain function takes the whole batch.
      arrays: the first carry, the frames and the carry that resets go back to.
      settings: the other arguments of `_run`, by name.
    """
    carry, frames, _ = arrays
    # Programs are compared by their text, which shows neither symbolic sizes nor what varies over a mesh.
    if not is_plain_function(cell) or _has_open_sizes(arrays) or is_varying(arrays):
        method = _suited(settings["method"], carry, frames)
        return _run(cell, *arrays, **{**settings, "method": method})
    found = program_of(cell, carry, frames.x)
    if found is None:
        return _run(cell, *arrays, **settings)
    program, held = found
    return compiled_for(program, _run.function, tuple(settings))(held, *arrays, **settings)


@compiled
def _run(
    cell: Step,
    carry: Carry,
    frames: Frames,
    initial: Carry,
    *,
    method: Method | None,
    batch: tuple[Size, ...],
    length: Size | None,
    reverse: bool,
) -> Unrolled:
    cell = for_batch(cell, carry, shapes_of_one(frames.x), batch)
    steps: Any = length or jax.tree.leaves(frames)[0].shape[0]
    run = method or by_default
    if not reverse:
        return run(cell, carry, frames, initial=initial, length=steps)
    done = run(cell, carry, _flipped(frames), initial=initial, length=steps)
    return dataclasses.replace(done, outputs=_flipped(done.outputs), carries=_flipped(done.carries))


def _batch_of_flags(
    batch: tuple[Size, ...], carry: Carry, seq_lengths: Any, mask: Any, resets: Any
) -> tuple[Size, ...]:
    """Return the batch axes of lengths or flags if a leaf of the carry can have them, otherwise `batch`.

    Only a cell declares which axes of its carry are batch axes. For any other step, a leaf [B, H, H] may be
    one matrix per sequence, and a leaf without axes one number for all sequences.
    """
    flags = [np.shape(each)[1:] for each in (mask, resets) if each is not None]
    shapes = [jnp.shape(leaf)[:-1] for leaf in jax.tree.leaves(carry)]
    for axes in flags if seq_lengths is None else [np.shape(seq_lengths), *flags]:
        if any(shape[: len(axes)] == axes if axes else not shape for shape in shapes):
            return axes
    return batch


def _flipped(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.flip(a, 0), tree)


def _refuse_masks(method: Method, seq_lengths: Any, mask: Any, resets: Any, reverse: bool) -> None:
    for name, given in (("mask", mask), ("resets", resets)):
        if given is not None:
            checks.refuse(name, checks.describe(given), f"None with {method}, or method=Blocked()")
    if reverse and seq_lengths is not None:
        checks.refuse("reverse", "True, and seq_lengths", f"one of them with {method}")


def _suited(method: Method | None, carry: Carry, frames: Frames) -> Method | None:
    """Return the given method, or `Scan` where sizes are symbolic (``jax.export``): only it allows these."""
    if not _has_open_sizes((carry, frames)):
        return method
    if method is not None and not isinstance(method, Scan):
        checks.refuse("method", f"{method} for sizes that are open (jax.export)", "Scan()")
    return method or Scan()


def _has_open_sizes(tree: Any) -> bool:
    """Tell whether a size is symbolic, as under ``jax.export``, so that blocks cannot be planned."""
    return any(not isinstance(size, int) for leaf in jax.tree.leaves(tree) for size in leaf.shape)


def padding_mask(
    seq_lengths: Any,
    mask: Any,
    steps: Size,
    batch: tuple[Size, ...],
    argument: str = "seq_lengths",
) -> Any:
    """Combine lengths and mask into one array, False where a step is padding.

    Args:
      seq_lengths: valid steps of each sequence [*B], or None.
      mask: False where a step is padding [T, *B], or None.
      steps: T.
      batch: *B.
      argument: names the lengths in errors.

    Returns:
      The mask [T, *B], or None where both arguments are.

    Raises:
      InputError: a shape, dtype or length that does not fit.
    """
    mask = _flags("mask", mask, steps, batch)
    if seq_lengths is None:
        return mask
    lengths = _checked_lengths(argument, seq_lengths, steps, batch)
    within = jax.vmap(lambda t: t < lengths)(jnp.arange(steps, dtype=jnp.int32))
    return within if mask is None else within & mask


def _checked_lengths(argument: str, lengths: Any, steps: Size, batch: tuple[Size, ...]) -> Any:
    """Check lengths [*B] and return them as int32; traced lengths are clipped instead of checked."""
    traced = not checks.concrete(lengths)
    # Checked in NumPy: JAX would cut wider integers to int32, and inside jit it would trace the reductions.
    lengths = lengths if traced else checks.host_array(argument, lengths)
    checks.shape(argument, lengths, batch, "[*B]")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        checks.refuse(argument, checks.describe(lengths), "integers")
    if traced:
        most = min(np.iinfo(np.int32).max, np.iinfo(lengths.dtype).max)
        return jnp.minimum(lengths, jnp.asarray(most, lengths.dtype)).astype(jnp.int32)
    if lengths.size and isinstance(steps, int):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            expected = f"0 to {steps}, the steps of the sequences"
            checks.refuse(argument, f"values from {low} to {high}", expected)
    return jnp.asarray(lengths.astype(np.int32))


def _at_valid_steps(resets: Any, valid: Any, reverse: bool) -> Any:
    """Move each reset [T, *B] to the first valid step at or after it.

    It is a valid step up to which more resets have occurred than up to the valid step before it.
    """
    count = jax.lax.cumsum(resets.astype(jnp.int32), axis=0, reverse=reverse)
    heeded = jax.lax.cummax(jnp.where(valid, count, 0), axis=0, reverse=reverse)
    none = jnp.zeros_like(heeded[:1])
    before = [heeded[1:], none] if reverse else [none, heeded[:-1]]
    return count > jnp.concatenate(before)


def _flags(name: str, flags: Any, steps: Size, batch: tuple[Size, ...]) -> Any:
    if flags is None:
        return None
    flags = checks.as_array(name, flags)
    checks.shape(name, flags, (steps, *batch), "[T, *B]")
    if flags.dtype != jnp.bool_:
        checks.refuse(name, checks.describe(flags), "booleans")
    return flags
