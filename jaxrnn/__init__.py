"""jaxrnn: a laboratory for recurrent networks in JAX.

Carry any cell through time (`unroll`), take its BPTT gradient apart into the step Jacobians it is made of
(`jaxrnn.analysis`), and measure, not assert, what a recurrent network can and cannot do.
"""

import importlib.metadata

from jaxrnn import analysis, cells, devices, interop, models, plot, tasks, training
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, RecurrentCell, make_cell
from jaxrnn.checks import InputError
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.unroll import (
    Associative,
    Blocked,
    CuDNN,
    Newton,
    Remat,
    Scan,
    Stateful,
    Truncated,
    Unrolled,
    unroll,
)

__version__ = importlib.metadata.version("jaxrnn")

__all__ = [
    "RNN",
    "Associative",
    "Bidirectional",
    "Blocked",
    "CuDNN",
    "ElmanCell",
    "GRUCell",
    "InputError",
    "LSTMCell",
    "Newton",
    "RecurrentCell",
    "Remat",
    "Scan",
    "Stack",
    "Stateful",
    "Truncated",
    "Unrolled",
    "analysis",
    "cells",
    "devices",
    "interop",
    "make_cell",
    "models",
    "plot",
    "tasks",
    "training",
    "unroll",
]
