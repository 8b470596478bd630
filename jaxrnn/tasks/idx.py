"""The IDX files in which MNIST and its relatives are kept.

An IDX file is a magic number (two zero bytes, a type code, the number of axes), the length of each axis
as big-endian 32-bit integers, then the values; usually compressed with gzip.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.files import read_bytes

_UINT8 = 0x08
_MOST_AXES = 8  # images have three


@checked
def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of bytes, compressed or not.

    Returns:
      A uint8 array with the axes that the file declares.

    Raises:
      InputError: the file cannot be read, is not IDX, or holds fewer or more bytes than it declares.
    """
    what = "an IDX file"
    header = read_bytes(Path(path), what, 4 + 4 * _MOST_AXES)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UINT8:
        checks.refuse(
            str(path), f"a file beginning {header[:4].hex(' ')}", "an IDX file of bytes, 00 00 08"
        )
    axes = header[3]
    if not 1 <= axes <= _MOST_AXES:
        checks.refuse(str(path), f"{axes} axes", f"1 to {_MOST_AXES}")
    begin = 4 + 4 * axes
    if len(header) < begin:
        checks.refuse(str(path), f"{len(header)} bytes", f"a header of {begin} bytes")
    shape = struct.unpack(f">{axes}I", header[4:begin])
    end = begin + math.prod(shape)
    if end >= 2**63:
        checks.refuse(str(path), f"the declared shape {list(shape)}", "fewer than 2⁶³ bytes")
    content = read_bytes(Path(path), what, end + 1)  # one more, to see whether there is more
    if len(content) != end:
        got = f"{'more' if len(content) > end else len(content) - begin} bytes of values"
        checks.refuse(str(path), got, f"{end - begin}, for the declared shape {list(shape)}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
