"""The common form of imported and exported weights: our gates, in our order, with both biases explicit.

    drive = W x + b        pull = U h + v

PyTorch, cuDNN and Keras's GRU have an input bias b and a recurrent bias v. If a cell only ever adds the two,
our cell has their sum: on import they are added, on export v is zero. Only in the candidate of the GRU do
both count, because v is inside the product with the reset gate.

Weakness: weights do not determine the nonlinearity. For an Elman network it must be given; gates are assumed
to be sigmoids and candidates tanh, the defaults of every library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxrnn import checks
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, ProjectedLSTMCell, RecurrentCell
from jaxrnn.layers import RNN

COMMON = (ElmanCell, GRUCell, LSTMCell)
"""The cells that every supported library has."""

_BY_GATES = {len(kind.gates): kind for kind in COMMON}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one cell, as NumPy arrays.

    Attributes:
      kernel: W [F, P], gates side by side in the order of our cell.
      recurrent_kernel: U [H, P], or [Y, P] for a projected LSTM.
      bias: b [P].
      recurrent_bias: v [P].
      projection: the projection of a projected LSTM [H, Y], otherwise None.
    """

    kernel: Float[np.ndarray, "F P"]
    recurrent_kernel: Float[np.ndarray, "Y P"]
    bias: Float[np.ndarray, "P"]
    recurrent_bias: Float[np.ndarray, "P"]
    projection: Float[np.ndarray, "H Y"] | None = None


def count_gates(hidden: int, pull: int) -> int | None:
    """Return the number of gates, or None if P is not G·H for an Elman cell, a GRU or an LSTM."""
    return pull // hidden if pull and pull in (gates * hidden for gates in _BY_GATES) else None


def host_array(argument: str, value: Any) -> np.ndarray:
    """Return weights as a NumPy array.

    Raises:
      InputError: `value` is not an array of floats, or is a tensor that NumPy cannot read.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # raised by PyTorch's tensors
        checks.refuse(
            argument,
            f"{type(value).__name__} ({error})",
            "an array of floats (tensor.detach().cpu(), and .float() for bfloat16)",
        )
    checks.floating(argument, array)
    return array


def device_array(argument: str, array: np.ndarray) -> Shaped[Array, "..."]:
    """Return a copy owned by JAX, in the same dtype.

    Raises:
      InputError: the dtype has more digits than JAX's settings keep.
    """
    if jnp.result_type(array) != array.dtype:
        checks.refuse(
            argument,
            f"{array.dtype}, of which JAX keeps {jnp.result_type(array)}",
            "that dtype, or jax.config.update('jax_enable_x64', True)",
        )
    return jnp.array(array)  # a copy: on CPU JAX can share the memory of the source


def to_cell(
    argument: str,
    weights: Weights,
    activation_fn: Callable[[Any], Any] | None = None,
    *,
    kind: type[Any] | None = None,
) -> RecurrentCell:
    """Return a cell of this package with the given weights.

    Args:
      argument: name of the weights in errors.
      weights: the weights.
      activation_fn: the nonlinearity of an Elman cell; tanh by default.
      kind: class of the cell, if the number of gates does not determine it.

    Raises:
      InputError: arrays of several dtypes, or a nonlinearity for a cell that does not accept one.
    """
    features, pull = weights.kernel.shape
    projection = weights.projection
    if projection is None:
        hidden = weights.recurrent_kernel.shape[0]
        kind = kind or _BY_GATES[pull // hidden]
    else:
        hidden, kind = projection.shape[0], ProjectedLSTMCell
    if activation_fn is not None and kind is not ElmanCell:
        checks.refuse("activation_fn", repr(activation_fn), f"None for a {kind.__name__}")
    dtypes = sorted({str(array.dtype) for array in vars(weights).values() if array is not None})
    if len(dtypes) > 1:
        checks.refuse(argument, " and ".join(dtypes), "weights of one dtype")

    inside = hidden if kind is GRUCell else 0  # units whose two biases are not added
    added = slice(0, pull - inside)
    bias, second = weights.bias.copy(), weights.recurrent_bias
    # Where the second bias is 0, keep the first one exactly: −0 + 0 would be +0.
    np.add(bias[added], second[added], out=bias[added], where=second[added] != 0)
    params = {
        "kernel": weights.kernel,
        "recurrent_kernel": weights.recurrent_kernel,
        "bias": bias,
    }
    if inside:
        params["recurrent_bias"] = second[-inside:]
    if projection is not None:
        params["projection"] = projection

    owned = {name: nnx.Param(device_array(argument, array)) for name, array in params.items()}

    options: dict[str, Any] = {} if activation_fn is None else {"activation_fn": activation_fn}
    if projection is not None:
        options["projection_features"] = projection.shape[1]
    cell = jax.eval_shape(
        lambda: kind(features, hidden, param_dtype=bias.dtype, rngs=nnx.Rngs(0), **options)
    )
    for name, param in owned.items():
        setattr(cell, name, param)
    return cell


def of_cell(argument: str, cell: Any, kinds: Sequence[type[RecurrentCell]] = COMMON) -> Weights:
    """Return copies of a cell's weights.

    Raises:
      InputError: the other library has no such kind of cell.
    """
    _known(argument, cell, kinds)
    bias = np.array(cell.bias[...])
    recurrent_bias = np.zeros_like(bias)
    if isinstance(cell, GRUCell):
        recurrent_bias[-cell.hidden_features :] = cell.recurrent_bias[...]
    projected = isinstance(cell, ProjectedLSTMCell)
    projection = np.array(cell.projection[...]) if projected else None
    kernels = np.array(cell.kernel[...]), np.array(cell.recurrent_kernel[...])
    return Weights(*kernels, bias, recurrent_bias, projection)


def cell_of_rnn(argument: str, rnn: Any, kinds: Sequence[type[RecurrentCell]]) -> Any:
    """Return the cell of a layer, if the other library has an equivalent layer.

    Raises:
      InputError: the layer is not an `RNN`, its cell is of another kind, or the other library lacks one of
        its
        features: a learned initial carry, or zoneout, which changes the outputs in evaluation too.
    """
    if not isinstance(rnn, RNN):
        checks.refuse(argument, type(rnn).__name__, "an RNN")
    if len(rnn.carry):
        checks.refuse(argument, "a layer with a learnt initial carry", "one that starts from zeros")
    if rnn.zoneout:
        checks.refuse(argument, f"a layer with zoneout {rnn.zoneout}", "one without")
    _known(argument, rnn.cell, kinds)
    return rnn.cell


def _known(argument: str, cell: Any, kinds: Sequence[type[RecurrentCell]]) -> None:
    if type(cell) not in kinds:  # a subclass may compute anything
        *others, last = (kind.__name__ for kind in kinds)
        expected = f"{', '.join(others)} or {last} of jaxrnn"
        checks.refuse(argument, type(cell).__name__, expected)
