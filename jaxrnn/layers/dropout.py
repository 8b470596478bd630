"""Variational dropout: one mask a sequence, the same at every step, drawn from an explicit key.

Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks".
What is kept is divided by the share that is kept, so expectations stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn.typing import Carry, Key


def keys(key: Key | None, count: int) -> Sequence[Key | None]:
    """Return one key a layer; without a key, none has one."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def sequence_mask(key: Key, rate: float, like: Any) -> Any:
    """Return what to multiply an array with: 0 for a share `rate` of it, 1 / (1 − rate) for the rest."""
    kept = jax.random.bernoulli(key, 1 - rate, like.shape)
    return kept.astype(like.dtype) / (1 - rate)


def units_mask(key: Key, rate: float, carry: Carry) -> Carry:
    """Return a mask for every leaf of a carry."""
    leaves, structure = jax.tree.flatten(carry)
    each = jax.random.split(key, len(leaves))
    masks = [sequence_mask(k, rate, leaf) for k, leaf in zip(each, leaves, strict=True)]
    return jax.tree.unflatten(structure, masks)


class Dropped(nnx.Module):
    """A split cell whose recurrent weights see some units as zero.

    The masks ride along in the carry, unchanged: so they belong to their sequence, whatever a method does
    with time and batch. `mix` is affine in the state alone, since the masks multiply it: `unroll`, which
    takes its derivative where it stands, can carry such a cell, an analysis cannot.
    """

    def __init__(self, cell: Any):
        self.cell = cell

    def project(self, x: Any) -> Any:
        """Return the drive of the cell."""
        return self.cell.project(x)

    def mix(self, carry: Any) -> Any:
        """Return the pull, of the units that are kept."""
        return self.cell.mix(jax.tree.map(jnp.multiply, *carry))

    def update(self, carry: Any, drive: Any, pull: Any) -> Any:
        """Return the next state, and the masks as they were."""
        state, masks = carry
        return self.cell.update(state, drive, pull), masks

    def readout(self, carry: Any) -> Any:
        """Return the output of the cell."""
        return self.cell.readout(carry[0])

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        carry = self.update(carry, self.project(x), self.mix(carry))
        return carry, self.readout(carry)
