"""Where the weights of a cell start, as settings of a run in place of the cell's own.

    U ← g_U U₀          U₀ drawn by the chosen initialiser at scale 1, gate by gate
    W ← g_W W
    b_keep ← b          the gate that keeps the state: forget gate of an LSTM, update gate of a GRU

Gains and biases only multiply and replace what was drawn, so they may be traced numbers: an ensemble tries
several of them in one program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.cells import GRUCell, LSTMCell, initializers
from jaxrnn.cells.base import DenseWeights, InputWeights
from jaxrnn.typing import Initializer


def _normal() -> Initializer:
    """Normal entries of variance 1/H: the circular law's radius is 1 (Girko 1985)."""
    return jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


STARTS: dict[str, Callable[[], Initializer]] = {
    "orthogonal": initializers.orthogonal,
    "glorot": initializers.glorot,
    "identity": initializers.identity,
    "spectral-radius": lambda: initializers.spectral_radius(1.0),
    "normal": _normal,
}
"""Initialisers of a recurrent matrix [H, H], each at scale 1."""

_KEEPS = {LSTMCell.gates: "forget", GRUCell.gates: "update"}
"""The gate that keeps the state, by the names of a cell's gates."""


def start_cell(
    cell: Any,
    *,
    recurrent_init: str | None,
    recurrent_gain: Any,
    input_gain: Any,
    forget_bias: Any,
    chrono: float | None,
    rngs: nnx.Rngs,
) -> Any:
    """Set a fresh cell's weights.

    Args:
      cell: the cell, which is changed.
      recurrent_init: a name of `STARTS`; None leaves the recurrent matrices as they were drawn.
      recurrent_gain: factor on the recurrent matrices.
      input_gain: factor on the input matrices.
      forget_bias: bias of the gate that keeps the state; None leaves it.
      chrono: longest lag in steps, by which that gate's biases are drawn; None leaves them.
      rngs: ``params`` draws what is drawn.

    Returns:
      The cell.

    Raises:
      InputError: weights that the cell does not have.
    """
    if recurrent_init is not None:
        name = "recurrent_init"
        _require(cell, DenseWeights, name, recurrent_init, "full recurrent matrices")
        size, gates = cell.hidden_features, len(cell.gates)
        cell.recurrent_kernel[...] = initializers.per_gate(
            STARTS[recurrent_init](), rngs.params(), (size, size), gates, cell.dtype
        )
    if not _is_one(recurrent_gain):
        name = "recurrent_gain"
        _require(cell, DenseWeights, name, recurrent_gain, "full recurrent matrices")
        cell.recurrent_kernel[...] = _times(recurrent_gain, cell.recurrent_kernel[...])
    if not _is_one(input_gain):
        _require(cell, InputWeights, "input_gain", input_gain, "input matrices")
        cell.kernel[...] = _times(input_gain, cell.kernel[...])
    if forget_bias is not None:
        _set_bias(cell, "forget_bias", forget_bias)
    if chrono is not None:
        _set_bias(cell, "chrono", chrono, rngs)
    return cell


def _set_bias(cell: Any, argument: str, value: Any, rngs: nnx.Rngs | None = None) -> None:
    """Set the bias of the gate that keeps the state, or with `rngs` draw the biases by `chrono`."""
    gates = getattr(cell, "gates", ())
    if gates not in _KEEPS:
        _refuse(cell, argument, value, "the gates of an LSTM or a GRU")
    place = gates.index(_KEEPS[gates])
    biases = cell.bias[...].reshape(len(gates), -1)
    if rngs is None:
        biases = biases.at[place].set(value)
    else:
        family: Any = LSTMCell if gates == LSTMCell.gates else GRUCell
        biases = family.chrono(value)(rngs.params(), biases.shape, cell.dtype)
    cell.bias[...] = biases.ravel()


def _is_one(gain: Any) -> bool:
    """Tell a gain that changes nothing; a traced one may change something."""
    return isinstance(gain, int | float) and gain == 1


def _times(gain: Any, kernel: Any) -> Any:
    return jnp.asarray(gain, kernel.dtype) * kernel


def _require(cell: Any, kind: type, argument: str, value: Any, what: str) -> None:
    if not isinstance(cell, kind):
        _refuse(cell, argument, value, what)


def _refuse(cell: Any, argument: str, value: Any, what: str) -> None:
    given = value if isinstance(value, int | float | str) else "several values"
    checks.refuse(argument, f"{given} for a {type(cell).__name__}", f"a cell with {what}")
