"""Flax's own cells: NNX modules, and the parameter trees of Linen.

Linen has one Dense layer for each gate and side: `ii, if, ig, io` and `hi, hf, hg, ho` (LSTM), `ir, iz, in`
and `hr, hz, hn` (GRU), `i` and `h` (Simple). NNX's LSTMCell has the same; its other cells have one `dense_i`
and one `dense_h` with the gates side by side. Gates are in our order everywhere. The bias is on the recurrent
side for an LSTM and on the input side for the others. Linen's GRU has one more bias, in `hn`, which is our
`recurrent_bias`.

Weakness: `nnx.GRUCell` lacks that last bias (google/flax#5594), so it cannot represent every GRU; Linen's
can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, RecurrentCell
from jaxrnn.interop.weights import Weights, device_array, host_array, of_cell, to_cell

_LETTERS = {ElmanCell: ("",), GRUCell: ("r", "z", "n"), LSTMCell: ("i", "f", "g", "o")}
_KINDS: dict[type[RecurrentCell], tuple[Any, ...]] = {
    ElmanCell: (nnx.SimpleCell,),
    GRUCell: (nnx.GRUCell,),
    LSTMCell: (nnx.OptimizedLSTMCell, nnx.LSTMCell),
}
_DENSE = (("dense_i",), ("dense_h",))
_SIDES: dict[Any, Any] = {nnx.LSTMCell: (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho"))}


@checked
def from_nnx(cell: Any) -> RecurrentCell:
    """Return a cell of this package with the weights of a cell of Flax NNX.

    Args:
      cell: ``nnx.SimpleCell``, ``nnx.GRUCell``, ``nnx.LSTMCell`` or ``nnx.OptimizedLSTMCell``, or an
        ``nnx.RNN`` of one.

    Returns:
      An `ElmanCell`, `GRUCell` or `LSTMCell`; it computes in the dtype of the weights.

    Raises:
      InputError: another kind of cell, or nonlinearities or a residual that our cell does not have.

    Example:
      >>> from flax import nnx
      >>> from jaxrnn import interop
      >>> type(interop.from_nnx(nnx.OptimizedLSTMCell(3, 8, rngs=nnx.Rngs(0)))).__name__
      'LSTMCell'
    """
    if isinstance(cell, nnx.RNN):
        cell = cell.cell
    if type(cell) not in (kind for kinds in _KINDS.values() for kind in kinds):
        checks.refuse(
            "cell",
            type(cell).__name__,
            "nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell or nnx.OptimizedLSTMCell",
        )
    activation_fn = None
    if isinstance(cell, nnx.SimpleCell):
        activation_fn = cell.activation_fn
        if cell.residual:
            checks.refuse("cell", "a SimpleCell with residual=True", "one without")
    elif (cell.gate_fn, cell.activation_fn) != (jax.nn.sigmoid, jnp.tanh):
        checks.refuse("cell", "other nonlinearities", "sigmoid for the gates and tanh elsewhere")
    inputs, recurrents = (
        [(getattr(cell, name).kernel, getattr(cell, name).bias) for name in side]
        for side in _SIDES.get(type(cell), _DENSE)
    )
    return to_cell("cell", _joined(inputs, recurrents), activation_fn)


@checked
def to_nnx(cell: RecurrentCell, kind: Any = None) -> Any:
    """Return the cell of Flax NNX that computes the same as a cell of this package.

    Args:
      cell: an `ElmanCell`, `GRUCell` or `LSTMCell`.
      kind: for an LSTM, ``nnx.LSTMCell`` instead of ``nnx.OptimizedLSTMCell``.

    Raises:
      InputError: another kind of cell, a `kind` that does not fit it, or a GRU whose `recurrent_bias` is not
        0, because ``nnx.GRUCell`` has no such bias (use `to_linen`).

    Example:
      >>> from flax import nnx
      >>> from jaxrnn import LSTMCell, interop
      >>> type(interop.to_nnx(LSTMCell(3, 8, rngs=nnx.Rngs(0)))).__name__
      'OptimizedLSTMCell'
    """
    weights = of_cell("cell", cell)
    kinds = _KINDS[type(cell)]
    chosen = kinds[0] if kind is None else kind
    if not any(chosen is each for each in kinds):
        checks.refuse(
            "kind", checks.describe(chosen), " or ".join(f"nnx.{k.__name__}" for k in kinds)
        )
    if np.any(weights.recurrent_bias):
        checks.refuse("cell", "a recurrent_bias that is not 0", "0: nnx.GRUCell has none")
    options = {"activation_fn": cell.activation_fn} if isinstance(cell, ElmanCell) else {}
    module = jax.eval_shape(
        lambda: chosen(
            cell.in_features,
            cell.hidden_features,
            dtype=cell.dtype,  # SimpleCell computes in float32 by default
            param_dtype=cell.dtype,
            rngs=nnx.Rngs(0),
            **options,
        )
    )
    inputs, recurrents = _SIDES.get(chosen, _DENSE)
    for side, kernel in ((inputs, weights.kernel), (recurrents, weights.recurrent_kernel)):
        for name, block in zip(side, np.split(kernel, len(side), axis=-1), strict=True):
            getattr(module, name).kernel = nnx.Param(device_array("cell", block))
    biased = recurrents if isinstance(cell, LSTMCell) else inputs
    for name, block in zip(biased, np.split(weights.bias, len(biased)), strict=True):
        getattr(module, name).bias = nnx.Param(device_array("cell", block))
    return module


@checked
def from_linen(
    params: Mapping[str, Any] | Any, *, activation_fn: Callable[[Any], Any] | None = None
) -> RecurrentCell:
    """Return a cell of this package with the parameters of a cell of Flax Linen.

    Args:
      params: the tree of a `SimpleCell`, `GRUCell`, `LSTMCell` or `OptimizedLSTMCell`, as ``init`` returns
        it, with or without the outer ``"params"``.
      activation_fn: the `SimpleCell`'s, which the parameters do not show; tanh by default.

    Raises:
      InputError: a tree with the wrong names or shapes.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from jaxrnn import interop
      >>> cell = nn.GRUCell(8)
      >>> carry, x = jax.numpy.ones((4, 8)), jax.numpy.ones((4, 3))
      >>> variables = cell.init(jax.random.key(0), carry, x)
      >>> ours = interop.from_linen(variables)
      >>> bool(jax.numpy.allclose(ours(carry, x)[1], cell.apply(variables, carry, x)[1], atol=1e-6))
      True
    """
    if isinstance(params, Mapping):
        params = params.get("params", params)
    if not isinstance(params, Mapping):
        checks.refuse("params", checks.describe(params), "a tree of parameters, as init returns")
    for letters in _LETTERS.values():
        sides = [[side + letter for letter in letters] for side in "ih"]
        if set(params) == {name for side in sides for name in side}:
            break
    else:
        checks.refuse(
            "params",
            f"the names {', '.join(sorted(map(str, params)))}",
            "those of SimpleCell (i, h), GRUCell (ir, iz, in, ...) or LSTMCell (ii, if, ig, ...)",
        )
    maps = [[_entry(f"params[{name!r}]", params[name]) for name in names] for names in sides]
    (features, _), (hidden, _) = (side[0][0].shape for side in maps)
    for names, side, rows in zip(sides, maps, (features, hidden), strict=True):
        for name, (kernel, bias) in zip(names, side, strict=True):
            checks.shape(f"params[{name!r}]['kernel']", kernel, (rows, hidden), "[N, H]")
            if bias is not None:
                checks.shape(f"params[{name!r}]['bias']", bias, (hidden,), "[H]")
    inputs, recurrents = maps
    return to_cell("params", _joined(inputs, recurrents), activation_fn)


@checked
def to_linen(cell: RecurrentCell) -> dict[str, Any]:
    """Return the variables of the Linen cell that computes the same as a cell of this package.

    Args:
      cell: an `ElmanCell`, `GRUCell` or `LSTMCell`.

    Returns:
      ``{"params": ...}``, as ``apply`` takes it, for a `SimpleCell` (with the same `activation_fn`), a
      `GRUCell` or an `LSTMCell`; `OptimizedLSTMCell` has the same variables.

    Raises:
      InputError: another kind of cell.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxrnn import LSTMCell, interop
      >>> cell = LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> carry = cell.initialize_carry((4, 3))
      >>> carry, y = nn.LSTMCell(8).apply(interop.to_linen(cell), carry, jnp.ones((4, 3)))
      >>> y.shape
      (4, 8)
    """
    weights = of_cell("cell", cell)
    letters = _LETTERS[type(cell)]
    biased = "h" if isinstance(cell, LSTMCell) else "i"
    params: dict[str, Any] = {}
    for side, array, name in (
        ("i", weights.kernel, "kernel"),
        ("h", weights.recurrent_kernel, "kernel"),
        (biased, weights.bias, "bias"),
    ):
        for letter, block in zip(letters, np.split(array, len(letters), axis=-1), strict=True):
            params.setdefault(side + letter, {})[name] = device_array("cell", block)
    if isinstance(cell, GRUCell):
        params["hn"]["bias"] = cell.recurrent_bias[...]
    return {"params": params}


_Dense = tuple[Any, Any]
"""The kernel [N, P] and the bias [P] of a linear map; the bias is None if the map has none."""


def _entry(argument: str, entry: Any) -> _Dense:
    """Return the kernel and bias of one map of a Linen tree."""
    if not isinstance(entry, Mapping) or not {"kernel"} <= set(entry) <= {"kernel", "bias"}:
        names = isinstance(entry, Mapping)
        got = ", ".join(sorted(map(str, entry))) if names else checks.describe(entry)
        checks.refuse(argument, got, "kernel, and perhaps bias")
    if np.ndim(entry["kernel"]) != 2:
        checks.refuse(f"{argument}['kernel']", checks.describe(entry["kernel"]), "[N, H]")
    return entry["kernel"], entry.get("bias")


def _joined(inputs: Sequence[_Dense], recurrents: Sequence[_Dense]) -> Weights:
    """Join the gates side by side, with zeros for missing biases."""
    (kernel, bias), (recurrent_kernel, recurrent_bias) = map(_side, (inputs, recurrents))
    return Weights(kernel, recurrent_kernel, bias, recurrent_bias)


def _side(denses: Sequence[_Dense]) -> tuple[np.ndarray, np.ndarray]:
    kernels = [host_array("kernel", kernel[...]) for kernel, _ in denses]
    biases = [
        np.zeros(kernel.shape[-1:], kernel.dtype) if bias is None else host_array("bias", bias[...])
        for kernel, (_, bias) in zip(kernels, denses, strict=True)
    ]
    return np.concatenate(kernels, axis=-1), np.concatenate(biases)
