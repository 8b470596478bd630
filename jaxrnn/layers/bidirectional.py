"""A bidirectional layer:  merge(forward y_t, backward y_t), where the backward RNN reads from x_T to x_1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import PickledByName
from jaxrnn.layers.dropout import keys
from jaxrnn.layers.rnn import RNN
from jaxrnn.typing import Carry, Key, Size


class Bidirectional(PickledByName):
    """Two RNNs over the same sequence, one from each end.

    Args:
      forward_rnn: reads from the first step to the last.
      backward_rnn: reads from the last valid step to the first; a separate layer with its own weights.
      merge_fn: combines the two outputs [*B, T, H]; by default concatenates them.
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

    @checked
    def __init__(
        self,
        forward_rnn: RNN,
        backward_rnn: RNN,
        *,
        merge_fn: Callable[[Any, Any], Any] | None = None,
        time_major: bool = False,
        return_carry: bool = False,
    ):
        for name, layer in (("forward_rnn", forward_rnn), ("backward_rnn", backward_rnn)):
            if not isinstance(layer, RNN):
                checks.refuse(name, checks.describe(layer), "an RNN(cell)")
        if forward_rnn is backward_rnn or forward_rnn.cell is backward_rnn.cell:
            checks.refuse(
                "backward_rnn", "the forward RNN or its cell", "a layer with weights of its own"
            )
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn or side_by_side
        self.time_major = time_major
        self.return_carry = return_carry

    @checked
    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: tuple[Carry, Carry] | Any = None,
        reset_carry: tuple[Carry, Carry] | Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        dropout_key: Key | Any = None,
        **options: Any,
    ) -> Any:
        """Run both RNNs over the inputs; `options` (lengths, mask, resets) are those of `RNN`.

        `initial_carry` and `reset_carry` are pairs, the forward carry first.
        """
        options["time_major"] = self.time_major if time_major is None else time_major
        (first, ahead), (last, back) = (
            rnn(
                inputs,
                initial_carry=start,
                reset_carry=again,
                return_carry=True,
                reverse=reverse,
                dropout_key=key,
                **options,
            )
            for rnn, start, again, reverse, key in zip(
                (self.forward_rnn, self.backward_rnn),
                _pair("initial_carry", initial_carry),
                _pair("reset_carry", reset_carry),
                (False, True),
                keys(dropout_key, 2),
                strict=True,
            )
        )
        outputs = jax.tree.map(self.merge_fn, ahead, back)
        wanted = self.return_carry if return_carry is None else return_carry
        return ((first, last), outputs) if wanted else outputs

    def as_step(self) -> NoReturn:
        """Raise an error: a bidirectional layer is not one step, as its directions run separately.

        Raises:
          InputError: always.
        """
        expected = "its .forward_rnn or its .backward_rnn.cell, one direction at a time"
        checks.refuse("cell", "a Bidirectional layer", expected)

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are features."""
        return self.forward_rnn.num_feature_axes

    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> tuple[Carry, Carry]:
        """Return the initial carries of both directions, for inputs of one step [*B, F], as in `RNN`."""
        both = (self.forward_rnn, self.backward_rnn)
        ahead, back = (rnn.initialize_carry(input_shape, rngs) for rnn in both)
        return ahead, back


def _pair(argument: str, carries: Any) -> tuple[Carry, Carry]:
    """Return a pair of carries, or a pair of None if `carries` is None."""
    if carries is None:
        return None, None
    if not isinstance(carries, tuple | list) or len(carries) != 2:
        expected = "a pair of carries, the forward one first"
        checks.refuse(argument, checks.describe(carries), expected)
    return tuple(carries)


def side_by_side(ahead: Any, back: Any) -> Any:
    """Concatenate both outputs to [*B, T, 2·H], the forward one first."""
    return jnp.concatenate([ahead, back], axis=-1)
