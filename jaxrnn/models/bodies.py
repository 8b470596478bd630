"""The body of a model, a layer of any kind, and the sizes that the parts around it must have."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxrnn import checks
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models.encoder import SequenceEncoder
from jaxrnn.typing import Carry

Body = RNN | Bidirectional | Stack
"""A layer that a model is built around."""

Reader = Body | SequenceEncoder
"""What maps sequences to sequences, for models that need no carry of it."""


class Sizes(NamedTuple):
    """The sizes of a body.

    Attributes:
      in_features: size F of a step's input.
      out_features: size Y of a step's output.
      carry: the last carry of one sequence, as shapes and dtypes.
      dtype: of the parameters and of the outputs.
    """

    in_features: int
    out_features: int
    carry: Carry
    dtype: Any


def sizes(argument: str, body: Any) -> Sizes:
    """Return the sizes of a body; `argument` names it where it is refused.

    Raises:
      InputError: it is no layer of ours.
    """
    if not isinstance(body, Body):
        checks.refuse(argument, type(body).__name__, "an RNN, a Bidirectional or a Stack of jaxrnn")
    features = _lowest(body).cell.in_features
    dtype = jax.tree.leaves(nnx.state(body))[0].dtype
    read = functools.partial(body, time_major=True, return_carry=True)
    carry, outputs = jax.eval_shape(read, jax.ShapeDtypeStruct((1, features), dtype))
    return Sizes(features, outputs.shape[-1], carry, outputs.dtype)


def ends(argument: str, reader: Any) -> tuple[int, Any]:
    """Return the size Y of a reader's outputs, and their dtype; `argument` names it where it is refused.

    Raises:
      InputError: it is neither a layer nor an encoder of ours.
    """
    if isinstance(reader, SequenceEncoder):
        return reader.out_features, reader.dtype
    if not isinstance(reader, Body):
        expected = "an RNN, a Bidirectional, a Stack or a SequenceEncoder of jaxrnn"
        checks.refuse(argument, type(reader).__name__, expected)
    read = sizes(argument, reader)
    return read.out_features, read.dtype


def outputs(reader: Reader, xs: Any, seq_lengths: Any, dropout_key: Any) -> tuple[Any, Any]:
    """Return what a reader makes of sequences [T, *B, F]: outputs [T', *B, Y], and their lengths or None."""
    if isinstance(reader, SequenceEncoder):
        ys = reader(xs, seq_lengths=seq_lengths, dropout_key=dropout_key)
        return ys, reader.output_lengths(seq_lengths)
    options = {"seq_lengths": seq_lengths, "dropout_key": dropout_key}
    return reader(xs, time_major=True, return_carry=False, **options), seq_lengths


def reads_forwards(body: Body) -> bool:
    """Tell whether an output knows nothing of later inputs."""
    if isinstance(body, Stack):
        return all(reads_forwards(layer) for layer in body.layers)
    return isinstance(body, RNN) and not body.reverse


def _lowest(body: Body) -> RNN:
    """Return the RNN that sees the inputs first."""
    if isinstance(body, Stack):
        return _lowest(body.layers[0])
    return body.forward_rnn if isinstance(body, Bidirectional) else body
