"""Sequence encoders: what stands beside a recurrent network in a comparison, and one readout for all of them.

    Y = encoder(X)                 X [T, *B, F], Y [T', *B, Y]
    logits = V pool(Y) + d

An encoder maps a sequence to a sequence, with time first and padding on the right, as `unroll` does; a
windowed network, a convolution and a Transformer keep T' = T, a hierarchy of subsampling layers shrinks it.
Two poolings lead to one vector: `last_step`, which asks a causal encoder what it remembers, and `mean_step`,
for encoders that read both ways and have no last step that has seen everything.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, Key, Lengths, at_least_float32
from jaxrnn.unrolling import padding_mask
from jaxrnn.unrolling.record import seen

Pool = Callable[[Any, Any], Any]
"""``(outputs [T, *B, Y], lengths [*B] or None) -> [*B, Y]``; outputs are zero at padded steps."""


class SequenceEncoder(nnx.Module, abc.ABC):
    """A map from sequences to sequences; an encoder writes `encode` and names its sizes.

    Attributes:
      in_features: size F of a step's input.
      out_features: size Y of a step's output.
    """

    in_features: int
    out_features: int

    @abc.abstractmethod
    def encode(self, xs: Any, seq_lengths: Any, dropout_key: Any) -> Any:
        """Map sequences [T, *B, F], zero at padded steps, to outputs [T', *B, Y], there anything."""

    def output_lengths(self, seq_lengths: Any) -> Any:
        """Return the valid steps of each output sequence [*B]; None for None."""
        return seq_lengths

    @final
    @checked
    def __call__(
        self,
        xs: Float[ArrayLike, "T *B F"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "U *B Y"]:
        """Encode sequences.

        Args:
          xs: sequences [T, *B, F].
          seq_lengths: valid steps of each sequence [*B], 0 to T; the rest is padding, which changes nothing.
          dropout_key: draws the dropout masks, where the encoder has any; None drops nothing.

        Returns:
          Outputs [T', *B, Y], zero at padded steps.

        Raises:
          InputError: inputs or lengths that do not fit.
        """
        checks.features("xs", xs, self.in_features, self.dtype, "encoder")
        if xs.ndim < 2 or xs.shape[0] < 1:
            checks.refuse(
                "xs", checks.describe(xs), "at least 1 step in the first axis, [T, *B, F]"
            )
        xs = jnp.asarray(xs)
        # What stands in the padding goes no further: NaN there would reach the gradients.
        outputs = self.encode(seen(xs, _valid(seq_lengths, xs)), seq_lengths, dropout_key)
        return seen(outputs, _valid(self.output_lengths(seq_lengths), outputs))

    @property
    def dtype(self) -> Any:
        """The dtype of parameters and arithmetic."""
        return jax.tree.leaves(self)[0].dtype


@checked
def last_step(outputs: Float[ArrayLike, "T *B Y"], lengths: Any = None) -> Float[Array, "*B Y"]:
    """Return the output of each sequence's last valid step, zeros for an empty sequence."""
    outputs = jnp.asarray(outputs)
    _check_lengths(outputs, lengths)
    if lengths is None:
        return outputs[-1]
    last = jnp.maximum(jnp.asarray(lengths), 1) - 1
    chosen = jnp.take_along_axis(outputs, last[None, ..., None], axis=0)
    return chosen[0]


@checked
def mean_step(outputs: Float[ArrayLike, "T *B Y"], lengths: Any = None) -> Float[Array, "*B Y"]:
    """Return the mean output over each sequence's valid steps, zeros for an empty sequence."""
    outputs = jnp.asarray(outputs)
    _check_lengths(outputs, lengths)
    if lengths is None:
        return jnp.mean(outputs, axis=0)
    wide = at_least_float32(outputs.dtype)  # half precision can neither count nor sum many steps
    counts = jnp.maximum(jnp.asarray(lengths), 1).astype(wide)
    total = jnp.sum(outputs, axis=0, dtype=wide)
    return (total / jnp.broadcast_to(counts[..., None], total.shape)).astype(outputs.dtype)


def _check_lengths(outputs: Any, lengths: Any) -> None:
    """Refuse outputs [T, *B, Y] of no steps, and lengths that are not theirs."""
    if outputs.shape[0] < 1:
        checks.refuse("outputs", checks.describe(outputs), "at least 1 step, [T, *B, Y]")
    padding_mask(lengths, None, outputs.shape[0], outputs.shape[1:-1], "lengths")


def _valid(seq_lengths: Any, steps: Any) -> Any:
    return padding_mask(seq_lengths, None, steps.shape[0], steps.shape[1:-1])
