"""A network as the analyses take it: one cell, what it reads, and the loss behind it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.layers import RNN
from jaxrnn.models import Embedded, LanguageModel, SequenceClassifier
from jaxrnn.tasks import Batch, Source, Task
from jaxrnn.typing import Loss

_SEARCHED = 512


class View(NamedTuple):
    """A network as the analyses take it.

    Attributes:
      cell: the recurrent cell.
      xs: what it reads [T, B, F].
      loss: from its outputs [T, B, Y] to the task's loss of each sequence [B].
    """

    cell: Any
    xs: Any
    loss: Loss


def view(model: Any, task: Task, batch: Batch) -> View | None:
    """Return a network's cell with what it reads and the loss behind it.

    None unless it is one layer that reads forwards from zeros and computes what its cell does: with zoneout
    even the evaluated network is another map, and a learnt carry starts elsewhere.

    An analysis goes through all steps of all sequences, so they must be of one length, as `whole_sequences`
    returns them.
    """
    xs = batch.inputs
    if isinstance(model, Embedded | LanguageModel):
        xs = model.embedding(jnp.asarray(xs))
        model = model.model if isinstance(model, Embedded) else model
    layer = model.layer if isinstance(model, SequenceClassifier) else getattr(model, "body", None)
    if not isinstance(layer, RNN) or layer.reverse or layer.zoneout or len(layer.carry):
        return None
    read = model.logits if isinstance(model, LanguageModel) else model.readout
    targets, mask = jnp.asarray(batch.targets), jnp.asarray(batch.mask)

    def loss(outputs: Any) -> Any:
        if task.answers == "sequence":
            return task.losses(read(outputs[-1]), Batch(None, targets, mask))
        return task.losses(read(outputs), Batch(None, targets, mask)).sum(axis=0)

    return View(layer.cell, jnp.asarray(xs), loss)


@checked
def whole_sequences(source: Source, count: int) -> Batch:
    """Return up to `count` sequences of equal length, the longest among the first `_SEARCHED`."""
    batch = source.take(count)
    if batch.lengths is None:
        return batch
    batch = source.take(_SEARCHED)
    lengths = np.asarray(batch.lengths)
    steps = int(lengths.max())
    chosen = np.flatnonzero(lengths == steps)[:count]

    def pick(array: Any, batch_axis: int) -> Any:
        return np.take(np.asarray(array), chosen, axis=batch_axis)

    by_step = np.ndim(batch.mask) == 2
    targets, mask = (pick(array, int(by_step)) for array in (batch.targets, batch.mask))
    if by_step:
        targets, mask = targets[:steps], mask[:steps]
    return Batch(pick(batch.inputs, 1)[:steps], targets, mask)


def required(seen: View | None) -> View:
    """Require a network that can be analysed as one cell."""
    if seen is None:
        got = "a network of several layers or directions, with zoneout, a learnt initial carry or no cell"
        checks.refuse("run", got, "one forward layer that starts from zeros, without zoneout")
    return seen
