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


@checked
def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of bytes, compressed or not.

    Returns:
      A uint8 array with the axes that the file declares.

    Raises:
      InputError: the file cannot be read, is not IDX, or holds fewer or more bytes than it declares.
    """
    content = read_bytes(Path(path), "an IDX file")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        checks.refuse(
            str(path), f"a file beginning {content[:4].hex(' ')}", "an IDX file of bytes, 00 00 08"
        )
    axes = content[3]
    header = 4 + 4 * axes
    if len(content) < header:
        checks.refuse(str(path), f"{len(content)} bytes", f"a header of {header} bytes")
    shape = struct.unpack(f">{axes}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        got = f"{len(content) - header} bytes of values"
        checks.refuse(str(path), got, f"{expected}, for the declared shape {list(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
