"""Which cells a test runs over: those that stand for a kind always, the rest of the table under `slow`."""

from __future__ import annotations

import pytest

from jaxrnn.cells import CELLS

# One leaf and two, drive and pull added and apart, and no recurrent weights at all.
KINDS = ("elman-tanh", "elman-relu", "lstm", "gru", "mingru")


def table_of_cells(*quick: str) -> pytest.MarkDecorator:
    """Run a test over the whole table by ``name``, all but the cells named here under `slow`."""
    names = [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in CELLS]
    return pytest.mark.parametrize("name", names)


every_cell = table_of_cells(*KINDS)
