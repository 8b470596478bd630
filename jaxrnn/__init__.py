"""jaxrnn: the laboratory for recurrent networks in JAX."""

from jaxrnn import analysis
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell, make_cell
from jaxrnn.unroll import Scan, Unrolled, unroll

__all__ = [
    "ElmanCell",
    "GRUCell",
    "LSTMCell",
    "Scan",
    "Unrolled",
    "analysis",
    "make_cell",
    "unroll",
]
