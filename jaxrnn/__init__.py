"""jaxrnn: a laboratory for recurrent networks in JAX.

Unroll any cell (`unroll`), decompose its BPTT gradient into the step Jacobians that it is a
product of (`jaxrnn.analysis`), and measure what a recurrent network can and cannot do.

Public names are imported on first use, so ``import jaxrnn`` itself loads nothing else.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from jaxrnn import (
        analysis,
        cells,
        claims,
        devices,
        experiments,
        interop,
        models,
        plot,
        report,
        tasks,
        training,
    )
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
    from jaxrnn.layers import (
        RNN,
        Bidirectional,
        Stack,
    )
    from jaxrnn.unrolling import (
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

    __version__: str

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

# The modules that are searched for the other public names, in this order.
_CORE = ("jaxrnn.cells", "jaxrnn.layers", "jaxrnn.unrolling", "jaxrnn.checks")
_PACKAGES = (
    "analysis",
    "cells",
    "claims",
    "devices",
    "experiments",
    "interop",
    "models",
    "plot",
    "report",
    "tasks",
    "training",
)


def __getattr__(name: str) -> _Any:
    """Import a public name on first use."""
    if name == "__version__":
        found = _importlib.import_module("jaxrnn.versions").version_of("jaxrnn")
    elif name in _PACKAGES:
        found = _importlib.import_module(f"jaxrnn.{name}")
    elif name in __all__:
        modules = map(_importlib.import_module, _CORE)
        found = next(getattr(module, name) for module in modules if hasattr(module, name))
    else:
        raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
