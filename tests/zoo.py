"""Which cells a test runs over: those that stand for a kind always, the rest of the table under `slow`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flax import nnx

from jaxrnn.cells import CELLS
from jaxrnn.typing import SplitCell

# Two leaves and drive and pull added, one leaf and the two apart, and no recurrent weights at all.
KINDS = ("lstm", "gru", "mingru")


def table_of_cells(*quick: str, among: Iterable[str] = tuple(CELLS)) -> pytest.MarkDecorator:
    """Run a test over cells of the table by ``name``, all but the `quick` ones under `slow`."""
    return each_of(among, *quick)


def each_of(among: Iterable[str], *quick: str, argument: str = "name") -> pytest.MarkDecorator:
    """Run a test over some names, all but the `quick` ones under `slow`."""
    names = [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in among]
    return pytest.mark.parametrize(argument, names)


def _is_split(name: str) -> bool:
    return isinstance(CELLS[name].make(1, 2, rngs=nnx.Rngs(0)), SplitCell)


SPLIT = tuple(filter(_is_split, CELLS))
# Any numbers [*B, H] are a state in which these can be: clocks count down together, a normaliser is positive.
PLAIN = tuple(name for name in SPLIT if name not in ("clockwork", "slstm"))

every_cell = table_of_cells(*KINDS)
every_plain_cell = table_of_cells(*KINDS, among=PLAIN)
