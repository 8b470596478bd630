"""Sequence classifiers: a linear readout of one vector a sequence.

    logits = V y_T + d              `SequenceClassifier`, a cell carried through time
    logits = V pool(y_1 … y_T) + d  `EncoderClassifier`, any layer or encoder

In the first nothing but the recurrence can bring what was seen at step 1 to the answer at step T, which makes
it the plainest probe of a cell's memory. Weakness: at the last step the backward half of a `Bidirectional`
has seen that step alone, so `last_step` wastes it; `mean_step` does not.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import CellEntry, RecurrentCell
from jaxrnn.layers import RNN
from jaxrnn.models.bodies import Reader, ends, outputs
from jaxrnn.models.encoder import Pool, last_step
from jaxrnn.models.readouts import linear
from jaxrnn.steps import readout_of
from jaxrnn.typing import ArrayLike, Key, Lengths
from jaxrnn.unrolling import Unrolled


class SequenceClassifier(nnx.Module):
    """A cell and a linear readout.

    Args:
      cell: the recurrent cell, with H output features, or an `RNN` of it, which may drop out.
      classes: number of classes C.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the readout's weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> rngs = nnx.Rngs(0)
      >>> model = jaxrnn.models.SequenceClassifier(jaxrnn.GRUCell(1, 16, rngs=rngs), 10, rngs=rngs)
      >>> model(jnp.ones((64, 32, 1))).shape
      (32, 10)
    """

    @checked
    def __init__(self, cell: Any, classes: int, *, rngs: nnx.Rngs):
        layer = cell if isinstance(cell, RNN) else None
        cell = cell if layer is None else layer.cell
        if not isinstance(cell, RecurrentCell):
            expected = "a cell of jaxrnn, or an RNN of one (other layers: EncoderClassifier)"
            checks.refuse("cell", type(cell).__name__, expected)
        checks.count("classes", classes)
        self.layer = layer or RNN(cell)
        dtype = cell.dtype
        self.readout = nnx.Linear(
            cell.out_features, classes, dtype=dtype, param_dtype=dtype, rngs=rngs
        )

    @property
    def cell(self) -> RecurrentCell:
        """The recurrent cell."""
        return self.layer.cell

    @checked
    def __call__(
        self,
        xs: Float[ArrayLike, "T *B F"],
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "*B C"]:
        """Map sequences [T, *B, F] to logits [*B, C], from the output after each one's last valid step."""
        done = self.layer.unrolled(xs, seq_lengths=seq_lengths, dropout_key=dropout_key)
        return self.readout(last_output(self.layer, xs, done, seq_lengths))


class EncoderClassifier(nnx.Module):
    """A layer or an encoder, and a linear readout of what its outputs are pooled to.

    Args:
      encoder: `RNN`, `Bidirectional`, `Stack` or a `SequenceEncoder`, with Y output features.
      classes: number of classes C.
      pool: from outputs to one vector a sequence: `last_step` or `mean_step`.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the readout's weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import GRUCell, RNN, Stack
      >>> from jaxrnn.models import TCN, EncoderClassifier
      >>> rngs = nnx.Rngs(0)
      >>> model = EncoderClassifier(TCN(1, 8, depth=5, rngs=rngs), 10, rngs=rngs)
      >>> model(jnp.ones((64, 32, 1))).shape
      (32, 10)
      >>> deep = Stack([RNN(GRUCell(1, 8, rngs=rngs)), RNN(GRUCell(8, 8, rngs=rngs))])
      >>> EncoderClassifier(deep, 10, rngs=rngs)(jnp.ones((64, 32, 1))).shape
      (32, 10)
    """

    @checked
    def __init__(
        self, encoder: Reader | Any, classes: int, *, pool: Pool = last_step, rngs: nnx.Rngs
    ):
        features, dtype = ends("encoder", encoder)
        checks.count("classes", classes)
        self.encoder = encoder
        self.pool = pool
        self.readout = linear(features, classes, dtype, rngs)

    @checked
    def __call__(
        self,
        xs: Float[ArrayLike, "T *B F"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "*B C"]:
        """Map sequences [T, *B, F] to logits [*B, C]."""
        return self.readout(self.pool(*outputs(self.encoder, xs, seq_lengths, dropout_key)))


def last_output(
    layer: RNN, xs: Any, done: Unrolled, seq_lengths: Lengths | None
) -> Float[Array, "*B Y"]:
    """Return the output after the last valid step that a layer reads: the first, if it reads backwards."""
    readout = readout_of(layer.cell, done.carry, jax.tree.map(lambda leaf: leaf[0], xs))
    if readout is not None:  # from the carry: no output but the last then needs a gradient
        return readout(done.carry)
    return done.outputs[0] if layer.reverse else last_step(done.outputs, seq_lengths)


_LARGEST = 2**40  # more parameters than any machine holds


@checked
def matched_width(entry: CellEntry, in_features: int, classes: int, parameters: int) -> int:
    """Return the units H with which a classifier comes nearest to a number of parameters, readout included.

    Both counts rise with H, so the nearest is found by bisection.

    Raises:
      InputError: a size that is no whole number above 0, or beyond any network.
    """
    for name, value in (
        ("in_features", in_features),
        ("classes", classes),
        ("parameters", parameters),
    ):
        checks.within(name, value, 1, _LARGEST)
    low, high = 1, 2
    while classifier_parameters(entry, in_features, classes, high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if classifier_parameters(entry, in_features, classes, middle) < parameters:
            low = middle
        else:
            high = middle
    return min(
        low,
        high,
        key=lambda h: abs(classifier_parameters(entry, in_features, classes, h) - parameters),
    )


@checked
def classifier_parameters(
    entry: CellEntry, in_features: int, classes: int, hidden_features: int
) -> int:
    """Return the number of parameters of a classifier with `hidden_features` units."""
    readout = classes * (entry.outputs(hidden_features) + 1)
    return entry.parameters(in_features, hidden_features) + readout
