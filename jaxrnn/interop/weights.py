"""The form through which all weights pass: our gates, in our order, with both biases written out.

    drive = W x + b        pull = U h + v

PyTorch, cuDNN and Keras's GRU give a cell a bias at the inputs, b, and one at the recurrent product, v. Where
a cell only ever adds the two, ours has their sum: on the way in they are added, on the way out v is zero.
The candidate of the GRU is the one place where both count, for its v stands inside the reset product.

Weakness: weights do not say which nonlinearity stood around them. An Elman network's must be named; gates are
taken to be sigmoids and candidates tanh, as every library has them unless told otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxrnn import checks
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, RecurrentCell
from jaxrnn.layers import RNN

_BY_GATES = {len(kind.gates): kind for kind in (ElmanCell, GRUCell, LSTMCell)}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one cell, in NumPy.

    Attributes:
      kernel: W [F, P], gates side by side in the order of our cell.
      recurrent_kernel: U [H, P].
      bias: b [P].
      recurrent_bias: v [P].
    """

    kernel: Float[np.ndarray, "F P"]
    recurrent_kernel: Float[np.ndarray, "H P"]
    bias: Float[np.ndarray, "P"]
    recurrent_bias: Float[np.ndarray, "P"]


def count_gates(hidden: int, pull: int) -> int | None:
    """Return the number of gates if P = G·H has the size of an Elman cell, a GRU or an LSTM."""
    return pull // hidden if pull and pull in (gates * hidden for gates in _BY_GATES) else None


def host_array(argument: str, value: Any) -> np.ndarray:
    """Return weights as an array of NumPy's.

    Raises:
      InputError: `value` is no array of floats, or a tensor that NumPy cannot read.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # what tensors of PyTorch raise
        checks.refuse(
            argument,
            f"{type(value).__name__} ({error})",
            "an array of floats (tensor.detach().cpu(), and .float() for bfloat16)",
        )
    checks.floating(argument, array)
    return array


def device_array(argument: str, array: np.ndarray) -> Shaped[Array, "..."]:
    """Return a copy that JAX owns, in the same dtype.

    Raises:
      InputError: the dtype has more digits than JAX is set to keep.
    """
    if jnp.result_type(array) != array.dtype:
        checks.refuse(
            argument,
            f"{array.dtype}, of which JAX keeps {jnp.result_type(array)}",
            "that dtype, or jax.config.update('jax_enable_x64', True)",
        )
    return jnp.array(array)  # a copy: on CPU JAX can share the memory of the source


def to_cell(
    argument: str, weights: Weights, activation_fn: Callable[[Any], Any] | None = None
) -> RecurrentCell:
    """Return our cell with these weights; `activation_fn` is the Elman cell's, tanh unless given.

    Raises:
      InputError: arrays of several dtypes, or a nonlinearity for a cell that has none to choose.
    """
    features, pull = weights.kernel.shape
    hidden = weights.recurrent_kernel.shape[0]
    kind = _BY_GATES[pull // hidden]
    if activation_fn is not None and kind is not ElmanCell:
        checks.refuse("activation_fn", repr(activation_fn), f"None for a {kind.__name__}")
    dtypes = sorted({str(array.dtype) for array in vars(weights).values()})
    if len(dtypes) > 1:
        checks.refuse(argument, " and ".join(dtypes), "weights of one dtype")

    inside = hidden if kind is GRUCell else 0  # units whose two biases do not add
    added = slice(0, pull - inside)
    bias, second = weights.bias.copy(), weights.recurrent_bias
    # Where the second is 0 the first stays as it is, to the bit: −0 + 0 would be +0.
    np.add(bias[added], second[added], out=bias[added], where=second[added] != 0)
    params = {
        "kernel": weights.kernel,
        "recurrent_kernel": weights.recurrent_kernel,
        "bias": bias,
    }
    if inside:
        params["recurrent_bias"] = second[-inside:]

    owned = {name: nnx.Param(device_array(argument, array)) for name, array in params.items()}

    options = {} if activation_fn is None else {"activation_fn": activation_fn}
    cell = jax.eval_shape(
        lambda: kind(features, hidden, param_dtype=bias.dtype, rngs=nnx.Rngs(0), **options)
    )
    for name, param in owned.items():
        setattr(cell, name, param)
    return cell


def of_cell(argument: str, cell: Any) -> Weights:
    """Return copies of a cell's weights.

    Raises:
      InputError: the cell is not of a kind that other libraries have.
    """
    _known(argument, cell)
    bias = np.array(cell.bias[...])
    recurrent_bias = np.zeros_like(bias)
    if isinstance(cell, GRUCell):
        recurrent_bias[-cell.hidden_features :] = cell.recurrent_bias[...]
    return Weights(
        np.array(cell.kernel[...]), np.array(cell.recurrent_kernel[...]), bias, recurrent_bias
    )


def cell_of_rnn(argument: str, rnn: Any) -> Any:
    """Return the cell of a layer that other libraries have too.

    Raises:
      InputError: the layer is no `RNN`, its cell is of another kind, or it starts from a learnt carry, which
        has no place among their weights.
    """
    if not isinstance(rnn, RNN):
        checks.refuse(argument, type(rnn).__name__, "an RNN")
    if len(rnn.carry):
        checks.refuse(argument, "a layer with a learnt initial carry", "one that starts from zeros")
    _known(argument, rnn.cell)
    return rnn.cell


def _known(argument: str, cell: Any) -> None:
    if type(cell) not in _BY_GATES.values():  # a subclass may compute anything
        checks.refuse(argument, type(cell).__name__, "ElmanCell, GRUCell or LSTMCell of jaxrnn")
