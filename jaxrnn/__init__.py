"""jaxrnn: a laboratory for recurrent networks in JAX.

Carry any cell through time (`unroll`), take its BPTT gradient apart into the step Jacobians it is made of
(`jaxrnn.analysis`), and measure, not assert, what a recurrent network can and cannot do.
"""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxrnn import analysis, cells, devices, interop, models, plot, tasks, training
from jaxrnn.cells import (
    AntisymmetricCell,
    ClockworkCell,
    CoRNNCell,
    CTRNNCell,
    ElmanCell,
    GRUCell,
    IndRNNCell,
    JordanCell,
    LEMCell,
    LipschitzCell,
    LRUCell,
    LSTMCell,
    MGUCell,
    MinGRUCell,
    MinLSTMCell,
    MLSTMCell,
    OGRUCell,
    OrthogonalCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    RecurrentCell,
    ResetBeforeGRUCell,
    RGLRUCell,
    S5Cell,
    SLSTMCell,
    SRUCell,
    UnitaryCell,
    make_cell,
)
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

__version__ = _version("jaxrnn")

__all__ = [
    "RNN",
    "AntisymmetricCell",
    "Associative",
    "Bidirectional",
    "Blocked",
    "CTRNNCell",
    "ClockworkCell",
    "CoRNNCell",
    "CuDNN",
    "ElmanCell",
    "GRUCell",
    "IndRNNCell",
    "InputError",
    "JordanCell",
    "LEMCell",
    "LRUCell",
    "LSTMCell",
    "LipschitzCell",
    "MGUCell",
    "MLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "Newton",
    "OGRUCell",
    "OrthogonalCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RGLRUCell",
    "RecurrentCell",
    "Remat",
    "ResetBeforeGRUCell",
    "S5Cell",
    "SLSTMCell",
    "SRUCell",
    "Scan",
    "Stack",
    "Stateful",
    "Truncated",
    "UnitaryCell",
    "Unrolled",
    "analysis",
    "cells",
    "claims",
    "devices",
    "experiments",
    "interop",
    "make_cell",
    "models",
    "plot",
    "report",
    "tasks",
    "training",
    "unroll",
]

if _TYPE_CHECKING:
    from jaxrnn import claims, experiments, report

# Imported when they are first used: they bring statsmodels, SciPy's statistics and the command line's tables.
_LATER = ("claims", "experiments", "report")


def __getattr__(name: str) -> _Any:
    """Return one of the packages that are imported when they are first used."""
    if name in _LATER:
        return _importlib.import_module(f"jaxrnn.{name}")
    raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
