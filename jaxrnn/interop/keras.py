"""Keras 3's `SimpleRNN`, `LSTM` and `GRU`, imported and exported as the arrays of `layer.get_weights()`.

    kernel [F, G·H]    recurrent_kernel [H, G·H]    bias [G·H]; of a GRU [2, G·H]: b and v

LSTM gates are in our order (i, f, c, o); the GRU's z and r are exchanged. `Bidirectional` gives the forward
layer's arrays, then the backward layer's.

Layout: https://keras.io/api/layers/recurrent_layers. Weakness: a list of arrays does not identify the layer.
`GRU(reset_after=False)`, our `ResetBeforeGRUCell`, is recognised only by its bias [3·H]; a GRU without biases
is assumed to have Keras's default, ``reset_after=True``, unless the argument says otherwise. Activations and
`merge_mode` are not recognisable, and are assumed to be the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import GRUCell, RecurrentCell, ResetBeforeGRUCell
from jaxrnn.interop.weights import (
    COMMON,
    Weights,
    cell_of_rnn,
    count_gates,
    host_array,
    of_cell,
    to_cell,
)
from jaxrnn.layers import RNN, Bidirectional

_KINDS = (*COMMON, ResetBeforeGRUCell)

_GRU = 3
"""The number of gates of a GRU, the only layer whose gates and bias Keras arranges differently."""


@checked
def from_keras(
    weights: Collection[Any] | Any,
    *,
    activation_fn: Callable[[Any], Any] | None = None,
    reset_after: bool | None = None,
) -> RNN | Bidirectional:
    """Return the layer that computes the same as a recurrent layer of Keras.

    Args:
      weights: ``layer.get_weights()`` of a `SimpleRNN`, an `LSTM`, a `GRU`, or a `Bidirectional` of one.
      activation_fn: the `SimpleRNN`'s ``activation``, which the weights do not show; tanh by default.
      reset_after: the `GRU`'s ``reset_after``; by default as its bias shows, and True if it has none.

    Returns:
      An `RNN`, with our cell in ``.cell``, or a `Bidirectional` with its outputs side by side (for another
      ``merge_mode``, set its `merge_fn`). Several layers of Keras become
      ``Stack([from_keras(w) for w in ...])``.

    Raises:
      InputError: arrays that do not belong to such a layer, or a `reset_after` that contradicts the bias or
        is given for a layer other than a GRU.

    Example:
      >>> import numpy as np
      >>> from jaxrnn import interop
      >>> lstm = [np.ones((3, 32), "f"), np.ones((8, 32), "f"), np.zeros(32, "f")]
      >>> interop.from_keras(lstm)(np.ones((4, 20, 3), "f")).shape
      (4, 20, 8)
    """
    listed = isinstance(weights, Collection) and not isinstance(weights, str | bytes | Mapping)
    if not listed or checks.is_array(weights):
        got = "names and arrays" if isinstance(weights, Mapping) else checks.describe(weights)
        checks.refuse("weights", got, "a list of arrays, as get_weights returns")
    if len(weights) not in (2, 3, 4, 6):  # without biases and with, one direction and two
        checks.refuse(
            "weights", f"{len(weights)} arrays", "2 or 3, or twice as many from a Bidirectional"
        )
    arrays = [host_array(f"weights[{i}]", array) for i, array in enumerate(weights)]
    if len(arrays) < 4:
        return RNN(_cell(arrays, 0, activation_fn, reset_after))
    half = len(arrays) // 2
    forward, backward = (
        RNN(_cell(arrays[i : i + half], i, activation_fn, reset_after)) for i in (0, half)
    )
    return Bidirectional(forward, backward)


@checked
def to_keras(layer: RNN | Bidirectional | Any) -> list[np.ndarray]:
    """Return the arrays for ``set_weights`` of the Keras layer that computes the same as a layer of ours.

    Args:
      layer: an `RNN` or a `Bidirectional` over `ElmanCell`, `GRUCell`, `ResetBeforeGRUCell` or `LSTMCell`.

    Returns:
      The arrays, for a layer with ``use_bias=True`` and the same activation and `merge_mode`, and with
      ``reset_after=False`` for a `ResetBeforeGRUCell`. The second of a `GRUCell`'s two biases is zero, except
      for the candidate. `from_keras` restores the same weights exactly.

    Raises:
      InputError: Keras has no equivalent layer; the message says which part is missing.

    Example:
      >>> from flax import nnx
      >>> from jaxrnn import RNN, GRUCell, interop
      >>> arrays = interop.to_keras(RNN(GRUCell(3, 8, rngs=nnx.Rngs(0))))
      >>> [array.shape for array in arrays]
      [(3, 24), (8, 24), (2, 24)]
    """
    if isinstance(layer, Bidirectional):
        rnns = (layer.forward_rnn, layer.backward_rnn)
        return [array for rnn in rnns for array in _arrays(cell_of_rnn("layer", rnn, _KINDS))]
    cell = cell_of_rnn("layer", layer, _KINDS)
    if layer.reverse:  # in Keras the order of the outputs would be reversed, too
        checks.refuse("layer", "an RNN that reads in reverse", "one that reads forwards")
    return _arrays(cell)


def _cell(
    arrays: Sequence[np.ndarray],
    offset: int,
    activation_fn: Callable[[Any], Any] | None,
    reset_after: bool | None,
) -> RecurrentCell:
    """Return the cell of one direction, whose first array is ``weights[offset]``."""
    weights = _weights(arrays, offset)
    gates = weights.kernel.shape[1] // weights.recurrent_kernel.shape[0]
    if reset_after is not None and gates != _GRU:
        checks.refuse("reset_after", reset_after, "None, for a layer that is no GRU")
    shown = arrays[2].ndim == 2 if gates == _GRU and len(arrays) > 2 else None
    if None not in (shown, reset_after) and shown != reset_after:
        got = f"{reset_after}, and a bias {checks.describe(arrays[2])}"
        checks.refuse("reset_after", got, f"{shown}, as the bias shows")
    before = gates == _GRU and False in (shown, reset_after)
    kind = ResetBeforeGRUCell if before else None
    return to_cell("weights", weights, activation_fn, kind=kind)


def _weights(arrays: Sequence[np.ndarray], offset: int) -> Weights:
    """Return the weights of one direction, whose first array is ``weights[offset]``."""
    kernel, recurrent_kernel = arrays[:2]
    hidden, pull = recurrent_kernel.shape if recurrent_kernel.ndim == 2 else (0, 0)
    gates = count_gates(hidden, pull)
    if gates is None:
        checks.refuse(
            f"weights[{offset + 1}]",
            checks.describe(recurrent_kernel),
            "[H, G·H], with G = 1 (SimpleRNN), 3 (GRU) or 4 (LSTM)",
        )
    features = kernel.shape[0] if kernel.ndim else 0
    checks.shape(f"weights[{offset}]", kernel, (features, pull), "[F, G·H]")
    biases = np.zeros((2, pull), kernel.dtype)
    if len(arrays) > 2:
        biases = _biases(f"weights[{offset + 2}]", arrays[2], gates, pull)
    each = (kernel, recurrent_kernel, *biases)
    return Weights(*(_exchanged(array) for array in each) if gates == _GRU else each)


def _biases(argument: str, bias: np.ndarray, gates: int, pull: int) -> np.ndarray:
    """Return the input bias and the recurrent bias, [2, P]."""
    if gates != _GRU or bias.shape == (pull,):  # the second is a GRU with reset_after=False
        checks.shape(argument, bias, (pull,), "[G·H]")
        return np.stack([bias, np.zeros_like(bias)])
    checks.shape(argument, bias, (2, pull), "[2, G·H]")
    return bias


def _arrays(cell: Any) -> list[np.ndarray]:
    weights = of_cell("layer", cell, _KINDS)
    each = [weights.kernel, weights.recurrent_kernel, weights.bias]
    if len(cell.gates) == _GRU:
        if isinstance(cell, GRUCell):
            each[2] = np.stack([weights.bias, weights.recurrent_bias])
        each = [_exchanged(array) for array in each]
    return each


def _exchanged(array: np.ndarray) -> np.ndarray:
    """Exchange the first two of three gates: r, z, n here is z, r, h in Keras."""
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)
