"""Recurrent cells, one family a file, each opening with its equations, paper and weakness."""

from jaxrnn.cells import initializers
from jaxrnn.cells.base import (
    CellOptions,
    DenseCell,
    DenseWeights,
    InputWeights,
    RecurrentCell,
    SplitStep,
)
from jaxrnn.cells.elman import ElmanCell
from jaxrnn.cells.gru import GRUCell
from jaxrnn.cells.lstm import LSTMCell
from jaxrnn.cells.table import CELLS, CellEntry, count_parameters, make_cell

__all__ = [
    "CELLS",
    "CellEntry",
    "CellOptions",
    "DenseCell",
    "DenseWeights",
    "ElmanCell",
    "GRUCell",
    "InputWeights",
    "LSTMCell",
    "RecurrentCell",
    "SplitStep",
    "count_parameters",
    "initializers",
    "make_cell",
]
