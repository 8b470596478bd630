"""Dropout and zoneout, with masks drawn from an explicit key.

    variational   one mask per sequence, the same at every step    `Dropped`; Gal & Ghahramani 2016
    each step     a new mask at every step                         `DroppedEachStep`; Zaremba et al. 2014 for
                  inputs; for the recurrent weights the naive method, whose masks erase the memory
    zoneout       some units keep their state for a step           `Zoned`; Krueger et al. 2017

Values that dropout keeps are divided by the share that is kept, so expectations do not change. In evaluation,
zoneout uses the expected state, s_t = z s_t−1 + (1 − z) step(s_t−1, x_t) with rate z.

Weakness: one mask per step takes as much memory as the states of all steps, and is kept for the backward
pass.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.steps import is_differentiated, readout_of
from jaxrnn.typing import ArrayLike, Carry, Key, Size


def keys(key: Key | Any, count: int) -> Sequence[Key | None]:
    """Split a key into `count` keys, one per layer; return `count` times None if there is no key.

    Raises:
      InputError: `key` is not a random key, but for instance an ``nnx.Rngs``.
    """
    if key is None:
        return [None] * count
    is_array = isinstance(key, ArrayLike)
    if not is_array or not _is_one_key(key):
        got = checks.describe(key) if is_array else f"{type(key).__name__}"
        expected = "one random key, such as jax.random.key(0) or, of an nnx.Rngs, rngs.dropout()"
        checks.refuse("dropout_key", got, expected)
    return list(jax.random.split(key, count))


def _is_one_key(key: Any) -> bool:
    """Tell whether an array is a single key of ``jax.random.key`` or of the older ``jax.random.PRNGKey``."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    older = jax.eval_shape(jax.random.PRNGKey, 0)
    return (key.shape, key.dtype) == (older.shape, older.dtype)


def warn_without_key(module: nnx.Module, key: Key | None, rate: float) -> None:
    """Warn if a module's weights are differentiated, as in training, but nothing is dropped without a key.

    This is not detected if a ``jax.jit`` lies between the derivative and the module.
    """
    if rate and key is None and is_differentiated(module):
        warnings.warn(
            f"a {type(module).__name__} with a dropout or zoneout rate of {rate:g} is differentiated without "
            "dropout_key, and drops nothing: pass a key in training",
            stacklevel=3,
        )


def dropped(key: Key | None, rate: float, xs: Any, like: Any = None) -> Any:
    """Apply dropout to an array, or return it unchanged without a key.

    Args:
      key: draws the mask.
      rate: the share of entries to drop.
      xs: the array.
      like: an array with the shape of the mask, which is broadcast to `xs`; by default `xs` itself.
    """
    if key is None or not rate:
        return xs
    return xs * jnp.broadcast_to(sequence_mask(key, rate, xs if like is None else like), xs.shape)


def sequence_mask(key: Key, rate: float, like: Any) -> Any:
    """Return a dropout mask: 0 for a share `rate` of the entries, 1 / (1 − rate) for the others."""
    kept = jax.random.bernoulli(key, 1 - rate, like.shape)
    return kept.astype(like.dtype) / (1 - rate)


def steps_mask(key: Key, rate: float, carry: Carry, steps: Size) -> Carry:
    """Return a mask [T, …] for every leaf of a carry, new at every step."""
    each = jax.vmap(lambda key: units_mask(key, rate, carry))
    return each(jax.random.split(key, steps))


def units_mask(key: Key, rate: float, carry: Carry) -> Carry:
    """Return a mask for every leaf of a carry."""
    leaves, structure = jax.tree.flatten(carry)
    each = jax.random.split(key, len(leaves))
    masks = [sequence_mask(k, rate, leaf) for k, leaf in zip(each, leaves, strict=True)]
    return jax.tree.unflatten(structure, masks)


class _Wrapped(nnx.Module):
    """Base class of wrappers around a cell; it accepts the same batch axes as the cell."""

    def __init__(self, cell: Any):
        self.cell = cell

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are features."""
        return getattr(self.cell, "num_feature_axes", 1)


class Dropped(_Wrapped):
    """A cell whose recurrent weights read some units as zero, the same units at every step.

    The masks are a constant part of the carry. So each mask stays with its sequence, however a method handles
    time and batch.
    """

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        state, masks = carry
        moved, y = _step_with_masks(self.cell, masks, state, x)
        return (moved, masks), y


class DroppedEachStep(_Wrapped):
    """A cell whose recurrent weights read some units as zero, different units at every step.

    Its inputs are pairs of an input and a mask of the carry.
    """

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        """Take one step."""
        x, masks = inputs
        return _step_with_masks(self.cell, masks, carry, x)


def _step_with_masks(cell: Any, masks: Carry, carry: Carry, x: Any) -> tuple[Carry, Any]:
    """Take a cell's own step with a `mix` that reads a masked carry; subclasses may override the step."""
    asked = []

    def mix(carry: Carry) -> Any:
        asked.append(carry)
        return cell.mix(jax.tree.map(jnp.multiply, carry, masks))

    # A module is copied leaf by leaf, because Flax forbids writing inside a trace to a module from outside.
    is_module = isinstance(cell, nnx.Module)
    masked = jax.tree.map(lambda leaf: leaf, cell) if is_module else copy.copy(cell)
    masked.mix = mix
    result = masked(carry, x)
    if not asked:
        got = f"a rate for a {type(cell).__name__}, whose step does not call mix"
        checks.refuse("recurrent_dropout", got, "0 for a cell that is not split")
    return result


class Zoned(_Wrapped):
    """A cell with zoneout: units may keep their state, s_t = z_t s_t−1 + (1 − z_t) step(s_t−1, x_t).

    Its inputs are pairs of an input and z_t, given for every leaf of the carry: 1 or 0 in training, the rate
    in evaluation.
    """

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        """Take one step; the output is computed from the state after zoneout."""
        x, stays = inputs
        readout = readout_of(self.cell, carry, x)
        if readout is None:
            got = f"a rate for a {type(self.cell).__name__}, whose output is no part of its carry"
            checks.refuse("zoneout", got, "0 for a cell that is not split")
        after, _ = self.cell(carry, x)
        carry = jax.tree.map(lambda z, old, new: z * old + (1 - z) * new, stays, carry, after)
        return carry, readout(carry)


class Expected(_Wrapped):
    """A cell with zoneout in evaluation: each unit keeps the share `rate` of its state."""

    def __init__(self, cell: Any, rate: float):
        super().__init__(cell)
        self.rate = rate

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        stays = jax.tree.map(lambda leaf: jnp.full_like(leaf, self.rate), carry)
        return Zoned(self.cell)(carry, (x, stays))


def staying(key: Key | None, rate: float, carry: Carry, steps: Size) -> Carry:
    """Return zoneout masks [T, …], 1 where a unit keeps its state and 0 elsewhere; the rate without a key."""
    leaves, structure = jax.tree.flatten(carry)
    if key is None:
        stays = [jnp.full((steps, *leaf.shape), rate, leaf.dtype) for leaf in leaves]
    else:
        stays = [
            jax.random.bernoulli(k, rate, (steps, *leaf.shape)).astype(leaf.dtype)
            for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
    return jax.tree.unflatten(structure, stays)
