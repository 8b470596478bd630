"""A stack of layers:  x^(l+1) = RNN_l(norm_l(x^(l))) [+ x^(l)], with an optional norm and residual each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.layers.axes import time_axis, time_first
from jaxrnn.layers.bidirectional import Bidirectional
from jaxrnn.layers.dropout import keys
from jaxrnn.layers.rnn import RNN
from jaxrnn.typing import Carry, Key, Lengths, Size, Step
from jaxrnn.unrolling import padding_mask
from jaxrnn.unrolling.record import seen


class Stack(nnx.Module):
    """A stack of layers, each of which reads the outputs of the layer below.

    Args:
      layers: `RNN`s or `Bidirectional`s, from the bottom to the top.
      residual: whether to add a layer's inputs to its outputs, one value for all layers or one per layer. A
        layer with a residual must have as many input as output features.
      norms: one module per layer (``nnx.LayerNorm``, ``nnx.RMSNorm``), applied to the layer's inputs, or None
        for a layer without a norm.
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

    @checked
    def __init__(
        self,
        layers: Sequence[RNN | Bidirectional],
        *,
        residual: bool | Sequence[bool] = False,
        norms: Sequence[Callable[[Any], Any] | None] | None = None,
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
        each = (residual,) * len(layers) if isinstance(residual, bool) else tuple(residual)
        if len(each) != len(layers):
            checks.refuse("residual", f"{len(each)} of them", f"{len(layers)}, one a layer")
        self.layers = nnx.data(list(layers))  # Orbax does not restore an nnx.List
        self.norms = nnx.data(list(norms or [None] * len(layers)))
        self.residual = each
        self.time_major = time_major
        self.return_carry = return_carry

    @checked
    def __call__(
        self,
        inputs: Float[Any, "..."] | Any,
        *,
        initial_carry: Sequence[Carry] | Any = None,
        seq_lengths: Lengths | Any = None,
        mask: Bool[Array, "..."] | Any = None,
        resets: Bool[Array, "..."] | Any = None,
        reset_carry: Sequence[Carry] | Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        dropout_key: Key | Any = None,
    ) -> Any:
        """Run the inputs through all layers.

        Arguments are those of `RNN`, except that `initial_carry` and `reset_carry` have one carry per layer.
        """
        time_major = self.time_major if time_major is None else time_major
        options = {"mask": mask, "resets": resets, "time_major": time_major}
        valid = _valid(inputs, seq_lengths, mask, time_major, self.num_feature_axes)
        # Replace the padding by zeros first: a norm of NaN would make the norm's gradient NaN.
        xs, carries = seen(inputs, valid), []
        each = zip(
            self.layers,
            self._by_layer("initial_carry", initial_carry),
            self._by_layer("reset_carry", reset_carry),
            keys(dropout_key, len(self.layers)),
            strict=True,
        )
        for i, (layer, start, again, key) in enumerate(each):
            below = _normed(self.norms[i], xs)
            carry, above = layer(
                below,
                initial_carry=start,
                reset_carry=again,
                seq_lengths=seq_lengths,
                return_carry=True,
                dropout_key=key,
                **options,
            )
            if self.residual[i] and above.shape != xs.shape:
                checks.refuse(
                    "residual",
                    f"layer {i} from {checks.describe(xs)} to {checks.describe(above)}",
                    "layers that keep the number of features",
                )
            xs = seen(xs + above, valid) if self.residual[i] else above
            carries.append(carry)
        wanted = self.return_carry if return_carry is None else return_carry
        return (tuple(carries), xs) if wanted else xs

    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> tuple[Carry, ...]:
        """Return the initial carry of each layer, for inputs of one step [*B, F], as in `RNN`."""
        starts = []
        below = jax.ShapeDtypeStruct((1, *input_shape), jax.tree.leaves(self)[0].dtype)
        for layer in self.layers:
            starts.append(layer.initialize_carry(below.shape[1:], rngs))
            read = functools.partial(layer, time_major=True, return_carry=False)
            below = jax.eval_shape(read, below)
        return tuple(starts)

    def as_step(self) -> Step:
        """Return the step that analyses use for the stack: all layers at one time step, one carry per layer.

        Raises:
          InputError: a layer reads backwards.
        """
        return _StackStep(self)

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are features."""
        return self.layers[0].num_feature_axes

    def _by_layer(self, argument: str, carries: Any) -> Sequence[Carry | None]:
        """Return one carry for each layer, or None for each layer."""
        if carries is None:
            return [None] * len(self.layers)
        if not isinstance(carries, Sequence) or len(carries) != len(self.layers):
            expected = f"one carry for each of {len(self.layers)} layers"
            checks.refuse(argument, checks.describe(carries), expected)
        return carries


class _StackStep(nnx.Module):
    """One time step of all layers of a stack."""

    def __init__(self, stack: Stack):
        self.steps = nnx.data([layer.as_step() for layer in stack.layers])
        self.norms = nnx.data(list(stack.norms))
        self.residual = stack.residual
        self.num_feature_axes = stack.num_feature_axes

    def __call__(self, carries: Sequence[Carry], x: Any) -> tuple[tuple[Carry, ...], Any]:
        """Take one step."""
        moved = []
        for i, (step, carry) in enumerate(zip(self.steps, carries, strict=True)):
            after, above = step(carry, _normed(self.norms[i], x))
            x = x + above if self.residual[i] else above
            moved.append(after)
        return tuple(moved), x


def _normed(norm: Callable[[Any], Any] | None, xs: Any) -> Any:
    return xs if norm is None else norm(xs)


def _valid(inputs: Any, seq_lengths: Any, mask: Any, time_major: bool, features: int) -> Any:
    """Return False at padded steps, in the layout of the inputs [*B, T] or [T, *B]; None without padding."""
    axis = time_axis(inputs, time_major, features)
    steps, *batch = jnp.moveaxis(inputs, axis, 0).shape[: jnp.ndim(inputs) - features]
    mask = time_first("mask", mask, inputs, axis, features)
    valid = padding_mask(seq_lengths, mask, steps, tuple(batch))
    return None if valid is None else jnp.moveaxis(valid, 0, axis)
