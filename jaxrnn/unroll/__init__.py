"""`unroll` and its methods, one a file."""

from jaxrnn.unroll.core import unroll
from jaxrnn.unroll.record import Frames, Method, Unrolled
from jaxrnn.unroll.scan import Scan

__all__ = ["Frames", "Method", "Scan", "Unrolled", "unroll"]
