"""Layers in Flax's words over `unroll`: `RNN`, `Bidirectional`, `Stack`; batch first.

    RNN             y_1 … y_T  of a cell over  x_1 … x_T
    Bidirectional   merge(forward y_t, backward y_t): the backward RNN reads x_T … x_1
    Stack           x^(l+1) = RNN_l(norm_l(x^(l))) [+ x^(l)]

They hold `nnx.Param`s only, so ``jax.grad``, ``jit`` and ``vmap`` take them as they are. Where Flax's layers
are right these give the same numbers; unlike them they return zeros at padded steps and the initial carry
for a sequence of length 0, take masks, resets and any number of batch axes, and keep outputs in the order of
the inputs when they read backwards (Flax's ``keep_order=True``).

Dropout is variational (Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent
Neural Networks"): one mask a sequence, the same at every step, drawn from an explicit key. Without a key
nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.typing import Carry, Initializer, Key, Lengths, SplitCell
from jaxrnn.unroll import Method, Unrolled, padding_mask, unroll


class RNN(nnx.Module):
    """A cell over time, batch first.

    Args:
      cell: a cell of ours, or Flax's.
      time_major: inputs and outputs are [T, *B, F] rather than [*B, T, F].
      return_carry: return ``(carry, outputs)`` rather than the outputs.
      reverse: read from the last step to the first; outputs stay in the order of the inputs.
      method: how to go through time; by default what `unroll` finds best.
      carry_init: initialiser of a learnable initial carry, one vector [H] a leaf for all sequences; by
        default the cell's own carry (zeros), which is not learnt.
      dropout: share of input features to drop.
      recurrent_dropout: share of units that the recurrent weights do not see; for cells of ours.
      rngs: draws the learnable carry; needed with `carry_init` alone.

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
        rngs: nnx.Rngs | None = None,
    ):
        if not hasattr(cell, "initialize_carry"):
            checks.refuse("cell", type(cell).__name__, "a cell, with initialize_carry")
        for name, rate in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            if not 0 <= rate < 1:
                checks.refuse(name, rate, "a rate from 0 up to, not including, 1")
        if recurrent_dropout and not isinstance(cell, SplitCell):
            checks.refuse("recurrent_dropout", recurrent_dropout, "0 for a cell that is not split")
        self.cell: Any = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.method = method
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.carry = nnx.List(_learnable_carry(cell, carry_init, rngs))

    def __call__(
        self,
        inputs: Float[Any, "..."] | Any,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Lengths | Any = None,
        mask: Bool[Array, "..."] | Any = None,
        resets: Bool[Array, "..."] | Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        dropout_key: Key | None = None,
    ) -> Any:
        """Carry the cell over the inputs.

        Args:
          inputs: sequences [*B, T, F].
          initial_carry: where to start, leaves [*B, H].
          seq_lengths: valid steps of each sequence [*B].
          mask: False where a step is padding [*B, T].
          resets: True where a new episode begins [*B, T].
          return_carry: in place of the layer's own setting; so `time_major` and `reverse`.
          time_major: inputs, outputs, mask and resets have time first.
          reverse: read backwards.
          dropout_key: draws the dropout masks; None drops nothing, as in evaluation.

        Returns:
          Outputs [*B, T, H], or the last carry and the outputs.
        """
        time_major = self.time_major if time_major is None else time_major
        axis = 0 if time_major else self._time_axis(inputs)
        done = self.unrolled(
            jnp.moveaxis(inputs, axis, 0),
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=None if mask is None else jnp.moveaxis(jnp.asarray(mask), axis, 0),
            resets=None if resets is None else jnp.moveaxis(jnp.asarray(resets), axis, 0),
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
        reverse: bool | None = None,
        dropout_key: Key | None = None,
        **options: Any,
    ) -> Unrolled:
        """Return all that `unroll` returns, every carry included; `xs` [T, *B, F], time first."""
        if initial_carry is None:
            initial_carry = self._initial_carry(xs)
        reverse = self.reverse if reverse is None else reverse
        settings = {"reverse": reverse, "method": self.method, **options}
        if dropout_key is None:
            return unroll(self.cell, xs, carry=initial_carry, **settings)
        for_inputs, for_units = jax.random.split(dropout_key)
        xs = xs * jnp.broadcast_to(_dropout_mask(for_inputs, self.dropout, xs[0]), xs.shape)
        if not self.recurrent_dropout:
            return unroll(self.cell, xs, carry=initial_carry, **settings)
        masks = _units_mask(for_units, self.recurrent_dropout, initial_carry)
        done = unroll(_Dropped(self.cell), xs, carry=(initial_carry, masks), **settings)
        return _without_masks(done)

    def _time_axis(self, inputs: Any) -> int:
        features = getattr(self.cell, "num_feature_axes", 1)
        if jnp.ndim(inputs) < features + 1:
            checks.refuse("inputs", checks.describe(inputs), "sequences [*B, T, F]")
        return jnp.ndim(inputs) - features - 1

    def _initial_carry(self, xs: Any) -> Carry:
        start = self.cell.initialize_carry(xs.shape[1:], nnx.Rngs(0))
        if not len(self.carry):
            return start
        leaves, structure = jax.tree.flatten(start)
        learnt = [
            jnp.broadcast_to(vector[...], leaf.shape)
            for vector, leaf in zip(self.carry, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, learnt)


class Bidirectional(nnx.Module):
    """Two RNNs over the same sequence, one from each end.

    Args:
      forward_rnn: reads from the first step to the last.
      backward_rnn: reads from the last valid step to the first; another layer, with weights of its own.
      merge_fn: joins the two outputs [*B, T, H] of a step; by default one beside the other.
      time_major: inputs and outputs have time first.
      return_carry: return ``((forward carry, backward carry), outputs)``.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import Bidirectional, GRUCell, RNN
      >>> rngs = nnx.Rngs(0)
      >>> layer = Bidirectional(RNN(GRUCell(3, 8, rngs=rngs)), RNN(GRUCell(3, 8, rngs=rngs)))
      >>> layer(jnp.ones((4, 20, 3))).shape
      (4, 20, 16)
    """

    def __init__(
        self,
        forward_rnn: RNN,
        backward_rnn: RNN,
        *,
        merge_fn: Callable[[Any, Any], Any] | None = None,
        time_major: bool = False,
        return_carry: bool = False,
    ):
        if forward_rnn is backward_rnn or forward_rnn.cell is backward_rnn.cell:
            checks.refuse(
                "backward_rnn", "the forward RNN or its cell", "a layer with weights of its own"
            )
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn or _side_by_side
        self.time_major = time_major
        self.return_carry = return_carry

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        dropout_key: Key | None = None,
        **options: Any,
    ) -> Any:
        """Read the inputs from both ends; `options` (lengths, mask, resets) are those of `RNN`."""
        options["time_major"] = self.time_major if time_major is None else time_major
        starts = (None, None) if initial_carry is None else initial_carry
        keys = _keys(dropout_key, 2)
        (first, ahead), (last, back) = (
            rnn(
                inputs,
                initial_carry=start,
                return_carry=True,
                reverse=reverse,
                dropout_key=key,
                **options,
            )
            for rnn, start, reverse, key in zip(
                (self.forward_rnn, self.backward_rnn), starts, (False, True), keys, strict=True
            )
        )
        outputs = jax.tree.map(self.merge_fn, ahead, back)
        wanted = self.return_carry if return_carry is None else return_carry
        return ((first, last), outputs) if wanted else outputs


class Stack(nnx.Module):
    """Layers one above the other, each reading the outputs of the one below.

    Args:
      layers: `RNN`s or `Bidirectional`s, from the bottom to the top.
      residual: add each layer's inputs to its outputs; both must have the same number of features.
      norms: one module a layer (``nnx.LayerNorm``, ``nnx.RMSNorm``), applied to the layer's inputs.
      time_major: inputs and outputs have time first.
      return_carry: return ``(a tuple of the layers' carries, outputs)``.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import GRUCell, RNN, Stack
      >>> rngs = nnx.Rngs(0)
      >>> layers = [RNN(GRUCell(8, 8, rngs=rngs)) for _ in range(3)]
      >>> deep = Stack(layers, residual=True, norms=[nnx.LayerNorm(8, rngs=rngs) for _ in layers])
      >>> deep(jnp.ones((4, 20, 8))).shape
      (4, 20, 8)
    """

    def __init__(
        self,
        layers: Sequence[RNN | Bidirectional],
        *,
        residual: bool = False,
        norms: Sequence[Callable[[Any], Any]] | None = None,
        time_major: bool = False,
        return_carry: bool = False,
    ):
        if not layers:
            checks.refuse("layers", "none", "at least one RNN")
        if len({id(layer) for layer in layers}) < len(layers):
            checks.refuse("layers", "one layer twice", "layers with weights of their own")
        if norms is not None and len(norms) != len(layers):
            checks.refuse("norms", f"{len(norms)} of them", f"{len(layers)}, one a layer")
        self.layers = nnx.List(layers)
        self.norms = nnx.List(norms or [])
        self.residual = residual
        self.time_major = time_major
        self.return_carry = return_carry

    def __call__(
        self,
        inputs: Float[Any, "..."] | Any,
        *,
        initial_carry: Sequence[Carry] | None = None,
        seq_lengths: Lengths | Any = None,
        mask: Bool[Array, "..."] | Any = None,
        resets: Bool[Array, "..."] | Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        dropout_key: Key | None = None,
    ) -> Any:
        """Carry the inputs up through the layers; arguments as in `RNN`, one initial carry a layer."""
        time_major = self.time_major if time_major is None else time_major
        options = {"mask": mask, "resets": resets, "time_major": time_major}
        starts = [None] * len(self.layers) if initial_carry is None else initial_carry
        if len(starts) != len(self.layers):
            checks.refuse(
                "initial_carry", f"{len(starts)} of them", f"{len(self.layers)}, one a layer"
            )
        valid = _valid(inputs, seq_lengths, mask, time_major)
        # What stands in the padding goes no further: a norm of NaN would spoil the norm's gradient.
        xs, carries = _kept(inputs, valid), []
        keys = _keys(dropout_key, len(self.layers))
        for i, (layer, start, key) in enumerate(zip(self.layers, starts, keys, strict=True)):
            below = self.norms[i](xs) if len(self.norms) else xs
            carry, above = layer(
                below,
                initial_carry=start,
                seq_lengths=seq_lengths,
                return_carry=True,
                dropout_key=key,
                **options,
            )
            if self.residual and above.shape != xs.shape:
                checks.refuse(
                    "residual",
                    f"layer {i} from {checks.describe(xs)} to {checks.describe(above)}",
                    "layers that keep the number of features",
                )
            xs = _kept(xs + above, valid) if self.residual else above
            carries.append(carry)
        wanted = self.return_carry if return_carry is None else return_carry
        return (tuple(carries), xs) if wanted else xs


def _learnable_carry(cell: Any, carry_init: Initializer | None, rngs: nnx.Rngs | None) -> list[Any]:
    if carry_init is None:
        return []
    if rngs is None:
        checks.refuse("rngs", "None", "nnx.Rngs, to draw the learnable carry")
    zeros = cell.initialize_carry((cell.in_features,), nnx.Rngs(0))
    return [
        nnx.Param(carry_init(rngs.params(), leaf.shape, leaf.dtype))
        for leaf in jax.tree.leaves(zeros)
    ]


def _side_by_side(ahead: Any, back: Any) -> Any:
    return jnp.concatenate([ahead, back], axis=-1)


def _keys(key: Key | None, count: int) -> Sequence[Key | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


def _valid(inputs: Any, seq_lengths: Any, mask: Any, time_major: bool) -> Any:
    """Return the validity of each step in the layout of the inputs, [*B, T] or [T, *B]; None if all are."""
    if jnp.ndim(inputs) < 2:
        checks.refuse("inputs", checks.describe(inputs), "sequences [*B, T, F]")
    axis = 0 if time_major else jnp.ndim(inputs) - 2
    steps = inputs.shape[axis]
    batch = jnp.moveaxis(inputs, axis, 0).shape[1:-1]
    mask = None if mask is None else jnp.moveaxis(jnp.asarray(mask), axis, 0)
    valid = padding_mask(seq_lengths, mask, steps, batch)
    return None if valid is None else jnp.moveaxis(valid, 0, axis)


def _kept(xs: Any, valid: Any) -> Any:
    return xs if valid is None else jnp.where(valid[..., None], xs, 0)


# Variational dropout.


def _dropout_mask(key: Key, rate: float, like: Any) -> Any:
    kept = jax.random.bernoulli(key, 1 - rate, like.shape)
    return kept.astype(like.dtype) / (1 - rate)


def _units_mask(key: Key, rate: float, carry: Carry) -> Carry:
    leaves, structure = jax.tree.flatten(carry)
    keys = jax.random.split(key, len(leaves))
    masks = [_dropout_mask(k, rate, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, masks)


class _Dropped(nnx.Module):
    """A split cell whose recurrent weights see some units as zero.

    The masks ride along in the carry, unchanged: so they belong to their sequence, whatever a method does
    with time and batch.
    """

    def __init__(self, cell: Any):
        self.cell = cell

    def project(self, x: Any) -> Any:
        return self.cell.project(x)

    def mix(self, carry: Any) -> Any:
        return self.cell.mix(jax.tree.map(jnp.multiply, *carry))

    def update(self, carry: Any, drive: Any, pull: Any) -> Any:
        state, masks = carry
        return self.cell.update(state, drive, pull), masks

    def readout(self, carry: Any) -> Any:
        return self.cell.readout(carry[0])

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        carry = self.update(carry, self.project(x), self.mix(carry))
        return carry, self.readout(carry)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Any:
        state = self.cell.initialize_carry(input_shape, rngs)
        return state, jax.tree.map(jnp.ones_like, state)


def _without_masks(done: Unrolled) -> Unrolled:
    return Unrolled(
        outputs=done.outputs,
        carry=done.carry[0],
        carries=done.carries[0],
        method=done.method,
        convergence=done.convergence,
    )
