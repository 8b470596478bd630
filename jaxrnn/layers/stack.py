"""Depth in space:  x^(l+1) = RNN_l(norm_l(x^(l))) [+ x^(l)]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.layers.axes import time_axis, time_first
from jaxrnn.layers.bidirectional import Bidirectional
from jaxrnn.layers.dropout import keys
from jaxrnn.layers.rnn import RNN
from jaxrnn.typing import Carry, Key, Lengths
from jaxrnn.unroll import padding_mask
from jaxrnn.unroll.record import seen


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
        if isinstance(layers, nnx.Module) or not layers:
            checks.refuse("layers", checks.describe(layers), "a list of at least one RNN")
        for i, layer in enumerate(layers):
            if not isinstance(layer, RNN | Bidirectional):
                got = f"{type(layer).__name__} at place {i}"
                checks.refuse("layers", got, "RNN(cell)s or Bidirectionals")
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
        if not isinstance(starts, Sequence) or len(starts) != len(self.layers):
            expected = f"one carry for each of {len(self.layers)} layers"
            checks.refuse("initial_carry", checks.describe(initial_carry), expected)
        valid = _valid(inputs, seq_lengths, mask, time_major)
        # What stands in the padding goes no further: a norm of NaN would spoil the norm's gradient.
        xs, carries = seen(inputs, valid), []
        each = zip(self.layers, starts, keys(dropout_key, len(self.layers)), strict=True)
        for i, (layer, start, key) in enumerate(each):
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
            xs = seen(xs + above, valid) if self.residual else above
            carries.append(carry)
        wanted = self.return_carry if return_carry is None else return_carry
        return (tuple(carries), xs) if wanted else xs


def _valid(inputs: Any, seq_lengths: Any, mask: Any, time_major: bool) -> Any:
    """Return the validity of each step in the layout of the inputs, [*B, T] or [T, *B]; None if all are."""
    axis = time_axis(inputs, time_major)
    steps, *batch = jnp.moveaxis(inputs, axis, 0).shape[:-1]
    mask = time_first("mask", mask, inputs, axis)
    valid = padding_mask(seq_lengths, mask, steps, tuple(batch))
    return None if valid is None else jnp.moveaxis(valid, 0, axis)
