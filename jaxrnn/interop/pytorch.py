"""PyTorch's `nn.RNN`, `nn.LSTM`, `nn.GRU` and their cells, imported and exported as a `state_dict`.

    weight_ih_l0 [G·H, F]    weight_hh_l0 [G·H, H]    bias_ih_l0, bias_hh_l0 [G·H]

Higher layers have the suffixes `_l1`, `_l2`, …, and the other direction the suffix `_reverse`. An LSTM with
`proj_size` Y also has weight_hr_l0 [Y, H], and weight_hh_l0 is [4·H, Y]: our `ProjectedLSTMCell`. PyTorch's
gates are in the same order as ours (i, f, g, o and r, z, n), and its matrices are the transposes of ours.
Several layers become a `Stack`, two directions a `Bidirectional`. An `nn.RNNCell`, `nn.LSTMCell` or
`nn.GRUCell` has the same names without `_l0`.

An LSTM's state is (h, c) in PyTorch and (c, h) here, and PyTorch stacks the states of all layers and
directions: `carry_from_pytorch` and `carry_to_pytorch` convert between the two.

Names: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html. PyTorch is neither needed nor
imported. Weakness: PyTorch's two biases are exported as their sum and a zero.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import ElmanCell, ProjectedLSTMCell, RecurrentCell
from jaxrnn.interop.files import PathLike, few, read, shortened
from jaxrnn.interop.weights import (
    COMMON,
    Weights,
    cell_of_rnn,
    count_gates,
    device_array,
    host_array,
    of_cell,
    to_cell,
)
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.layers.bidirectional import side_by_side
from jaxrnn.typing import Carry

_WEIGHTS, _BIASES, _PROJECTION = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh"), ("weight_hr",)
_KINDS = (*COMMON, ProjectedLSTMCell)
_DIRECTIONS = ("", "_reverse")
_LSTM = len(ProjectedLSTMCell.gates)


@checked
def from_pytorch(
    state_dict: Mapping[str, Any] | PathLike | Any,
    *,
    prefix: str = "",
    activation_fn: Callable[[Any], Any] | None = None,
) -> RNN | Bidirectional | Stack:
    """Return the layer that computes the same as an `nn.RNN`, `nn.LSTM`, `nn.GRU` or a cell of these.

    Args:
      state_dict: names and arrays, as from ``module.state_dict()``, or the path of a safetensors file with
        them.
      prefix: prefix of the layer's names in a larger model, including the dot: ``"encoder.rnn."``. Other
        names are ignored.
      activation_fn: ``jax.nn.relu`` for ``nn.RNN(nonlinearity="relu")``, which the weights do not show; tanh
        by default.

    Returns:
      An `RNN` for one layer or cell, with our cell in ``.cell``, a `Bidirectional` for one layer of two
      directions, a `Stack` for several layers. It is batch first; ``time_major=True`` in its call gives
      PyTorch's default layout. Two biases become their sum, and missing ones (``bias=False``) become zeros.
      Dropout between layers is not stored in the weights, so the layer has none.

    Raises:
      InputError: names that are missing or unexpected, arrays whose shape does not fit their layer, a mapping
        that holds the `state_dict` under a name, or the path of a pickle.

    Example:
      Three lines show how gradients flow through a trained layer::

          cell = interop.from_pytorch(module.state_dict()).cell
          diagnosis = jaxrnn.analysis.diagnose(cell, xs, loss)  # xs [T, *B, F]
          print(diagnosis.flow.log_norms)

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
        if isinstance(state_dict[name], Mapping):
            got = f"a mapping that holds another under the name {shortened(name)}"
            checks.refuse("state_dict", got, f"{expected}, such as state_dict[{shortened(name)}]")
    suffixes, names = _names_below(state_dict, prefix)
    arrays = {
        name: host_array(f"state_dict[{prefix + name!r}]", state_dict[prefix + name])
        for name in names
    }
    first = arrays[names[0]]
    features, cells = first.shape[1] if first.ndim == 2 else 0, []
    for layer in suffixes:
        row = [to_cell("state_dict", _weights(arrays, s, features), activation_fn) for s in layer]
        features = sum(cell.out_features for cell in row)
        cells.append(row)
    layers = [_layer(row) for row in cells]
    return Stack(layers) if len(layers) > 1 else layers[0]


@checked
def to_pytorch(
    layer: RNN | Bidirectional | Stack | Any, *, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Return the `state_dict` of the PyTorch layer that computes the same as a layer of this package.

    Args:
      layer: an `RNN`, a `Bidirectional`, or a `Stack` of either, over `ElmanCell`, `GRUCell`, `LSTMCell` or
        `ProjectedLSTMCell`.
      prefix: prefix of the names.

    Returns:
      Names and arrays in PyTorch's order, for a module with ``bias=True``:
      ``module.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})``. Our bias is
      their ``bias_ih``; ``bias_hh`` is zero, except for the candidate of a GRU. `from_pytorch` restores the
      same weights exactly.

    Raises:
      InputError: PyTorch has no equivalent layer; the message says which part is missing.

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
            # PyTorch's matrices are the transposes of ours; vectors are not affected.
            for name, array in zip(
                _WEIGHTS + _BIASES + _PROJECTION, (a.T for a in each), strict=False
            ):
                # Make arrays contiguous: safetensors writes memory in its order, transposed or not.
                arrays[f"{prefix}{name}_l{k}{direction}"] = np.ascontiguousarray(array)
    return arrays


@checked
def carry_from_pytorch(layer: RNN | Bidirectional | Stack | RecurrentCell, state: Any) -> Carry:
    """Return the carry of a layer that corresponds to a state of the PyTorch layer with the same weights.

    Args:
      layer: the layer, as from `from_pytorch`, or a cell.
      state: h, or (h, c) for an LSTM, as an `nn.RNN`, `nn.GRU` or `nn.LSTM` takes and returns it: arrays
        [L·D, *B, H] with one row for each layer and direction. For a cell, arrays [*B, H].

    Returns:
      The ``initial_carry`` of the layer: for each layer and direction h, or (c, h) for an LSTM.

    Raises:
      InputError: a state of the wrong structure or size.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from jaxrnn import RNN, LSTMCell, interop
      >>> h, c = np.zeros((1, 4, 8), "f"), np.ones((1, 4, 8), "f")
      >>> carry = interop.carry_from_pytorch(RNN(LSTMCell(3, 8, rngs=nnx.Rngs(0))), (h, c))
      >>> [float(leaf[0, 0]) for leaf in carry]
      [1.0, 0.0]
    """
    cells = _cells_in_order(layer)
    names = cells[0].carry_names
    given = tuple(state) if isinstance(state, tuple | list) else (state,)
    if len(given) != len(names):
        expected = "(h, c), as of nn.LSTM" if len(names) > 1 else "one array h"
        checks.refuse("state", checks.describe(state), expected)
    rows = []
    arrays = [host_array(f"state[{i}]", each) for i, each in enumerate(given)]
    if isinstance(layer, RecurrentCell):
        arrays = [array[None] for array in arrays]
    for i, array in enumerate(arrays):
        size = cells[0].hidden_features if i else cells[0].out_features
        if array.ndim < 2 or (array.shape[0], array.shape[-1]) != (len(cells), size):
            expected = f"[{len(cells)}, *B, {size}], a row for each layer and direction"
            checks.refuse(f"state[{i}]", checks.describe(given[i]), expected)
    for row in zip(*arrays, strict=True):
        carry = tuple(device_array("state", array) for array in reversed(row))
        rows.append(carry if len(names) > 1 else carry[0])
    return _nested(layer, iter(rows))


@checked
def carry_to_pytorch(
    layer: RNN | Bidirectional | Stack | RecurrentCell, carry: Carry
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Return PyTorch's state h, or (h, c) for an LSTM, for a carry of a layer; see `carry_from_pytorch`.

    Raises:
      InputError: a carry of the wrong structure or size.
    """
    cells = _cells_in_order(layer)
    checks.arrays("carry", carry)
    like = _nested(layer, (_like(cell) for cell in cells))
    if jax.tree.structure(carry) != jax.tree.structure(like):
        checks.refuse("carry", checks.describe(carry), "a carry of the layer, as it returns it")
    leaves = [host_array("carry", leaf) for leaf in jax.tree.leaves(carry)]
    count = len(cells[0].carry_names)
    sizes = [cells[0].hidden_features] * (count - 1) + [cells[0].out_features]
    for i, leaf in enumerate(leaves):
        if leaf.ndim < 1 or leaf.shape != (*leaves[0].shape[:-1], sizes[i % count]):
            expected = f"leaves [*B, {sizes[i % count]}], with one *B for all"
            checks.refuse("carry", checks.describe(carry), expected)
    state = tuple(np.stack(leaves[i::count]) for i in reversed(range(count)))
    if isinstance(layer, RecurrentCell):
        state = tuple(array[0] for array in state)
    return state if count > 1 else state[0]


def _like(cell: Any) -> Carry:
    """Return a tree with the structure of a cell's carry."""
    return 0 if len(cell.carry_names) == 1 else (0,) * len(cell.carry_names)


def _cells_in_order(layer: Any) -> list[Any]:
    """Return the cells of a layer that has a PyTorch equivalent, in the order of PyTorch's states."""
    if isinstance(layer, RecurrentCell):
        return [cell_of_rnn("layer", RNN(layer), _KINDS)]
    return [cell for row in _cells(layer) for cell in row]


def _nested(layer: Any, rows: Iterator[Any]) -> Carry:
    """Arrange one value for each cell of a layer in the structure of the layer's carry."""
    if isinstance(layer, Stack):
        return tuple(_nested(each, rows) for each in layer.layers)
    if isinstance(layer, Bidirectional):
        return next(rows), next(rows)
    return next(rows)


def _names_below(names: Mapping[str, Any], prefix: str) -> tuple[list[list[str]], list[str]]:
    """Return the suffixes of each layer's directions, and the names of all weights, both in order."""
    found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    depth = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in found)
    cell = not depth and "weight_ih" in found
    if not depth and not cell:
        others = sorted({n.partition("weight_ih")[0] for n in names if "weight_ih" in n})
        hint = f" (did you mean {' or '.join(map(repr, others))}?)" if others else ""
        checks.refuse("prefix", repr(prefix), f"one before weight_ih_l0 or weight_ih{hint}")
    directions = _DIRECTIONS[: 1 + any(name.endswith("_reverse") for name in found)]
    kinds = _WEIGHTS + _BIASES * any(name.startswith("bias_") for name in found)
    kinds += _PROJECTION * any(name.startswith("weight_hr_") for name in found)
    suffixes = [[f"_l{k}{direction}" for direction in directions] for k in range(depth)]
    suffixes = [[""]] if cell else suffixes
    expected = [kind + suffix for suffix in itertools.chain(*suffixes) for kind in kinds]
    odd = [f"{prefix}{name} missing" for name in expected if name not in found]
    odd += [f"{shortened(prefix + name)} unexpected" for name in sorted(found - set(expected))]
    if odd:
        checks.refuse(
            "state_dict", ", ".join(few(odd)), f"the weights of {depth or 1} layer(s) and no more"
        )
    return suffixes, expected


def _weights(arrays: Mapping[str, np.ndarray], suffix: str, features: int) -> Weights:
    """Return the weights of one direction of one layer that has `features` input features."""
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
    """Return the cells by layer and direction, if PyTorch has an equivalent layer."""
    if isinstance(layer, Stack) and (any(layer.residual) or jax.tree.leaves(layer.norms)):
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
    """Return the properties that must be equal in all layers of a PyTorch module."""
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
