"""A sequence classifier: a cell carried through time, and a linear readout of its last output.

    logits = V y_T + d

Nothing but the recurrence can bring what was seen at step 1 to the answer at step T, which makes it the
plainest probe of a cell's memory.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.cells import CellEntry, RecurrentCell
from jaxrnn.models.encoder import last_step
from jaxrnn.typing import ArrayLike, Lengths, SplitCell, Step
from jaxrnn.unroll import Method, Unrolled, unroll


class SequenceClassifier(nnx.Module):
    """A cell and a linear readout.

    Args:
      cell: the recurrent cell, with H output features.
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

    def __init__(self, cell: Any, classes: int, *, rngs: nnx.Rngs):
        if not isinstance(cell, RecurrentCell):
            checks.refuse("cell", type(cell).__name__, "a cell of jaxrnn")
        self.cell = cell
        dtype = cell.dtype
        self.readout = nnx.Linear(
            cell.out_features, classes, dtype=dtype, param_dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        xs: Float[ArrayLike, "T *B F"],
        *,
        seq_lengths: Lengths | None = None,
        method: Method | None = None,
    ) -> Float[Array, "*B C"]:
        """Map sequences [T, *B, F] to logits [*B, C], from the output after each one's last valid step."""
        done = unroll(self.cell, xs, seq_lengths=seq_lengths, method=method)
        return self.readout(last_output(self.cell, done, seq_lengths))


def last_output(cell: Step, done: Unrolled, seq_lengths: Lengths | None) -> Float[Array, "*B Y"]:
    """Return the output after each sequence's last valid step."""
    if isinstance(cell, SplitCell):  # from the carry: no output but the last then needs a gradient
        return cell.readout(done.carry)
    return last_step(done.outputs, seq_lengths)


def matched_width(entry: CellEntry, in_features: int, classes: int, parameters: int) -> int:
    """Return the units H with which a classifier comes nearest to a number of parameters, readout included.

    Both counts rise with H, so the nearest is found by bisection.
    """
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


def classifier_parameters(
    entry: CellEntry, in_features: int, classes: int, hidden_features: int
) -> int:
    """Return the number of parameters of a classifier with `hidden_features` units."""
    readout = classes * (entry.outputs(hidden_features) + 1)
    return entry.parameters(in_features, hidden_features) + readout
