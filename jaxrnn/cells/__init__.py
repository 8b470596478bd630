"""Recurrent cells, one family per file; each file begins with equations, paper and weakness."""

from jaxrnn.cells import initializers
from jaxrnn.cells.antisymmetric import AntisymmetricCell
from jaxrnn.cells.base import (
    CellOptions,
    DenseCell,
    DenseWeights,
    InputOptions,
    InputWeights,
    RecurrentCell,
    SplitStep,
)
from jaxrnn.cells.clockwork import ClockworkCell
from jaxrnn.cells.cornn import CoRNNCell
from jaxrnn.cells.ctrnn import CTRNNCell
from jaxrnn.cells.elman import ElmanCell
from jaxrnn.cells.gru import GRUCell, OGRUCell, ResetBeforeGRUCell
from jaxrnn.cells.indrnn import IndRNNCell
from jaxrnn.cells.jordan import JordanCell
from jaxrnn.cells.lem import LEMCell
from jaxrnn.cells.lipschitz import LipschitzCell
from jaxrnn.cells.lstm import LSTMCell, PeepholeLSTMCell, ProjectedLSTMCell
from jaxrnn.cells.mgu import MGUCell
from jaxrnn.cells.minimal import MinGRUCell, MinLSTMCell
from jaxrnn.cells.orthogonal import OrthogonalCell
from jaxrnn.cells.rg_lru import RGLRUCell
from jaxrnn.cells.sru import SRUCell
from jaxrnn.cells.state_space import LRUCell, S5Cell
from jaxrnn.cells.table import CELLS, CellCost, CellEntry, count_parameters, make_cell
from jaxrnn.cells.unitary import UnitaryCell
from jaxrnn.cells.xlstm import MLSTMCell, SLSTMCell

__all__ = [
    "CELLS",
    "AntisymmetricCell",
    "CTRNNCell",
    "CellCost",
    "CellEntry",
    "CellOptions",
    "ClockworkCell",
    "CoRNNCell",
    "DenseCell",
    "DenseWeights",
    "ElmanCell",
    "GRUCell",
    "IndRNNCell",
    "InputOptions",
    "InputWeights",
    "JordanCell",
    "LEMCell",
    "LRUCell",
    "LSTMCell",
    "LipschitzCell",
    "MGUCell",
    "MLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "OGRUCell",
    "OrthogonalCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RGLRUCell",
    "RecurrentCell",
    "ResetBeforeGRUCell",
    "S5Cell",
    "SLSTMCell",
    "SRUCell",
    "SplitStep",
    "UnitaryCell",
    "count_parameters",
    "initializers",
    "make_cell",
]
