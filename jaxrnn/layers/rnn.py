"""A layer that runs a cell over a batch of sequences:  x_1 … x_T  to  y_1 … y_T."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import free_leaves
from jaxrnn.layers.axes import time_axis, time_first
from jaxrnn.layers.dropout import (
    Dropped,
    DroppedEachStep,
    Expected,
    Zoned,
    dropped,
    keys,
    staying,
    steps_mask,
    units_mask,
    warn_without_key,
)
from jaxrnn.typing import Carry, Initializer, Key, Lengths, Size, SplitCell, Step
from jaxrnn.unrolling import Method, Unrolled, unroll


class RNN(nnx.Module):
    """A layer that runs a cell over time, batch first.

    Args:
      cell: a cell of this package or of Flax.
      time_major: inputs and outputs are [T, *B, F] rather than [*B, T, F].
      return_carry: return ``(carry, outputs)`` rather than the outputs.
      reverse: read from the last step to the first; outputs stay in the order of the inputs.
      method: the method of `unroll`; by default the one that `unroll` chooses.
      carry_init: initialiser of a learnable initial carry, one vector [H] per leaf for all sequences, except
        for leaves that belong to the cell itself (`own_carry`); by default the cell's carry (zeros), which is
        not learned.
      dropout: share of input features to drop.
      recurrent_dropout: share of units that the recurrent weights read as zero; for split cells.
      variational: draw one dropout mask per sequence; False draws a new mask at every step.
      zoneout: share of units of a split cell that keep their state at each step; without a `dropout_key`, as
        in evaluation, the expected state is used. It excludes `recurrent_dropout`, and cells with clocks or
        normalisers in their carry (`own_carry`).
      rngs: draws the learnable carry; needed only with `carry_init`.

    Attributes:
      cell: the cell.
      carry: the learnable initial carry, a list of `nnx.Param`s [H]; empty without `carry_init`.

    Raises:
      InputError: arguments that do not fit; the message names them.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> layer = jaxrnn.RNN(jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0)))
      >>> layer(jnp.ones((4, 20, 3)), seq_lengths=jnp.array([20, 7, 1, 0])).shape
      (4, 20, 8)
    """

    @checked
    def __init__(
        self,
        cell: Any,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        method: Method | None = None,
        carry_init: Initializer | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational: bool = True,
        zoneout: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ):
        if isinstance(cell, type) or not hasattr(cell, "initialize_carry"):
            checks.refuse("cell", checks.describe(cell), "a cell, with initialize_carry")
        rates = {"dropout": dropout, "recurrent_dropout": recurrent_dropout, "zoneout": zoneout}
        for name, rate in rates.items():
            checks.rate(name, rate)
        for name in ("recurrent_dropout", "zoneout"):
            if rates[name] and not isinstance(cell, SplitCell):
                checks.refuse(name, rates[name], "0 for a cell that is not split")
        own: Any = getattr(cell, "own_carry", ())
        if zoneout and own:
            kept = f"whose carry ({', '.join(own)}) means only what the cell wrote there"
            checks.refuse("zoneout", zoneout, f"0 for a {type(cell).__name__}, {kept}")
        if recurrent_dropout and not _has_recurrent_weights(cell):
            expected = f"0 for a {type(cell).__name__}, which has no recurrent weights"
            checks.refuse("recurrent_dropout", recurrent_dropout, expected)
        if zoneout and recurrent_dropout:
            checks.refuse("zoneout", zoneout, "0 with recurrent_dropout: the one or the other")
        self.cell: Any = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.method = method
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.variational = variational
        self.zoneout = zoneout
        self.carry = nnx.data(_learnable_carry(cell, carry_init, rngs))

    @checked
    def __call__(
        self,
        inputs: Float[Any, "..."] | Any,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Lengths | Any = None,
        mask: Bool[Array, "..."] | Any = None,
        resets: Bool[Array, "..."] | Any = None,
        reset_carry: Carry | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        dropout_key: Key | Any = None,
    ) -> Any:
        """Run the cell over the inputs.

        Args:
          inputs: sequences [*B, T, F].
          initial_carry: the first carry, leaves [*B, H]; by default `initialize_carry`.
          seq_lengths: valid steps of each sequence [*B].
          mask: False where a step is padding [*B, T].
          resets: True where a new episode begins [*B, T].
          reset_carry: the carry that a reset goes back to, leaves [*B, H]; by default `initialize_carry`,
            even if `initial_carry` is given.
          return_carry: overrides the layer's setting, as do `time_major` and `reverse`.
          time_major: inputs, outputs, mask and resets have time first.
          reverse: read from the last step to the first.
          dropout_key: draws the dropout masks; None drops nothing, as in evaluation.

        Returns:
          Outputs [*B, T, H], or the last carry and the outputs.
        """
        time_major = self.time_major if time_major is None else time_major
        features = self.num_feature_axes
        axis = time_axis(inputs, time_major, features)
        done = self.unrolled(
            jnp.moveaxis(inputs, axis, 0),
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=time_first("mask", mask, inputs, axis, features),
            resets=time_first("resets", resets, inputs, axis, features),
            reset_carry=reset_carry,
            reverse=reverse,
            dropout_key=dropout_key,
        )
        outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axis), done.outputs)
        wanted = self.return_carry if return_carry is None else return_carry
        return (done.carry, outputs) if wanted else outputs

    def unrolled(
        self,
        xs: Any,
        *,
        initial_carry: Carry | None = None,
        reset_carry: Carry | None = None,
        reverse: bool | None = None,
        dropout_key: Key | Any = None,
        **options: Any,
    ) -> Unrolled:
        """Return the full result of `unroll`, with all carries; `xs` [T, *B, F] has time first."""
        start = self.initialize_carry(xs.shape[1:])
        initial_carry = start if initial_carry is None else initial_carry
        if reset_carry is None and options.get("resets") is not None:
            reset_carry = start
        reverse = self.reverse if reverse is None else reverse
        settings = {"reverse": reverse, "method": self.method, "reset_carry": reset_carry}
        settings |= options
        for_inputs, for_units = keys(dropout_key, 2)
        rate = max(self.dropout, self.recurrent_dropout, self.zoneout)
        warn_without_key(self, dropout_key, rate)
        each = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype) if self.variational else xs
        xs = dropped(for_inputs, self.dropout, xs, each)
        if self.zoneout:
            stays = staying(for_units, self.zoneout, initial_carry, xs.shape[0])
            return unroll(Zoned(self.cell), (xs, stays), carry=initial_carry, **settings)
        if not self.recurrent_dropout or for_units is None:
            return unroll(self.cell, xs, carry=initial_carry, **settings)
        if not self.variational:
            masks = steps_mask(for_units, self.recurrent_dropout, initial_carry, xs.shape[0])
            return unroll(DroppedEachStep(self.cell), (xs, masks), carry=initial_carry, **settings)
        masks = units_mask(for_units, self.recurrent_dropout, initial_carry)
        settings["reset_carry"] = None if reset_carry is None else (reset_carry, masks)
        done = unroll(Dropped(self.cell), xs, carry=(initial_carry, masks), **settings)
        return dataclasses.replace(done, carry=done.carry[0], carries=done.carries[0])

    def as_step(self) -> Step:
        """Return the step that analyses use for the layer: its cell, or with zoneout the expected step.

        Analyses run forward in time, with time first [T, *B, F], and start from the layer's
        `initialize_carry`.

        Raises:
          InputError: the layer reads backwards.
        """
        if self.reverse:
            expected = "its .cell, with inputs in the order of reading"
            checks.refuse("cell", "an RNN that reads backwards", expected)
        return Expected(self.cell, self.zoneout) if self.zoneout else self.cell

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are features; convolutional cells have several."""
        return getattr(self.cell, "num_feature_axes", 1)

    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> Carry:
        """Return the initial carry, leaves [*B, H], for inputs of one step [*B, F].

        It is the learned carry, or the cell's own in leaves without one; `rngs` is passed to the cell.
        """
        start = self.cell.initialize_carry(input_shape, rngs=rngs or nnx.Rngs(0))
        if not len(self.carry):
            return start
        leaves, structure = jax.tree.flatten(start)
        for i, vector in zip(free_leaves(self.cell, start), self.carry, strict=True):
            leaves[i] = jnp.broadcast_to(vector[...], leaves[i].shape)
        return jax.tree.unflatten(structure, leaves)


def _has_recurrent_weights(cell: Any) -> bool:
    """Tell whether a split cell has recurrent weights; a cell without `in_features` is assumed to."""
    if not hasattr(cell, "in_features"):
        return True
    carry = cell.initialize_carry((cell.in_features,), rngs=nnx.Rngs(0))
    return jax.eval_shape(cell.mix, carry).shape[-1] > 0


def _learnable_carry(cell: Any, carry_init: Initializer | None, rngs: nnx.Rngs | None) -> list[Any]:
    if carry_init is None:
        return []
    if rngs is None:
        checks.refuse("rngs", "None", "nnx.Rngs, to draw the learnable carry")
    if not hasattr(cell, "in_features"):
        got = f"an initialiser, for a {type(cell).__name__}"
        checks.refuse(
            "carry_init", got, "None for a cell without in_features: its carry may have any size"
        )
    zeros = cell.initialize_carry((cell.in_features,), rngs=nnx.Rngs(0))
    free = [jax.tree.leaves(zeros)[i] for i in free_leaves(cell, zeros)]
    if not free:
        checks.refuse(
            "carry_init", "an initialiser", f"None: a {type(cell).__name__} starts its own carry"
        )
    return [nnx.Param(carry_init(rngs.params(), leaf.shape, leaf.dtype)) for leaf in free]
