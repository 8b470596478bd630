"""MATLAB files, read by SciPy in a process of its own.

SciPy's reader trusts the sizes that a file declares: one damaged byte may end the process that reads it, or
keep it busy for ever. So a child process reads the file, with bounds on its memory and its time, and hands
the arrays back as NumPy's own archive, which is read without pickles.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrnn import checks
from jaxrnn.tasks.files import read_bytes

_BYTES = 4 * 2**30  # of the child's address space, most of which the libraries take
_CPU_SECONDS = 20  # the chorales, 13 MB unpacked, take one
_WALL_SECONDS = 300

_CHILD = """
import io, json, sys
path, names, memory, seconds = json.loads(sys.argv[1])
sys.path[:] = path
import numpy as np, scipy.io
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:  # Windows has no such limits
    pass
try:
    content = scipy.io.loadmat(io.BytesIO(sys.stdin.buffer.read()))
except Exception as error:  # a damaged file can raise anything
    sys.exit(f"a file that cannot be read ({str(error) or type(error).__name__})")
arrays = {}
for name in names:
    if name not in content:
        sys.exit(f"no {name}")
    cells = content[name]
    if cells.dtype != object:
        sys.exit(f"{name} that is no cell array")
    for i, cell in enumerate(cells.reshape(-1)):
        if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "biufc":
            sys.exit(f"{name}[{i}] that is no array of numbers")
        arrays[f"{name}/{i}"] = cell
np.savez(sys.stdout.buffer, **arrays)
"""


def read_cell_arrays(
    path: Path, names: Sequence[str], expected: str
) -> dict[str, list[np.ndarray]]:
    """Return the cell arrays of these names from a MATLAB file, each as a list of arrays of numbers.

    Raises:
      InputError: the file cannot be read, takes too much memory or time, or lacks one of them; `expected`
        says what it should be.
    """
    content = read_bytes(path, expected)
    arguments = json.dumps([sys.path, list(names), _BYTES, _CPU_SECONDS])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, arguments],
            input=content,
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # whose buffers count as memory
        )
    except subprocess.TimeoutExpired:
        checks.refuse(str(path), f"a file that takes more than {_WALL_SECONDS} s to read", expected)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        checks.refuse(str(path), f"a damaged file, whose reader was ended by {name}", expected)
    if done.returncode:
        *_, reason = ("", *done.stderr.decode(errors="replace").strip().splitlines())
        checks.refuse(str(path), reason[:200], expected)
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        each = {name: [key for key in arrays.files if key.startswith(f"{name}/")] for name in names}
        return {name: [arrays[key] for key in keys] for name, keys in each.items()}
