"""jaxrnn: a laboratory for recurrent networks in JAX.

Carry any cell through time (`unroll`), take its BPTT gradient apart into the step Jacobians it is made of
(`jaxrnn.analysis`), and measure, not assert, what a recurrent network can and cannot do.
"""

import importlib.metadata

from jaxrnn import analysis, cells, models, plot, tasks, training
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, RecurrentCell, make_cell
from jaxrnn.checks import InputError
from jaxrnn.unroll import Scan, Unrolled, unroll

__version__ = importlib.metadata.version("jaxrnn")

__all__ = [
    "ElmanCell",
    "GRUCell",
    "InputError",
    "LSTMCell",
    "RecurrentCell",
    "Scan",
    "Unrolled",
    "analysis",
    "cells",
    "make_cell",
    "models",
    "plot",
    "tasks",
    "training",
    "unroll",
]
