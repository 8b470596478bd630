"""`unroll` and its methods, one per file."""

from jaxrnn.unrolling.associative import Associative
from jaxrnn.unrolling.blocked import Blocked
from jaxrnn.unrolling.core import padding_mask, unroll
from jaxrnn.unrolling.cudnn import CuDNN
from jaxrnn.unrolling.newton import Newton
from jaxrnn.unrolling.record import Convergence, Frames, Method, Unrolled
from jaxrnn.unrolling.remat import Remat
from jaxrnn.unrolling.scan import Scan
from jaxrnn.unrolling.stateful import Stateful
from jaxrnn.unrolling.truncated import Truncated

__all__ = [
    "Associative",
    "Blocked",
    "Convergence",
    "CuDNN",
    "Frames",
    "Method",
    "Newton",
    "Remat",
    "Scan",
    "Stateful",
    "Truncated",
    "Unrolled",
    "padding_mask",
    "unroll",
]
