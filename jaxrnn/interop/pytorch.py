"""PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU`, by the names of their `state_dict`.

    weight_ih_l0 [G·H, F]    weight_hh_l0 [G·H, H]    bias_ih_l0, bias_hh_l0 [G·H]

and the same with `_l1`, `_l2` for the layers above and `_reverse` for the other direction. An LSTM with
`proj_size` Y has weight_hr_l0 [Y, H] too, and weight_hh_l0 [4·H, Y]: our `ProjectedLSTMCell`. Their gates
stand in our order (i, f, g, o and r, z, n), their matrices are the transposes of ours. Several layers become
a `Stack`, two directions a `Bidirectional`. An LSTM's state is (h, c) there and (c, h) here.

Names: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html. PyTorch is neither needed nor
imported. Weakness: the two biases of PyTorch come back as one and a zero.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.cells import ElmanCell, ProjectedLSTMCell, RecurrentCell
from jaxrnn.interop.files import PathLike, few, read, shortened
from jaxrnn.interop.weights import (
    COMMON,
    Weights,
    cell_of_rnn,
    count_gates,
    host_array,
    of_cell,
    to_cell,
)
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.layers.bidirectional import side_by_side

_WEIGHTS, _BIASES, _PROJECTION = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh"), ("weight_hr",)
_KINDS = (*COMMON, ProjectedLSTMCell)
_DIRECTIONS = ("", "_reverse")
_LSTM = len(ProjectedLSTMCell.gates)


def from_pytorch(
    state_dict: Mapping[str, Any] | PathLike | Any,
    *,
    prefix: str = "",
    activation_fn: Callable[[Any], Any] | None = None,
) -> RNN | Bidirectional | Stack:
    """Return the layer that computes what an `nn.RNN`, `nn.LSTM` or `nn.GRU` computes.

    Args:
      state_dict: names and arrays, as from ``module.state_dict()``, or the path of a safetensors file with
        them.
      prefix: what stands before the layer's names in a larger model, its dot included: ``"encoder.rnn."``.
        Names without it are left alone.
      activation_fn: ``jax.nn.relu`` for ``nn.RNN(nonlinearity="relu")``, which the weights do not show; tanh
        by default.

    Returns:
      An `RNN` for one layer, a `Bidirectional` for one of two directions, a `Stack` for several. It is batch
      first; ``time_major=True`` in its call reads as PyTorch does by default. Two biases become their sum,
      none (``bias=False``) become zeros. Dropout between layers is no weight: the layer has none.

    Raises:
      InputError: names are missing, unexpected, or of another shape than their layer's, or those of an
        `nn.LSTMCell`; the path of a pickle.

    Example:
      >>> import numpy as np
      >>> from jaxrnn import interop
      >>> shapes = {"weight_ih_l0": (32, 3), "weight_hh_l0": (32, 8)}
      >>> layer = interop.from_pytorch({name: np.ones(s, "f") for name, s in shapes.items()})
      >>> layer.cell.hidden_features, layer(np.ones((4, 20, 3), "f")).shape
      (8, (4, 20, 8))
    """
    if isinstance(state_dict, (str, os.PathLike)):
        _, state_dict = read(state_dict)
    expected = "names and arrays, as state_dict() returns, or a path"
    if not isinstance(state_dict, Mapping):
        checks.refuse("state_dict", checks.describe(state_dict), expected)
    for name in state_dict:
        if not isinstance(name, str):
            checks.refuse("state_dict", f"the name {name!r}", expected)
    suffixes, names = _names_below(state_dict, prefix)
    arrays = {
        name: host_array(f"state_dict[{prefix + name!r}]", state_dict[prefix + name])
        for name in names
    }
    first = arrays["weight_ih_l0"]
    features, cells = first.shape[1] if first.ndim == 2 else 0, []
    for layer in suffixes:
        row = [to_cell("state_dict", _weights(arrays, s, features), activation_fn) for s in layer]
        features = sum(cell.out_features for cell in row)
        cells.append(row)
    layers = [_layer(row) for row in cells]
    return Stack(layers) if len(layers) > 1 else layers[0]


def to_pytorch(
    layer: RNN | Bidirectional | Stack | Any, *, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Return the `state_dict` of the PyTorch layer that computes what a layer of ours computes.

    Args:
      layer: an `RNN`, a `Bidirectional`, or a `Stack` of either, over `ElmanCell`, `GRUCell`, `LSTMCell` or
        `ProjectedLSTMCell`.
      prefix: what to put before the names.

    Returns:
      Names and arrays in PyTorch's order, for a module with ``bias=True``:
      ``module.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})``. Our bias is
      their ``bias_ih``; ``bias_hh`` is zero, except for the candidate of a GRU. `from_pytorch` brings the
      same weights back, to the bit.

    Raises:
      InputError: PyTorch has no such layer; the message says what it lacks.

    Example:
      >>> from flax import nnx
      >>> from jaxrnn import RNN, GRUCell, interop
      >>> arrays = interop.to_pytorch(RNN(GRUCell(3, 8, rngs=nnx.Rngs(0))))
      >>> {name: array.shape for name, array in arrays.items()}
      {'weight_ih_l0': (24, 3), 'weight_hh_l0': (24, 8), 'bias_ih_l0': (24,), 'bias_hh_l0': (24,)}
    """
    cells = _cells(layer)
    arrays = {}
    for k, row in enumerate(cells):
        for direction, cell in zip(_DIRECTIONS, row, strict=False):
            weights = of_cell(f"layer {k}", cell, _KINDS)
            each = [weights.kernel, weights.recurrent_kernel, weights.bias, weights.recurrent_bias]
            if weights.projection is not None:
                each.append(weights.projection)
            # Theirs are the transposes; vectors are their own.
            for name, array in zip(
                _WEIGHTS + _BIASES + _PROJECTION, (a.T for a in each), strict=False
            ):
                # In one piece: safetensors writes memory as it lies, transposed or not.
                arrays[f"{prefix}{name}_l{k}{direction}"] = np.ascontiguousarray(array)
    return arrays


def _names_below(names: Mapping[str, Any], prefix: str) -> tuple[list[list[str]], list[str]]:
    """Return the suffixes of each layer's directions, and all names of the weights, both in order."""
    found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    depth = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in found)
    if not depth and "weight_ih" in found:
        got = f"the names of an nn.RNNCell, nn.GRUCell or nn.LSTMCell ({prefix}weight_ih)"
        checks.refuse("state_dict", got, "those of a layer: put _l0 behind each name")
    if not depth:
        others = sorted({n.partition("weight_ih_l0")[0] for n in names if "weight_ih_l0" in n})
        hint = f" (did you mean {' or '.join(map(repr, others))}?)" if others else ""
        checks.refuse("prefix", repr(prefix), f"one before weight_ih_l0{hint}")
    directions = _DIRECTIONS[: 1 + any(name.endswith("_reverse") for name in found)]
    kinds = _WEIGHTS + _BIASES * any(name.startswith("bias_") for name in found)
    kinds += _PROJECTION * any(name.startswith("weight_hr_") for name in found)
    suffixes = [[f"_l{k}{direction}" for direction in directions] for k in range(depth)]
    expected = [kind + suffix for suffix in itertools.chain(*suffixes) for kind in kinds]
    odd = [f"{prefix}{name} missing" for name in expected if name not in found]
    odd += [f"{shortened(prefix + name)} unexpected" for name in sorted(found - set(expected))]
    if odd:
        checks.refuse(
            "state_dict", ", ".join(few(odd)), f"the weights of {depth} layer(s) and no more"
        )
    return suffixes, expected


def _weights(arrays: Mapping[str, np.ndarray], suffix: str, features: int) -> Weights:
    """Return the weights of one direction of one layer with so many input features."""
    kernel, recurrent_kernel = (arrays[name + suffix] for name in _WEIGHTS)
    pull, hidden = recurrent_kernel.shape if recurrent_kernel.ndim == 2 else (0, 0)
    projection = arrays.get(_PROJECTION[0] + suffix)
    if projection is not None:
        if pull % _LSTM or projection.shape != (hidden, pull // _LSTM):
            expected = (
                f"[Y, H], for weight_hh{suffix} {checks.describe(recurrent_kernel)}, [4·H, Y]"
            )
            checks.refuse(f"weight_hr{suffix}", checks.describe(projection), expected)
        projection = projection.T
    elif not count_gates(hidden, pull):
        checks.refuse(
            f"weight_hh{suffix}",
            checks.describe(recurrent_kernel),
            "[G·H, H], with G = 1 (RNN), 3 (GRU) or 4 (LSTM)",
        )
    checks.shape(f"weight_ih{suffix}", kernel, (pull, features), "[G·H, F]")
    zeros = np.zeros(pull, kernel.dtype)
    first, second = (arrays.get(name + suffix, zeros) for name in _BIASES)
    for name, bias in zip(_BIASES, (first, second), strict=True):
        checks.shape(name + suffix, bias, (pull,), "[G·H]")
    return Weights(kernel.T, recurrent_kernel.T, first, second, projection)


def _layer(cells: list[RecurrentCell]) -> RNN | Bidirectional:
    rnns = [RNN(cell) for cell in cells]
    return Bidirectional(*rnns) if len(rnns) == 2 else rnns[0]


def _cells(layer: Any) -> list[list[Any]]:
    """Return the cells by layer and direction, if PyTorch can have them so."""
    if isinstance(layer, Stack) and (layer.residual or len(layer.norms)):
        checks.refuse("layer", "a Stack with residual or norms", "a plain Stack, as PyTorch's are")
    layers = list(layer.layers) if isinstance(layer, Stack) else [layer]
    cells = [_directions(f"layer {k}", each) for k, each in enumerate(layers)]
    makes = [_make(f"layer {k}", cell) for k, row in enumerate(cells) for cell in row]
    if len(set(makes)) > 1 or len({len(row) for row in cells}) > 1:
        checks.refuse(
            "layer",
            "layers that differ",
            "one kind of cell, size, dtype and number of directions in all layers",
        )
    for k, (below, above) in enumerate(itertools.pairwise(cells), start=1):
        size = sum(cell.out_features for cell in below)
        if any(cell.in_features != size for cell in above):
            checks.refuse(f"layer {k}", f"{above[0].in_features} input features", f"{size}")
    return cells


def _directions(argument: str, layer: Any) -> list[Any]:
    if isinstance(layer, Bidirectional):
        if layer.merge_fn is not side_by_side:
            checks.refuse(argument, "a merge_fn of your own", "outputs side by side")
        return [
            cell_of_rnn(argument, rnn, _KINDS) for rnn in (layer.forward_rnn, layer.backward_rnn)
        ]
    cell = cell_of_rnn(argument, layer, _KINDS)
    if layer.reverse:
        checks.refuse(argument, "an RNN that reads in reverse", "one that reads forwards")
    return [cell]


def _make(argument: str, cell: Any) -> tuple[Any, ...]:
    """Return what PyTorch wants alike in all layers."""
    activation = cell.activation_fn if isinstance(cell, ElmanCell) else None
    if activation not in (None, jnp.tanh, jax.nn.relu):
        checks.refuse(
            f"{argument} (activation_fn)",
            repr(activation),
            "jnp.tanh or jax.nn.relu, as nn.RNN has",
        )
    if isinstance(cell, ProjectedLSTMCell) and cell.out_features >= cell.hidden_features:
        got = f"{cell.out_features} projected features of {cell.hidden_features} units"
        checks.refuse(argument, got, "fewer features than units, as nn.LSTM has")
    return type(cell), cell.hidden_features, cell.out_features, cell.dtype, activation
