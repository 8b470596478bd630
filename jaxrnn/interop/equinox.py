"""Equinox's `eqx.nn.LSTMCell` and `eqx.nn.GRUCell`, imported from their arrays.

    weight_ih [G·H, F]    weight_hh [G·H, H]    bias [G·H]    of a GRU bias_n [H] too

Gates are in the same order as here (i, f, g, o and r, z, n), and matrices are the transposes of ours. The
GRU's `bias_n` is inside the product with the reset gate, as our `recurrent_bias` is. An LSTM's state is (h,
c) in Equinox, (c, h) here.

Source: https://docs.kidger.site/equinox/api/nn/rnn. Equinox is neither needed nor imported: any object with
these attributes is accepted. Weakness: only the attributes are read, so a subclass that computes something
else is not detected.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import GRUCell, LSTMCell, RecurrentCell
from jaxrnn.interop.weights import Weights, host_array, to_cell

_KINDS = {len(kind.gates): kind for kind in (GRUCell, LSTMCell)}


@checked
def from_equinox(cell: Any) -> RecurrentCell:
    """Return a cell of this package with the weights of a cell of Equinox.

    Args:
      cell: an ``eqx.nn.LSTMCell`` or ``eqx.nn.GRUCell``, with biases or without.

    Returns:
      An `LSTMCell` or a `GRUCell`; it computes in the dtype of the weights.

    Raises:
      InputError: an object without these attributes, or with arrays of the wrong shapes.

    Example:
      >>> import types
      >>> import numpy as np
      >>> from jaxrnn import interop
      >>> kernels = {"weight_ih": np.ones((32, 3), "f"), "weight_hh": np.ones((32, 8), "f")}
      >>> like_equinox = types.SimpleNamespace(**kernels, bias=None)
      >>> type(interop.from_equinox(like_equinox)).__name__
      'LSTMCell'
    """
    missing = [name for name in ("weight_ih", "weight_hh", "bias") if not hasattr(cell, name)]
    if missing:
        got = f"{checks.describe(cell)}, without {', '.join(missing)}"
        checks.refuse("cell", got, "an eqx.nn.LSTMCell or eqx.nn.GRUCell")
    kernel, recurrent = (
        host_array(f"cell.{name}", getattr(cell, name)) for name in ("weight_ih", "weight_hh")
    )
    pull, hidden = recurrent.shape if recurrent.ndim == 2 else (0, 0)
    kind = _KINDS.get(pull // hidden if hidden and pull % hidden == 0 else 0)
    if kind is None:
        expected = "[G·H, H], with G = 3 (GRU) or 4 (LSTM)"
        checks.refuse("cell.weight_hh", checks.describe(recurrent), expected)
    features = kernel.shape[1] if kernel.ndim == 2 else 0
    checks.shape("cell.weight_ih", kernel, (pull, features), "[G·H, F]")
    bias, second = np.zeros((2, pull), kernel.dtype)
    if cell.bias is not None:
        bias = host_array("cell.bias", cell.bias)
        checks.shape("cell.bias", bias, (pull,), "[G·H]")
    inside = getattr(cell, "bias_n", None)
    if inside is not None:
        inside = host_array("cell.bias_n", inside)
        checks.shape("cell.bias_n", inside, (hidden,), "[H]")
        second[-hidden:] = inside
    weights = Weights(kernel.T, recurrent.T, bias, second)
    return to_cell("cell", weights, kind=kind)
