"""`unroll` and its methods, one a file."""

from jaxrnn.unroll.associative import Associative
from jaxrnn.unroll.blocked import Blocked
from jaxrnn.unroll.core import padding_mask, unroll
from jaxrnn.unroll.cudnn import CuDNN
from jaxrnn.unroll.newton import Newton
from jaxrnn.unroll.record import Convergence, Frames, Method, Unrolled
from jaxrnn.unroll.remat import Remat
from jaxrnn.unroll.scan import Scan
from jaxrnn.unroll.stateful import Stateful
from jaxrnn.unroll.truncated import Truncated

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
