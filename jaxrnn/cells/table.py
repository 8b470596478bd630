"""The table of cells: one row a cell, read by the command line, the documentation and the tests.

A row says how to make the cell and what is known of it on paper; what can be computed (parameters,
state size) is computed from the cell itself, and the test of the table holds the two together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.cells.elman import ElmanCell
from jaxrnn.cells.gru import GRUCell
from jaxrnn.cells.lstm import LSTMCell


@dataclasses.dataclass(frozen=True)
class CellEntry:
    """What is known of one cell.

    Attributes:
      name: how the command line calls it.
      make: ``make(in_features, hidden_features, rngs=...)`` returns the cell.
      equations: the step in one line.
      parameters: the paper's count as a function of F and H.
      paper: where it comes from.
    """

    name: str
    make: Callable[..., Any]
    equations: str
    parameters: Callable[[int, int], int]
    paper: str


def _affine(gates: int, extra: int = 0) -> Callable[[int, int], int]:
    """Parameters of `gates` maps from F + H + 1 to H, and `extra` vectors of H."""
    return lambda f, h: gates * h * (f + h + 1) + extra * h


_ELMAN = "h' = φ(W x + U h + b)"

CELLS: dict[str, CellEntry] = {
    entry.name: entry
    for entry in (
        CellEntry("elman-tanh", ElmanCell, f"{_ELMAN}, φ = tanh", _affine(1), "Elman 1990"),
        CellEntry(
            "elman-relu",
            partial(ElmanCell, activation_fn=jax.nn.relu),
            f"{_ELMAN}, φ = ReLU",
            _affine(1),
            "Le et al. 2015 (with U = I at the start: IRNN)",
        ),
        CellEntry(
            "elman-sigmoid",
            partial(ElmanCell, activation_fn=jax.nn.sigmoid),
            f"{_ELMAN}, φ = σ",
            _affine(1),
            "Elman 1990",
        ),
        CellEntry(
            "lstm",
            LSTMCell,
            "c' = σ(f) c + σ(i) tanh(g),  h' = σ(o) tanh(c')",
            _affine(4),
            "Hochreiter & Schmidhuber 1997; Gers et al. 2000",
        ),
        CellEntry(
            "gru",
            GRUCell,
            "h' = z h + (1 − z) tanh(W x + b + r (U h + v))",
            _affine(3, extra=1),
            "Cho et al. 2014 (reset after the product)",
        ),
    )
}


def make_cell(
    name: str, in_features: int, hidden_features: int, *, rngs: nnx.Rngs, **options
) -> Any:
    """Make a cell of the table by its name.

    Raises:
      InputError: no such cell; the message lists the names and suggests the nearest.

    Example:
      >>> from flax import nnx
      >>> import jaxrnn
      >>> type(jaxrnn.make_cell("gru", 3, 8, rngs=nnx.Rngs(0))).__name__
      'GRUCell'
    """
    checks.choice("cell", name, CELLS)
    return CELLS[name].make(in_features, hidden_features, rngs=rngs, **options)


def count_parameters(module: nnx.Module) -> int:
    """Return the number of scalars in a module's parameters."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(module))
